"""What a runner asks the control plane for."""
