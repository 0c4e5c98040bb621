"""The keys this process was given, which no log line may show."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from agent_runner.settings import Settings

_SHORTEST = 8
_ENDINGS = ("_API_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_ENCRYPTION_KEYS")


def provider_keys(settings: Settings, environ: Mapping[str, str] | None = None) -> Sequence[str]:
    """Values of the environment that are keys by their names, and our own, longest first."""
    known = os.environ if environ is None else environ
    keys = {value for name, value in known.items() if name.upper().endswith(_ENDINGS)}
    keys |= {key for key in (settings.key, settings.runner_key) if key}
    for url in (settings.database, settings.announcements):
        keys |= _passwords(url or "")
    return sorted((key for key in keys if len(key) >= _SHORTEST), key=len, reverse=True)


def _passwords(url: str) -> set[str]:
    """The password in a URL, as it stands there and as it is meant."""
    password = url.partition("://")[2].rpartition("@")[0].partition(":")[2]
    return {password, unquote(password)} - {""}


def encryption_keys(settings: Settings) -> str | None:
    """The keys to stored secrets as the settings have them; None when they are to come from the file."""
    return settings.encryption_keys or None
