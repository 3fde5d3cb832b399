"""Tools that are not part of training."""
