"""Every setting, where it may come from, and what it means.

Order: environment, then `agent-runner.toml` in this directory or the nearest one above, then
`config.toml` in the XDG configuration directory, then the default. A name ending in `_FILE` reads the
value from a file. Names of the Stigmer services are taken as aliases. An empty variable is not set. An
unknown `AGENT_RUNNER_*` name is an error, so that a slip of the pen does not go unseen.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from agent_runner.declared import Given, Setting, converted, declared, setting
from agent_runner.errors import SettingsError

PREFIX = "AGENT_RUNNER_"
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
_PORT = r"(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"  # to 65535
_HOST_PORT = rf".+:{_PORT}"

# What a value may be, and for people what it must.
HostPort = Annotated[
    str, Meta(pattern=rf"^{_HOST_PORT}\Z", extra={"must": "be host:port, such as 127.0.0.1:7234"})
]
HostPortOrOff = Annotated[
    str,
    Meta(pattern=rf"^({_HOST_PORT}|off)\Z", extra={"must": "be host:port, such as 127.0.0.1:7235, or off"}),
]
FromZero = Annotated[int, Meta(ge=0)]
FromOne = Annotated[int, Meta(ge=1)]
# Ten years at most: beyond, dates and Temporal's timers come to their ends.
Seconds = Annotated[int, Meta(ge=1, le=315_360_000)]
MongoUrl = Annotated[
    str,
    Meta(
        pattern=r"^mongodb(\+srv)?://.",
        extra={
            "must": "begin with mongodb:// or mongodb+srv://; "
            "unset it for the SQLite file in the data directory"
        },
    ),
]
RedisUrl = Annotated[
    str,
    Meta(
        pattern=r"^rediss?://.",
        extra={"must": "begin with redis:// or rediss://; unset it where one control plane works alone"},
    ),
]


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "agent-runner"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a process of ours was told. Descriptions are the reference text of `docs/reference`.

    Made from values, it has the defaults beside them; `load` reads what this process was given.
    """

    data_dir: Path = setting(
        default_factory=lambda: _xdg("XDG_DATA_HOME", ".local/share"),
        aliases=("STIGMER_DATA_DIR",),
        description="Directory (mode 0700) with databases, artifacts, workspaces and logs.",
    )
    address: HostPort = setting(
        default="127.0.0.1:7234",
        aliases=("STIGMER_BACKEND_ENDPOINT",),
        description="`host:port` of the control plane that clients and runners call.",
    )
    listen: HostPort = setting(
        default="127.0.0.1:7234",
        description="`host:port` the control plane listens on. Port 0 takes a free one.",
    )
    web_listen: HostPortOrOff = setting(
        default="127.0.0.1:7235",
        description="`host:port` of the web port: events as server-sent events, health, metrics. "
        "Port 0 takes a free one; `off` opens none.",
    )
    api_key: str | None = setting(
        default=None,
        secret=True,
        aliases=("AGENT_RUNNER_TOKEN", "STIGMER_API_KEY"),
        description="Bearer key: asked for by the control plane when set, sent by clients and runners.",
    )
    runner_key: str | None = setting(
        default=None,
        secret=True,
        description="Key of the runners, for `server` and `worker`. Where the control plane has one, no "
        "other key takes executions over, reports for them or learns their variables. It opens what the API "
        "key opens.",
    )
    insecure: bool = setting(
        default=False,
        description="Allow listening beyond loopback without a key.",
    )
    encryption_keys: str | None = setting(
        default=None,
        secret=True,
        description="Keys to stored secrets, `k2:BASE64,k1:BASE64`, 32 bytes each: the first encrypts, all "
        "decrypt. Unset: one is made in `encryption-keys` in the data directory.",
    )
    org: str = setting(
        default="local",
        description="Organization of what the command line makes.",
    )
    model: str | None = setting(
        default=None,
        aliases=("STIGMER_LLM_MODEL",),
        description="Model for agents that name none: `anthropic:claude-sonnet-4-5`, `script:demo`, …",
    )
    engine: Literal["deepagents", "graphton"] = setting(
        default="deepagents", description="What runs the agents."
    )
    sandbox: Literal["local", "unconfined", "docker", "daytona", "auto"] = setting(
        default="local",
        description="Kind of sandbox a session gets.",
    )
    sandbox_image: str = setting(
        default="docker.io/library/python:3.12-slim",
        aliases=("STIGMER_SANDBOX_IMAGE",),
        description="Container image of the docker kind.",
    )
    sandbox_network: Literal["none", "host-allowlist", "full"] = setting(
        default="none",
        description="What commands of the local kind reach: nothing, the hosts listed, or all the host does.",
    )
    sandbox_allow_hosts: str = setting(
        default="",
        description="Hosts for `host-allowlist`, separated by commas: `example.org,*.example.com:8443`.",
    )
    sandbox_max_running: FromZero = setting(
        default=0,
        description="Sandboxes that run at once on one runner; who needs one more waits. 0: no cap.",
    )
    sandbox_idle_seconds: Seconds = setting(
        default=3600,
        aliases=("STIGMER_SANDBOX_TTL",),
        description="A sandbox without work is stopped after this time; its files stay.",
    )
    database: MongoUrl | None = setting(
        default=None,
        secret=True,
        description="URL of a MongoDB database that control planes share: "
        "`mongodb://user:password@host/name`, `mongodb+srv://…`; needs the extra `mongodb`. "
        "Unset: the SQLite file `control-plane.db` in the data directory.",
    )
    announcements: RedisUrl | None = setting(
        default=None,
        secret=True,
        description="URL of a Redis or Valkey server by which control planes tell each other what happens: "
        "`redis://user:password@host`, `rediss://…` with TLS; needs the extra `redis`. "
        "Unset: within the process.",
    )
    artifact_store: str | None = setting(
        default=None,
        description="URL of the store of skills and of long results of tools: `file:///folder`, "
        "`s3://bucket/prefix`, … Unset: a folder in the data directory.",
    )
    skill_archive_bytes: Annotated[int, Meta(ge=1024)] = setting(
        default=100 << 20,
        description="The most bytes a skill's zip may have.",
    )
    skill_unpacked_bytes: Annotated[int, Meta(ge=1024)] = setting(
        default=500 << 20,
        description="The most bytes the files of a skill may have.",
    )
    skill_entries: Annotated[int, Meta(ge=1, le=60_000)] = setting(
        default=10_000,
        description="The most files and directories a skill may have.",
    )
    skill_cache_bytes: FromZero = setting(
        default=4 << 30,
        description="Bytes extracted skills may take up on a runner's disk; the longest unused go first.",
    )
    temporal_address: str | None = setting(
        default=None,
        variable="TEMPORAL_ADDRESS",
        aliases=("TEMPORAL_SERVICE_ADDRESS",),
        description="`host:port` of a Temporal service. Unset: `up` starts and keeps one of its own.",
    )
    workflow_task_queue: str = setting(
        default="agent_execution_stigmer",
        aliases=("TEMPORAL_AGENT_EXECUTION_STIGMER_TASK_QUEUE",),
        description="Task queue of the workflow.",
    )
    runner_task_queue: str = setting(
        default="agent_execution_runner",
        aliases=("TEMPORAL_AGENT_EXECUTION_RUNNER_TASK_QUEUE",),
        description="Task queue of the runner's activities.",
    )
    concurrency: FromOne = setting(
        default=50,
        aliases=("TEMPORAL_MAX_CONCURRENCY",),
        description="Executions one runner carries at a time.",
    )
    max_memory_percent: Annotated[int, Meta(ge=1, le=100)] = setting(
        default=90,
        description="Percent of the machine's memory, or of the container's, above which a runner takes no "
        "further execution; 100 never holds any back.",
    )
    execution_timeout_seconds: Seconds = setting(
        default=86_400,
        description="The longest one attempt of an execution may take.",
    )
    heartbeat_timeout_seconds: Annotated[float, Meta(ge=1, le=86_400)] = setting(
        default=5.0,
        description="Silence after which Temporal gives a worker's executions to another one.",
    )
    batch_events: FromOne = setting(
        default=10,
        description="Events after which a batch of progress leaves the runner, or 100 ms.",
    )
    outbox_bytes: Annotated[int, Meta(ge=1 << 20)] = setting(
        default=256 << 20,
        description="Bytes that events may take up on a runner's disk while the control plane is away. "
        "Beyond it their text waits in memory.",
    )
    full_workflow_argument: bool = setting(
        default=False,
        description="Give foreign runners the whole execution as the workflow's argument.",
    )
    retention_days: Annotated[int, Meta(ge=0, le=3650)] = setting(
        default=0,
        description="Sessions in which nothing has happened for so many days are removed, with their "
        "executions, logs, sandboxes and threads. 0 keeps them.",
    )
    compact_after_minutes: Annotated[int, Meta(ge=0, le=5_256_000)] = setting(
        default=60,
        description="So long after its end the log of an execution is compacted: pieces of text are folded "
        "into their message. 0 never does.",
    )
    checkpoints_kept: FromZero = setting(
        default=10,
        description="Checkpoints of a conversation that stay after a turn; 0 keeps all.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        default="info",
        aliases=("LOG_LEVEL",),
        description="Least level that is logged.",
    )
    log_format: Literal["auto", "console", "json"] = setting(
        default="auto",
        description="`auto`: for people on a terminal, JSON otherwise.",
    )
    given: frozenset[str] = field(default=frozenset(), repr=False)
    """Names of those which somebody gave, rather than left at their default."""

    @property
    def execution_timeout(self) -> timedelta:
        return timedelta(seconds=self.execution_timeout_seconds)

    @property
    def heartbeat_timeout(self) -> timedelta:
        return timedelta(seconds=self.heartbeat_timeout_seconds)

    @property
    def key(self) -> str | None:
        """The bearer key; None also where it is empty."""
        return self.api_key or None

    @property
    def key_of_runners(self) -> str | None:
        """What a runner shows; None where nothing is asked for."""
        return self.runner_key or self.key


