"""Ports for servers that come back on the same one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agent_runner.adapters.machine import ports
from agent_runner.adapters.machine.ports import free_port, is_free


def test_the_port_is_none_of_those_the_kernel_gives_out_by_itself() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first <= ports._LOWEST:
        pytest.skip("the kernel of this machine gives out all ports")
    found = {free_port() for _ in range(20)}
    assert all(ports._LOWEST <= port < first for port in found)
    assert len(found) > 1


def test_a_server_can_listen_there() -> None:
    port = free_port()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", port))
        listening.listen()
        assert not is_free(port)


def test_where_the_kernel_gives_out_all_ports_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_HIGHEST", 1023)
    assert free_port() >= 1024


def test_the_kernels_range_is_read_where_there_is_one(tmp_path: Path) -> None:
    wide = tmp_path / "range"
    wide.write_text("1024\t65535\n")
    assert ports._first_of_the_kernels(wide) == 1024
    assert ports._first_of_the_kernels(tmp_path / "missing") == 32_768


def test_a_host_of_another_machine_has_none() -> None:
    with pytest.raises(OSError, match="assign"):
        free_port("192.0.2.1")
