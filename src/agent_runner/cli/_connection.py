"""Where the server is, and the client for it, found without reading every setting.

`agent_runner.settings` takes longer to import than most commands take to run, so the few values a
client needs are read here by the same rules; `tests/unit/cli` holds the two against each other.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent_runner.cli._options import recall
from agent_runner.errors import SettingsError

if TYPE_CHECKING:
    from agent_runner.client import AgentRunner

T = TypeVar("T")

NAMES: dict[str, tuple[str, ...]] = {
    "address": ("AGENT_RUNNER_ADDRESS", "STIGMER_BACKEND_ENDPOINT"),
    "api_key": ("AGENT_RUNNER_API_KEY", "AGENT_RUNNER_TOKEN", "STIGMER_API_KEY"),
    "org": ("AGENT_RUNNER_ORG",),
    "data_dir": ("AGENT_RUNNER_DATA_DIR", "STIGMER_DATA_DIR"),
}
# Usual settings of servers and workers, which a client has no use for; others are looked up.
_USUAL = (
    "CONFIG",
    "MODEL",
    "LISTEN",
    "INSECURE",
    "SANDBOX",
    "SANDBOX_IMAGE",
    "ENGINE",
    "LOG_LEVEL",
    "LOG_FORMAT",
)
NEEDS_NO_CHECK = {name for names in NAMES.values() for name in names} | {f"AGENT_RUNNER_{n}" for n in _USUAL}


@dataclass(frozen=True, slots=True)
class Connection:
    """What a client needs to know.

    Attributes:
        address: the server; None when nobody said, so that the stack of this machine is meant.
        data_dir: where the stack of this machine keeps its state.
    """

    address: str | None
    api_key: str | None = field(repr=False)
    org: str
    data_dir: Path


def connection() -> Connection:
    """From flags, environment, `agent-runner.toml`, the user's `config.toml`, defaults, in this order.

    Raises:
        SettingsError: a variable of ours is misspelt, or a file cannot be read.
    """
    _check_other_variables(os.environ)
    files = [_read_toml(path) for path in (_project_file(), _user_file(os.environ)) if path]
    values = {name: _value(name, os.environ, files) for name in NAMES}
    data_dir = values["data_dir"] or _xdg(os.environ, "XDG_DATA_HOME", ".local/share")
    return Connection(
        address=recall("address") or values["address"],
        api_key=values["api_key"],
        org=recall("org") or values["org"] or "local",
        data_dir=Path(data_dir).expanduser().absolute(),
    )


def _check_other_variables(environ: Mapping[str, str]) -> None:
    for name in environ:
        if name.startswith("AGENT_RUNNER_") and name.removesuffix("_FILE") not in NEEDS_NO_CHECK:
            from agent_runner import settings

            settings.load()  # raises for what is wrong, with a suggestion
            return


def _value(name: str, environ: Mapping[str, str], files: list[dict[str, Any]]) -> str | None:
    for variable in NAMES[name]:
        if value := environ.get(variable):
            return value
        if path := environ.get(f"{variable}_FILE"):
            try:
                return Path(path).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise SettingsError(f"{variable}_FILE: {path} cannot be read: {error.strerror}") from error
    return next((str(values[name]) for values in files if values.get(name)), None)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error


def _project_file() -> Path | None:
    here = Path.cwd()
    return next((p for d in (here, *here.parents) if (p := d / "agent-runner.toml").is_file()), None)


def _user_file(environ: Mapping[str, str]) -> Path | None:
    path = Path(
        environ.get("AGENT_RUNNER_CONFIG") or _xdg(environ, "XDG_CONFIG_HOME", ".config") / "config.toml"
    )
    return path if path.is_file() else None


def _xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    return Path(environ.get(variable) or Path.home() / fallback) / "agent-runner"


def resolve_address(where: Connection) -> str:
    """The address that was asked for, else that of the stack running here, else the default."""
    from agent_runner.cli import _stack

    if where.address:
        return where.address
    running = _stack.running(where.data_dir)
    if running is not None:
        return running.address
    from agent_runner.client.channels import DEFAULT_ADDRESS

    return DEFAULT_ADDRESS


def online(work: Callable[[AgentRunner], Awaitable[T]], where: Connection | None = None) -> T:
    """Run `work` with a client of the server; Ctrl-C cancels it."""
    import asyncio

    found = where or connection()
    address = resolve_address(found)

    async def connected() -> T:
        from agent_runner.client import AgentRunner

        async with AgentRunner(address, found.api_key, org=found.org) as client:
            return await work(client)

    return asyncio.run(connected())
