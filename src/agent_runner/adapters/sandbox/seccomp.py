"""The system calls a sandboxed command may not make, as a BPF program.

Kills foreign architectures (whose numbers mean other calls); refuses what changes mounts,
namespaces, the kernel or other processes; refuses socket families other than UNIX, INET, INET6 and
NETLINK. AF_VSOCK above all: no namespace covers it, and on a virtual machine it reaches the hypervisor.
"""

from __future__ import annotations

import errno
import json
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass

_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7
_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_FAMILIES = (1, 2, 10, 16)

_COMMON = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "clone3": 435, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
    "quotactl_fd": 443, "open_tree_attr": 467,
}  # fmt: skip

_DENIED_X86_64 = {
    "ptrace": 101, "syslog": 103, "personality": 135, "modify_ldt": 154, "pivot_root": 155,
    "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
    "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171,
    "iopl": 172, "ioperm": 173, "init_module": 175, "delete_module": 176, "quotactl": 179,
    "lookup_dcookie": 212, "clock_settime": 227, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "fanotify_init": 300,
    "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "kexec_file_load": 320, "bpf": 321,
    "userfaultfd": 323,
}  # fmt: skip

_DENIED_AARCH64 = {
    "lookup_dcookie": 18, "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "quotactl": 60,
    "acct": 89, "personality": 92, "unshare": 97, "kexec_load": 104, "init_module": 105,
    "delete_module": 106, "clock_settime": 112, "syslog": 116, "ptrace": 117, "reboot": 142,
    "sethostname": 161, "setdomainname": 162, "settimeofday": 170, "adjtimex": 171, "add_key": 217,
    "request_key": 218, "keyctl": 219, "swapon": 224, "swapoff": 225, "perf_event_open": 241,
    "fanotify_init": 262, "open_by_handle_at": 265, "clock_adjtime": 266, "setns": 268,
    "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "finit_module": 273, "bpf": 280,
    "userfaultfd": 282, "kexec_file_load": 294,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    denied: Mapping[str, int]
    clone: int
    socket: int
    ioctl: int


_ARCHITECTURES = {
    "x86_64": _Architecture(_X86_64, _DENIED_X86_64 | _COMMON, clone=56, socket=41, ioctl=16),
    "aarch64": _Architecture(_AARCH64, _DENIED_AARCH64 | _COMMON, clone=220, socket=198, ioctl=29),
}


def seccomp_filter(machine: str = "") -> bytes:
    """The program for this machine (`platform.machine()`), in the form `bwrap --seccomp` reads.

    Raises:
        LookupError: no table for this architecture.
    """
    program = _Program()
    architecture = _ARCHITECTURES[machine or platform.machine()]
    program.load(4)
    program.jump(_JEQ, architecture.audit, 1, 0)
    program.answer(_KILL)
    program.load(0)
    if architecture.audit == _X86_64:
        program.jump(_JGE, _X32_BIT, 0, 1)
        program.refuse(errno.ENOSYS)
    for name, number in architecture.denied.items():
        program.jump(_JEQ, number, 0, 1)
        # C libraries fall back from clone3 to clone, whose flags a filter can see.
        program.refuse(errno.ENOSYS if name == "clone3" else errno.EPERM)
    _limit_sockets(program, architecture.socket)
    _limit_clone(program, architecture.clone)
    _limit_ioctl(program, architecture.ioctl)
    program.answer(_ALLOW)
    return program.assembled()


def seccomp_profile() -> str:
    """The same rules as JSON for container engines, whose own default lets AF_VSOCK and io_uring pass."""
    names = sorted(
        set().union(*(architecture.denied for architecture in _ARCHITECTURES.values())) - {"clone3"}
    )
    refuse: dict[str, object] = {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    rules: list[dict[str, object]] = [
        {"names": names, **refuse},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
    ]
    for bit in range(32):
        if _NEW_NAMESPACES >> bit & 1:
            rules.append(
                {"names": ["clone"], "args": [_argument(0, "MASKED_EQ", 1 << bit, 1 << bit)], **refuse}
            )
    for family in range(max(_FAMILIES)):
        if family not in _FAMILIES:
            rules.append({"names": ["socket"], "args": [_argument(0, "EQ", family)], **refuse})
    rules.append({"names": ["socket"], "args": [_argument(0, "GT", max(_FAMILIES))], **refuse})
    for request in (_TIOCSTI, _TIOCLINUX):
        rules.append({"names": ["ioctl"], "args": [_argument(1, "EQ", request)], **refuse})
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": rules,
        }
    )


def _argument(index: int, test: str, value: int, second: int = 0) -> dict[str, object]:
    return {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{test}"}


class _Program:
    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int]] = []

    def load(self, offset: int) -> None:
        """Load from `struct seccomp_data`: 0 number, 4 architecture, 16 + 8 n argument n."""
        self._instructions.append((_LD, 0, 0, offset))

    def jump(self, test: int, value: int, when_true: int, when_false: int) -> None:
        self._instructions.append((test, when_true, when_false, value))

    def answer(self, action: int) -> None:
        self._instructions.append((_RET, 0, 0, action))

    def refuse(self, error: int) -> None:
        self.answer(_ERRNO | error)

    def assembled(self) -> bytes:
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in self._instructions)


def _limit_sockets(program: _Program, number: int) -> None:
    count = len(_FAMILIES)
    program.jump(_JEQ, number, 0, count + 3)
    program.load(16)
    for index, family in enumerate(_FAMILIES):
        program.jump(_JEQ, family, count - index, 0)
    program.refuse(errno.EAFNOSUPPORT)
    program.load(0)


def _limit_clone(program: _Program, number: int) -> None:
    program.jump(_JEQ, number, 0, 4)
    program.load(16)
    program.jump(_JSET, _NEW_NAMESPACES, 0, 1)
    program.refuse(errno.EPERM)
    program.load(0)


def _limit_ioctl(program: _Program, number: int) -> None:
    program.jump(_JEQ, number, 0, 5)
    program.load(24)
    program.jump(_JEQ, _TIOCSTI, 1, 0)
    program.jump(_JEQ, _TIOCLINUX, 0, 1)
    program.refuse(errno.EPERM)
    program.load(0)
