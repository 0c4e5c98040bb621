"""`python -m agent_runner` is `agent-runner`."""

from __future__ import annotations

from agent_runner.cli import main

if __name__ == "__main__":
    main()
