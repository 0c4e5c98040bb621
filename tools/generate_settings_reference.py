"""Write `docs/reference/settings.md` from the settings themselves; `--check` fails when it is stale."""

from __future__ import annotations

import sys
from pathlib import Path

from agent_runner.settings import known_settings

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference" / "settings.md"
HEAD = """# Settings

Every process reads its settings in this order: flags, environment, `agent-runner.toml` in the working
directory or the nearest one above it, the user's file, defaults. The user's file is `config.toml` in
`$XDG_CONFIG_HOME/agent-runner` (`~/.config/agent-runner`), or the file `AGENT_RUNNER_CONFIG` names. In a
file a setting has its plain name, such as `model = "script:demo"`. Any `AGENT_RUNNER_*` variable may end in
`_FILE` and name a file that holds the value. An empty
variable is not set. An unknown `AGENT_RUNNER_*` variable is an error.

The standard variables of other projects work as they do there: `TEMPORAL_*` (address, namespace, TLS, API
key, profile), `ANTHROPIC_API_KEY`, `OPENAI_API_KEY`, `OPENAI_BASE_URL`, `OLLAMA_BASE_URL`, `GOOGLE_API_KEY`,
`DOCKER_HOST`, `DAYTONA_API_KEY`, `NO_COLOR`.

| variable | also accepted | default | meaning |
| --- | --- | --- | --- |
"""


def rows() -> list[str]:
    lines = []
    for name, entry in known_settings().items():
        default = {
            "data_dir": "`~/.local/share/agent-runner` (XDG)",
        }.get(name, "" if entry.default is None else f"`{entry.default}`")
        also = ", ".join(f"`{alias}`" for alias in entry.variables[1:])
        lines.append(f"| `{entry.variables[0]}` | {also} | {default} | {entry.description} |")
    return sorted(lines)


def main() -> int:
    text = HEAD + "\n".join(rows()) + "\n"
    if "--check" in sys.argv:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
            print("stale: docs/reference/settings.md; run `make docs`", file=sys.stderr)
            return 1
        return 0
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
