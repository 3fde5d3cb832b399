"""Training runs: loop, model directory and checkpoints."""
