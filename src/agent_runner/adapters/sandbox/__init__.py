"""Kinds of sandboxes behind `agent_runner.ports.sandboxes`, and the deepagents backend over them."""
