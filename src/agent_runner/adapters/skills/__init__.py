"""Skills on the runner's side: read over gRPC, kept on disk by hash."""
