"""Ports for servers that must be told theirs before they listen, and that come back on the same one."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Final

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUALLY_FIRST: Final = 32_768


def _first_of_the_kernels(settings: Path = _RANGE) -> int:
    """The lowest port the kernel gives out by itself."""
    try:
        return int(settings.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUALLY_FIRST


_LOWEST: Final = 10_240
_HIGHEST: Final = min(_USUALLY_FIRST, _first_of_the_kernels()) - 1
_TRIES: Final = 50


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now.

    Not of those the kernel gives to connections and to whoever asks for any port: between this answer
    and the server's bind, or while the server is away to start again, one of those could be taken.

    Raises:
        OSError: the host is not this machine's, or it has no free port at all.
    """
    for _ in range(_TRIES if _HIGHEST > _LOWEST else 0):
        port = random.randint(_LOWEST, _HIGHEST)  # noqa: S311 (spreads, guards nothing)
        if is_free(port, host):
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now; connections of an earlier one that linger do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
