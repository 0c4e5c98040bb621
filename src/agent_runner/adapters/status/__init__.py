"""Reporting what an execution does."""
