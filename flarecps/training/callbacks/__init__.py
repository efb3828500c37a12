"""What happens around the training step: checkpoints, progress, the run's record."""
