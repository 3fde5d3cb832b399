"""A run: its training loop, its directory and its checkpoints."""