def _project_file() -> Path | None:
    for directory in (here := Path.cwd(), *here.parents):
        if (path := directory / "agent-runner.toml").is_file():
            return path
    return None


def _user_file() -> Path | None:
    path = Path(os.environ.get(f"{PREFIX}CONFIG") or _xdg("XDG_CONFIG_HOME", ".config") / "config.toml")
    return path if path.is_file() else None


def known_settings() -> Mapping[str, Setting]:
    """Every setting, by its plain name."""
    return declared(Settings, PREFIX)


def load(**overrides: Any) -> Settings:
    """Read the settings of this process; `overrides` are those given by flags, None for not given.

    Raises:
        SettingsError: a value is wrong or a name unknown; the message says which.
    """
    _read_files_of_variables()
    _refuse_unknown_names(os.environ)
    files = [path for path in (_project_file(), _user_file()) if path is not None]
    given: Given = {name: (name, value) for name, value in overrides.items() if value is not None}
    for source in (_from_variables(os.environ), *(_from_file(path) for path in files)):
        given = {**source, **given}  # what was found before counts more
    values = converted(known_settings(), given)
    settings = Settings(**values, given=frozenset(values))
    _refuse_open_door(settings)
    return settings


def known_variables() -> frozenset[str]:
    """Every environment variable a setting is read from, aliases included."""
    names = {f"{PREFIX}CONFIG"}
    for entry in known_settings().values():
        names.update(entry.variables)
    return frozenset(names)


