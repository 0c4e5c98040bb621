"""Every setting, where it may come from, and what it means.

Order: environment, then `agent-runner.toml` in this directory or the nearest one above, then
`config.toml` in the XDG configuration directory, then the default. A name ending in `_FILE` reads the
value from a file. Names of the Stigmer services are taken as aliases. An unknown `AGENT_RUNNER_*` name
is an error, so that a slip of the pen does not go unseen.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from agent_runner.errors import SettingsError

PREFIX = "AGENT_RUNNER_"
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


def _named(name: str, *aliases: str) -> AliasChoices:
    """The native variable first, then the names of the Stigmer services; TOML uses the plain name."""
    return AliasChoices(f"{PREFIX}{name.upper()}", name, *aliases)


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "agent-runner"


class Settings(BaseSettings):
    """What a process of ours was told. Field descriptions are the reference text of `docs/reference`."""

    model_config = SettingsConfigDict(extra="forbid", populate_by_name=True, case_sensitive=False)

    data_dir: Path = Field(
        default_factory=lambda: _xdg("XDG_DATA_HOME", ".local/share"),
        validation_alias=_named("data_dir", "STIGMER_DATA_DIR"),
        description="Directory (mode 0700) with databases, artifacts, workspaces and logs.",
    )
    address: str = Field(
        default="127.0.0.1:7234",
        validation_alias=_named("address", "STIGMER_BACKEND_ENDPOINT"),
        description="`host:port` of the control plane that clients and runners call.",
    )
    listen: str = Field(
        default="127.0.0.1:7234",
        validation_alias=_named("listen"),
        description="`host:port` the control plane listens on. Port 0 takes a free one.",
    )
    web_listen: str = Field(
        default="127.0.0.1:7235",
        validation_alias=_named("web_listen"),
        description="`host:port` of the web port: events as server-sent events, health, metrics. "
        "Port 0 takes a free one; `off` opens none.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        validation_alias=_named("api_key", "AGENT_RUNNER_TOKEN", "STIGMER_API_KEY"),
        description="Bearer key: asked for by the control plane when set, sent by clients and runners.",
    )
    insecure: bool = Field(
        default=False,
        validation_alias=_named("insecure"),
        description="Allow listening beyond loopback without a key.",
    )
    encryption_keys: SecretStr | None = Field(
        default=None,
        validation_alias=_named("encryption_keys"),
        description="Keys to stored secrets, `k2:BASE64,k1:BASE64`, 32 bytes each: the first encrypts, all "
        "decrypt. Unset: one is made in `encryption-keys` in the data directory.",
    )
    org: str = Field(
        default="local",
        validation_alias=_named("org"),
        description="Organization of what the command line makes.",
    )
    model: str | None = Field(
        default=None,
        validation_alias=_named("model", "STIGMER_LLM_MODEL"),
        description="Model for agents that name none: `anthropic:claude-sonnet-4-5`, `script:demo`, …",
    )
    engine: Literal["deepagents", "graphton"] = Field(
        default="deepagents", validation_alias=_named("engine"), description="What runs the agents."
    )
    sandbox: Literal["local", "unconfined", "docker", "daytona", "auto"] = Field(
        default="local",
        validation_alias=_named("sandbox"),
        description="Kind of sandbox a session gets.",
    )
    sandbox_image: str = Field(
        default="agent-sandbox-basic:latest",
        validation_alias=_named("sandbox_image", "STIGMER_SANDBOX_IMAGE"),
        description="Container image of the docker kind.",
    )
    sandbox_network: Literal["none", "host-allowlist", "full"] = Field(
        default="none",
        validation_alias=_named("sandbox_network"),
        description="What commands of the local kind reach: nothing, the hosts listed, or all the host does.",
    )
    sandbox_allow_hosts: str = Field(
        default="",
        validation_alias=_named("sandbox_allow_hosts"),
        description="Hosts for `host-allowlist`, separated by commas: `example.org,*.example.com:8443`.",
    )
    sandbox_max_running: int = Field(
        default=0,
        ge=0,
        validation_alias=_named("sandbox_max_running"),
        description="Sandboxes that run at once on one runner; who needs one more waits. 0: no cap.",
    )
    sandbox_idle_seconds: int = Field(
        default=3600,
        ge=1,
        validation_alias=_named("sandbox_idle_seconds", "STIGMER_SANDBOX_TTL"),
        description="A sandbox without work is stopped after this time; its files stay.",
    )
    artifact_store: str | None = Field(
        default=None,
        validation_alias=_named("artifact_store"),
        description="URL of the store of skills: `file:///folder`, `s3://bucket/prefix`, … "
        "Unset: a folder in the data directory.",
    )
    skill_archive_bytes: int = Field(
        default=100 << 20,
        ge=1024,
        validation_alias=_named("skill_archive_bytes"),
        description="The most bytes a skill's zip may have.",
    )
    skill_unpacked_bytes: int = Field(
        default=500 << 20,
        ge=1024,
        validation_alias=_named("skill_unpacked_bytes"),
        description="The most bytes the files of a skill may have.",
    )
    skill_entries: int = Field(
        default=10_000,
        ge=1,
        le=60_000,
        validation_alias=_named("skill_entries"),
        description="The most files and directories a skill may have.",
    )
    skill_cache_bytes: int = Field(
        default=4 << 30,
        ge=0,
        validation_alias=_named("skill_cache_bytes"),
        description="Bytes extracted skills may take up on a runner's disk; the longest unused go first.",
    )
    temporal_address: str | None = Field(
        default=None,
        validation_alias=AliasChoices("TEMPORAL_ADDRESS", "temporal_address", "TEMPORAL_SERVICE_ADDRESS"),
        description="`host:port` of a Temporal service. Unset: `up` starts and keeps one of its own.",
    )
    workflow_task_queue: str = Field(
        default="agent_execution_stigmer",
        validation_alias=_named("workflow_task_queue", "TEMPORAL_AGENT_EXECUTION_STIGMER_TASK_QUEUE"),
        description="Task queue of the workflow.",
    )
    runner_task_queue: str = Field(
        default="agent_execution_runner",
        validation_alias=_named("runner_task_queue", "TEMPORAL_AGENT_EXECUTION_RUNNER_TASK_QUEUE"),
        description="Task queue of the runner's activities.",
    )
    concurrency: int = Field(
        default=50,
        ge=1,
        validation_alias=_named("concurrency", "TEMPORAL_MAX_CONCURRENCY"),
        description="Executions one runner carries at a time.",
    )
    execution_timeout_seconds: int = Field(
        default=86_400,
        ge=1,
        validation_alias=_named("execution_timeout_seconds"),
        description="The longest one attempt of an execution may take.",
    )
    heartbeat_timeout_seconds: float = Field(
        default=5.0,
        ge=1,
        validation_alias=_named("heartbeat_timeout_seconds"),
        description="Silence after which Temporal gives a worker's executions to another one.",
    )
    batch_events: int = Field(
        default=10,
        ge=1,
        validation_alias=_named("batch_events"),
        description="Events after which a batch of progress leaves the runner, or 100 ms.",
    )
    full_workflow_argument: bool = Field(
        default=False,
        validation_alias=_named("full_workflow_argument"),
        description="Give foreign runners the whole execution as the workflow's argument.",
    )
    retention_days: int = Field(
        default=0,
        ge=0,
        validation_alias=_named("retention_days"),
        description="Sessions in which nothing has happened for so many days are removed, with their "
        "executions, logs, sandboxes and threads. 0 keeps them.",
    )
    compact_after_minutes: int = Field(
        default=60,
        ge=0,
        validation_alias=_named("compact_after_minutes"),
        description="So long after its end the log of an execution is compacted: pieces of text are folded "
        "into their message. 0 never does.",
    )
    checkpoints_kept: int = Field(
        default=10,
        ge=0,
        validation_alias=_named("checkpoints_kept"),
        description="Checkpoints of a conversation that stay after a turn; 0 keeps all.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        validation_alias=_named("log_level", "LOG_LEVEL"),
        description="Least level that is logged.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto",
        validation_alias=_named("log_format"),
        description="`auto`: for people on a terminal, JSON otherwise.",
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("listen", "address", "web_listen")
    @classmethod
    def _host_and_port(cls, value: str, info: ValidationInfo) -> str:
        if value == "off" and info.field_name == "web_listen":
            return value
        host, separator, port = value.rpartition(":")
        if not separator or not host or not port.isdigit() or int(port) > 65_535:
            raise ValueError(f"must be host:port, such as 127.0.0.1:7234, not {value!r}")
        return value

    @property
    def execution_timeout(self) -> timedelta:
        return timedelta(seconds=self.execution_timeout_seconds)

    @property
    def heartbeat_timeout(self) -> timedelta:
        return timedelta(seconds=self.heartbeat_timeout_seconds)

    @property
    def key(self) -> str | None:
        """The bearer key in clear, or None."""
        return self.api_key.get_secret_value() if self.api_key else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = [path for path in (_project_file(), _user_file()) if path is not None]
        return (
            init_settings,
            env_settings,
            *(TomlConfigSettingsSource(settings_cls, toml_file=path) for path in files),
        )


def _project_file() -> Path | None:
    for directory in (here := Path.cwd(), *here.parents):
        if (path := directory / "agent-runner.toml").is_file():
            return path
    return None


def _user_file() -> Path | None:
    path = Path(os.environ.get(f"{PREFIX}CONFIG") or _xdg("XDG_CONFIG_HOME", ".config") / "config.toml")
    return path if path.is_file() else None


def load(**overrides: Any) -> Settings:
    """Read the settings of this process; `overrides` are those given by flags, None for not given.

    Raises:
        SettingsError: a value is wrong or a name unknown; the message says which.
    """
    _read_files_of_variables()
    _refuse_unknown_names(os.environ)
    try:
        settings = Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    _refuse_open_door(settings)
    return settings


def known_variables() -> frozenset[str]:
    """Every environment variable a setting is read from, aliases included."""
    names = {f"{PREFIX}CONFIG"}
    for field in Settings.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            names.update(str(choice) for choice in field.validation_alias.choices if str(choice).isupper())
    return frozenset(names)


def _read_files_of_variables() -> None:
    for name, path in list(os.environ.items()):
        plain = name.removesuffix("_FILE")
        if name.startswith(PREFIX) and plain != name and plain in known_variables():
            try:
                os.environ.setdefault(plain, Path(path).read_text(encoding="utf-8").strip())
            except OSError as error:
                raise SettingsError(f"{name}: {path} cannot be read: {error.strerror}") from None


def _refuse_unknown_names(environment: Mapping[str, str]) -> None:
    known = known_variables()
    for name in environment:
        if name.startswith(PREFIX) and name not in known and name.removesuffix("_FILE") not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else " See docs/reference/settings.md."
            raise SettingsError(f"{name} is not a setting.{hint}")


def _refuse_open_door(settings: Settings) -> None:
    for name in ("listen", "web_listen"):
        value: str = getattr(settings, name)
        closed = value == "off" or value.rpartition(":")[0] in _LOOPBACK
        if not closed and settings.api_key is None and not settings.insecure:
            raise SettingsError(
                f"{name}={value} would let anybody on the network in. "
                f"Set {PREFIX}API_KEY, listen on 127.0.0.1, or say --insecure."
            )


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        close = difflib.get_close_matches(name, Settings.model_fields, n=1)
        hint = f" Did you mean {close[0]!r}?" if problem["type"] == "extra_forbidden" and close else ""
        lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}.{hint}")
    return " ".join(lines)
