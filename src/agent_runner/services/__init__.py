"""What can be done, whatever protocol asks."""