def _read_files_of_variables() -> None:
    for name, path in list(os.environ.items()):
        plain = name.removesuffix("_FILE")
        if name.startswith(PREFIX) and plain != name and plain in known_variables():
            try:
                os.environ[plain] = os.environ.get(plain) or Path(path).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise SettingsError(f"{name}: {path} cannot be read: {error.strerror}") from None


def _from_variables(environment: Mapping[str, str]) -> Given:
    return {
        name: (variable, environment[variable])
        for name, entry in known_settings().items()
        for variable in reversed(entry.variables)  # the last one found stays
        if environment.get(variable)  # `NAME=` is how compose files and shells leave one out
    }


def _from_file(path: Path) -> Given:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    for name in values:
        if name not in known_settings():
            raise _unknown(f"{name} in {path}", name, known_settings())
    return {name: (f"{name} in {path}", value) for name, value in values.items()}


def _refuse_unknown_names(environment: Mapping[str, str]) -> None:
    known = known_variables()
    for name in environment:
        if name.startswith(PREFIX) and name not in known and name.removesuffix("_FILE") not in known:
            raise _unknown(name, name, known)


def _unknown(called: str, name: str, known: Iterable[str]) -> SettingsError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]}?" if close else "See docs/reference/settings.md."
    return SettingsError(f"{called} is not a setting. {hint}")


def _refuse_open_door(settings: Settings) -> None:
    for name in ("listen", "web_listen"):
        value: str = getattr(settings, name)
        closed = value == "off" or value.rpartition(":")[0] in _LOOPBACK
        if not closed and settings.key is None and not settings.insecure:
            raise SettingsError(
                f"{name}={value} would let anybody on the network in. "
                f"Set {PREFIX}API_KEY, listen on 127.0.0.1, or say --insecure."
            )
