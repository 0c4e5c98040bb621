"""Write `docs/reference/cli.md` from the help of the commands; `--check` fails when it is stale."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

# The help must not depend on who generates it.
os.environ["NO_COLOR"] = "1"
for name in [name for name in os.environ if name.startswith("AGENT_RUNNER_")]:
    del os.environ[name]

import click  # noqa: E402

from agent_runner.cli import _errors  # noqa: E402
from agent_runner.cli._main import cli  # noqa: E402

TARGET = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"
HEAD = """# Command line

Data goes to stdout; progress, hints and errors go to stderr. An error is `Error: what (CODE)`, then a line
for each field that is wrong, then what to try. Settings come from flags, environment and files, as in
[settings](settings.md). Every command also takes `--debug` (the traceback of an error) and
`--color auto|always|never`; `NO_COLOR` and `FORCE_COLOR` count.

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed: the run ended FAILED or CANCELLED, or any other error |
| 2 | wrong usage, invalid manifest or setting |
| 3 | waiting for a person |
| 4 | no key, or not allowed |
| 5 | not found |
| 6 | conflict, exists already, or not in this state |
| 7 | server not reachable or not ready |
| 124 | `--timeout` passed; the run goes on |
| 130, 143 | interrupted, terminated; a closed pipe is 0 and silent |

"""
_EVERYWHERE = {"debug", "color", "help", "version"}


def option_rows(command: click.Command) -> list[str]:
    rows = []
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or parameter.hidden or parameter.name in _EVERYWHERE:
            continue
        names = ", ".join(f"`{name}`" for name in sorted(parameter.opts, key=len))
        value = "" if parameter.is_flag else f" {parameter.make_metavar(click.Context(command))}"
        default = f" Default: {parameter.default}." if parameter.show_default else ""
        text = f"{parameter.help or ''}{default}".strip().replace("|", "\\|")
        rows.append(f"| {names}{value.replace('|', chr(92) + '|')} | {text} |")
    return rows


def section(name: str, command: click.Command) -> str:
    with click.Context(command, info_name=f"agent-runner {name}") as context:
        usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## {name}", "", "```text", f"agent-runner {name} {usage}".rstrip(), "```", ""]
    lines += [inspect.cleandoc(command.help or ""), ""]
    if rows := option_rows(command):
        lines += ["| option | meaning |", "| --- | --- |", *rows, ""]
    return "\n".join(lines)


def sections(name: str, command: click.Command) -> list[str]:
    """A command's section, and those of the commands below it."""
    found = [section(name, command)]
    if isinstance(command, click.Group):
        for below, inner in command.commands.items():
            found += sections(f"{name} {below}", inner)
    return found


def page() -> str:
    assert _errors.TIMED_OUT == 124  # the table above is by hand
    context = click.Context(cli)
    names = cli.list_commands(context)
    commands = [(name, cli.get_command(context, name)) for name in names]
    found = [sections(name, command) for name, command in commands if command is not None]
    return HEAD + "\n".join(text for texts in found for text in texts)


def main() -> int:
    text = page().rstrip("\n") + "\n"
    if "--check" in sys.argv:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
            print("stale: docs/reference/cli.md; run `make docs`", file=sys.stderr)
            return 1
        return 0
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
