"""Fan-out to watchers."""
