"""The system call filter, run by a small interpreter: on any machine, for each architecture."""

from __future__ import annotations

import errno
import json
import struct

import pytest

from agent_runner.adapters.sandbox.seccomp import seccomp_filter, seccomp_profile

X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
ALLOW, KILL = "allow", "kill"


def judged(machine: str, architecture: int, number: int, *arguments: int) -> object:
    """What the kernel would answer: ALLOW, KILL or an errno."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, *(0,) * (6 - len(arguments))))
    filter_ = seccomp_filter(machine)
    program = [struct.unpack_from("<HBBI", filter_, at) for at in range(0, len(filter_), 8)]
    accumulator, at = 0, 0
    while True:
        code, when_true, when_false, value = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            if value == 0x7FFF0000:
                return ALLOW
            return KILL if value == 0x80000000 else value & 0xFFFF
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: accumulator & value}[code]
            at += when_true if holds else when_false


@pytest.mark.parametrize(
    ("machine", "architecture", "numbers"),
    [
        ("x86_64", X86_64, {"socket": 41, "clone": 56, "ioctl": 16, "read": 0, "mount": 165, "ptrace": 101}),
        (
            "aarch64",
            AARCH64,
            {"socket": 198, "clone": 220, "ioctl": 29, "read": 63, "mount": 40, "ptrace": 117},
        ),
    ],
)
def test_each_rule(machine: str, architecture: int, numbers: dict[str, int]) -> None:
    def call(name: str, *arguments: int) -> object:
        return judged(machine, architecture, numbers[name], *arguments)

    assert call("read") == ALLOW
    assert call("mount") == errno.EPERM
    assert call("ptrace") == errno.EPERM
    assert judged(machine, architecture, 435) == errno.ENOSYS  # clone3: libraries go on to clone
    assert [call("socket", family) for family in (1, 2, 10, 16)] == [ALLOW] * 4
    assert [call("socket", family) for family in (0, 3, 17, 38, 40)] == [errno.EAFNOSUPPORT] * 5
    assert call("clone", 0x00003D0F00 & 0xFFFFFFFF) == ALLOW  # a thread
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert call("clone", namespace | 17) == errno.EPERM
    assert call("ioctl", 1, 0x5401) == ALLOW
    assert call("ioctl", 1, 0x5412) == errno.EPERM
    assert call("ioctl", 1, 0x541C) == errno.EPERM
    assert judged(machine, I386, numbers["read"]) == KILL


def test_the_x32_numbers_are_not_there() -> None:
    assert judged("x86_64", X86_64, 0x40000000 | 165) == errno.ENOSYS


def test_a_machine_without_a_table_is_told() -> None:
    with pytest.raises(LookupError, match="riscv64"):
        seccomp_filter("riscv64")


def test_the_profile_for_engines_refuses_the_same() -> None:
    profile = json.loads(seccomp_profile())
    names = {name for rule in profile["syscalls"] for name in rule["names"]}
    sockets = [rule["args"][0] for rule in profile["syscalls"] if rule["names"] == ["socket"]]

    assert {"mount", "bpf", "keyctl", "io_uring_setup", "unshare", "clone3", "ptrace"} <= names
    assert {argument["value"] for argument in sockets if argument["op"] == "SCMP_CMP_EQ"} == set(
        range(16)
    ) - {
        1,
        2,
        10,
    }
    assert [argument["value"] for argument in sockets if argument["op"] == "SCMP_CMP_GT"] == [16]
