"""How processes log: for people on a terminal, one JSON object per line otherwise.

A line is one fixed sentence plus keys. Secrets are masked by a hook which whoever holds the values
installs; keys whose names say that they hold a secret are masked always.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MASK = "********"

Redactor = Callable[[str], str]
"""Text in, the same text with secret values masked out."""

_SECRET_NAMES = ("api_key", "apikey", "authorization", "password", "passwd", "secret", "token", "credential")
# Names which hold a secret's name by chance: what they count or where they point is no secret.
_HARMLESS_ENDINGS = ("_tokens", "tokens", "_count", "_path", "_name", "_id", "_file")
# These libraries tell at info what only their own authors need.
_QUIETER = ("httpx", "httpcore", "asyncio", "urllib3", "grpc", "temporalio", "uvicorn")


class Redaction:
    """The hook: masks in every line what the redactors know to be secret."""

    def __init__(self) -> None:
        self._redactors: list[Redactor] = []

    def add(self, redactor: Redactor) -> Callable[[], None]:
        """Mask with `redactor` from now on; returns what takes it away again."""
        self._redactors.append(redactor)
        return lambda: self._redactors.remove(redactor) if redactor in self._redactors else None

    def text(self, text: str) -> str:
        """The text with everything masked."""
        for redactor in tuple(self._redactors):
            text = redactor(text)
        return text

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """A structlog processor."""
        for key, value in event.items():
            if key != "event" and _names_a_secret(key) and value:
                event[key] = MASK
            elif self._redactors or isinstance(value, (Mapping, list, tuple)):
                event[key] = self._value(value)
        return event

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                key: MASK if isinstance(key, str) and _names_a_secret(key) and inner else self._value(inner)
                for key, inner in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self._value(inner) for inner in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return self.text(str(value)) if self._redactors else value


def _names_a_secret(key: str) -> bool:
    name = key.lower().replace("-", "_")
    return any(word in name for word in _SECRET_NAMES) and not name.endswith(_HARMLESS_ENDINGS)


def configure(
    level: str = "info",
    format: str = "auto",
    *,
    stream: TextIO | None = None,
    redaction: Redaction | None = None,
    colors: bool | None = None,
) -> Redaction:
    """Set up logging of this process, ours and that of libraries; may be called again.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        format: `console`, `json`, or `auto`: console when the stream is a terminal.
        stream: where lines go; None for stderr.
        redaction: a hook that is there already; None for a new one.
        colors: whether lines for people have them; None where the stream is a terminal.

    Returns:
        The hook, for whoever holds secrets to add a redactor to.
    """
    target = stream or sys.stderr
    hook = redaction or Redaction()
    number = logging.getLevelNamesMapping()[level.upper()]
    console = format == "console" or (format == "auto" and target.isatty())
    styled = console and (target.isatty() if colors is None else colors)
    shared = _shared_processors(hook, console=console)
    structlog.configure(
        processors=[*shared, *_renderers(console, colors=styled)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )
    _configure_libraries(target, number, shared, _renderers(console, colors=styled))
    return hook


def _shared_processors(hook: Redaction, *, console: bool) -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
        structlog.processors.StackInfoRenderer(),
        # Before the hook, so that what a traceback quotes is masked too.
        structlog.processors.format_exc_info,
        hook,
    ]


def _renderers(console: bool, *, colors: bool) -> list[Processor]:
    if console:
        return [structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=32)]
    return [structlog.processors.EventRenamer("message"), structlog.processors.JSONRenderer(default=str)]


def _configure_libraries(
    target: TextIO, level: int, shared: list[Processor], renderers: list[Processor]
) -> None:
    """Standard-library loggers in the same form; info of chatty ones is left out."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder(), *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in _QUIETER:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
