"""The web port: events as server-sent events, health and metrics, spoken through `client/`."""
