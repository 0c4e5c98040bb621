"""Reaching Temporal, and running a server of our own."""
