"""Keyrings: where the keys come from that secrets are sealed with."""
