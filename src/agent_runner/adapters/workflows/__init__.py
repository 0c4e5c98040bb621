"""Starting workflows."""
