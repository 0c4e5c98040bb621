"""The machine, or the container, this process runs on."""
