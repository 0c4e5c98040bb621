"""What agents remember between turns."""
