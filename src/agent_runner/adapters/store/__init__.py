"""Resources and event logs: SQLite for one machine, memory for tests and throw-away runs."""
