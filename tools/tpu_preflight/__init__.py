"""Experimental: compiles a training step for a TPU that is not attached."""
