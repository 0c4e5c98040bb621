"""Activities, a file per group. Those of the runner and those of the control plane's own worker."""
