"""Training methods, their losses and optimizers."""
