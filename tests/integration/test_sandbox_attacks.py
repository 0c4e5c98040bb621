"""What an agent may try from inside, a test per row of `docs/sandbox/threat-table.md`.

Run against each kind on which the table says blocked. A test here that fails is a hole.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from contract.sandbox_kinds import PROVIDERS
from contract.test_sandbox import marked, running, until

from agent_runner.adapters.sandbox.local import GroupLimits, Limits, LocalProvider
from agent_runner.adapters.sandbox.local.cgroups import Groups
from agent_runner.ports.sandboxes import FileProblem, Sandbox, SandboxProvider, SandboxSpec

ISOLATED = [kind for kind in PROVIDERS if kind in ("local", "docker")]

TRY_CALLS = """
import ctypes, errno, os, platform
libc = ctypes.CDLL(None, use_errno=True)
X = platform.machine() == "x86_64"
CALLS = {
    "unshare(user)": (272 if X else 97, 0x10000000),
    "unshare(mount)": (272 if X else 97, 0x00020000),
    "setns": (308 if X else 268, 0, 0),
    "mount": (165 if X else 40, b"none", b"/tmp", b"tmpfs", 0, 0),
    "open_tree": (428, -100, b"/", 1),
    "fsopen": (430, b"tmpfs", 0),
    "pivot_root": (155 if X else 41, b"/tmp", b"/tmp"),
    "chroot": (161 if X else 51, b"/tmp"),
    "ptrace": (101 if X else 117, 16, 1, 0, 0),
    "bpf": (321 if X else 280, 0, 0, 0),
    "perf_event_open": (298 if X else 241, 0, 0, -1, -1, 0),
    "add_key": (248 if X else 217, b"user", b"n", b"v", 1, -3),
    "keyctl": (250 if X else 219, 0, -3, 1),
    "io_uring_setup": (425, 8, 0),
    "open_by_handle_at": (304 if X else 265, -100, 0, 0),
    "process_vm_readv": (310 if X else 270, 1, 0, 0, 0, 0, 0),
    "userfaultfd": (323 if X else 282, 1),
    "init_module": (175 if X else 105, 0, 0, b""),
    "kexec_load": (246 if X else 104, 0, 0, 0, 0),
    "swapon": (167 if X else 224, b"/tmp", 0),
    "reboot": (169 if X else 142, 0, 0, 0, 0),
    "sethostname": (170 if X else 161, b"x", 1),
    "settimeofday": (164 if X else 170, 0, 0),
    "personality": (135 if X else 92, 0x0400000),
}
for name, call in CALLS.items():
    result = libc.syscall(*call)
    error = errno.errorcode.get(ctypes.get_errno(), "?") if result < 0 else "WORKED"
    print(name, error)
"""


@pytest.fixture(params=ISOLATED)
async def provider(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SandboxProvider]:
    async with PROVIDERS[request.param](tmp_path) as provider:
        yield provider


@pytest.fixture
async def sandbox(provider: SandboxProvider) -> AsyncIterator[Sandbox]:
    name = f"ses-{secrets.token_hex(8)}"
    yield await provider.ensure(SandboxSpec(name))
    await provider.delete(name)


async def python(sandbox: Sandbox, code: str, seconds: float = 300) -> str:
    await sandbox.put([("/tmp/attack.py", textwrap.dedent(code).encode())])
    result = await sandbox.exec("python3 /tmp/attack.py 2>&1", timeout=timedelta(seconds=seconds))
    return result.stdout.decode()


class TestReading:
    async def test_files_of_the_host(self, sandbox: Sandbox, tmp_path: Path) -> None:
        treasure = tmp_path / "treasure"
        treasure.write_text("hosts-own-treasure")
        found = await sandbox.exec(
            f"cat {treasure} /proc/1/root{treasure} /proc/self/root{treasure} /proc/1/cwd/{treasure}; "
            "cat /etc/shadow /etc/sudoers /root/.bashrc; ls /root /home /var/lib"
        )

        assert b"hosts-own-treasure" not in found.stdout
        assert b"root:*" not in found.stdout

    async def test_files_of_another_session(self, provider: SandboxProvider, sandbox: Sandbox) -> None:
        other = await provider.ensure(SandboxSpec("ses-other"))
        try:
            await other.put([("treasure", b"others-own-treasure"), ("/tmp/treasure", b"others-own-treasure")])
            found = await sandbox.exec(
                "find / -xdev -name treasure 2>/dev/null; cat /proc/*/root/workspace/treasure; "
                "cat /workspace/../*/workspace/treasure; awk '{print $4, $5}' /proc/self/mountinfo > m; "
                "while read source rest; do cat $source/../../*/workspace/treasure; done < m"
            )
            linked = await sandbox.exec("ln -s ../../ses-other/workspace/treasure link; echo done")
            read = await sandbox.get(["link", "../ses-other/workspace/treasure"])

            assert b"others-own" not in found.stdout
            assert linked.code == 0
            assert [content for content, _ in read] == [None, None]
        finally:
            await provider.delete("ses-other")

    async def test_the_workers_keys(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-attack-me")
        found = await sandbox.exec(
            "cat /proc/1/environ /proc/*/environ /proc/*/task/*/environ 2>/dev/null | tr '\\0' '\\n'; env; "
            "cat /proc/1/cmdline | tr '\\0' ' '"
        )

        assert b"sk-attack-me" not in found.stdout
        assert b"API_KEY" not in found.stdout

    async def test_other_processes(self, sandbox: Sandbox) -> None:
        listed = await sandbox.exec("cd /proc; echo [0-9]*")
        result = await sandbox.exec("kill -9 -1; echo alive")

        assert f"{os.getpid()}".encode() not in listed.stdout.split()
        assert len(listed.stdout.split()) < 12
        assert result.code == 137 or result.stdout.endswith(b"alive\n")

    async def test_links_planted_for_the_worker(self, sandbox: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "outside").write_text("outside-content")
        (tmp_path / "outside").chmod(0o644)
        await sandbox.exec(
            f"ln -s {tmp_path}/outside a; ln -s /etc/passwd b; ln -s / c; ln -s /proc/self/root d; "
            f"ln -s ../../../../../../../../..{tmp_path}/outside e; ln -s /proc/1/environ f; ln -s g g; "
            "mkfifo h; ln -s /dev/zero i; mkdir j; ln -s .. j/k"
        )
        paths = ["a", "e", f"c{tmp_path}/outside", f"d{tmp_path}/outside", "f", "g", "h", "i"]
        paths += [f"j/k/../..{tmp_path}/outside", f"/proc/self/root{tmp_path}/outside", "/dev/mem"]

        found = await asyncio.wait_for(sandbox.get(paths), 120)
        listed = await sandbox.get(["b", "c/etc/hostname"])

        assert [content for content, _ in found] == [None] * len(paths)
        # Whatever is behind a link is the sandbox's own, never the host's.
        assert all(content is None or b"root:x:0:0:root:/root" not in content for content, _ in listed)

    async def test_links_swapped_while_the_worker_writes(self, sandbox: Sandbox, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.mkdir()
        target.chmod(0o777)
        swapping = asyncio.ensure_future(
            sandbox.exec(
                f"mkdir real; while :; do ln -sfn {target} d; rm -f d; mkdir -p d 2>/dev/null; rmdir d; "
                "ln -sfn ../../.. d; rm -f d; done 2>/dev/null",
                timeout=timedelta(seconds=60),
            )
        )
        try:
            problems = [
                problem
                for batch in range(15)
                for problem in await sandbox.put([(f"d/x{batch}-{n}", b"x") for n in range(10)])
            ]
        finally:
            swapping.cancel()
            await asyncio.wait([swapping])

        assert list(target.iterdir()) == []
        assert len(problems) == 150


class TestReaching:
    async def test_ports_of_the_host(self, sandbox: Sandbox) -> None:
        reached = asyncio.Event()
        server = await asyncio.start_server(lambda *_: reached.set(), "0.0.0.0", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            answer = await python(
                sandbox,
                f"""
                import socket
                for host in ("127.0.0.1", "0.0.0.0", "localhost", "169.254.169.254", "10.0.0.1", "1.1.1.1"):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        s = socket.socket(socket.AF_INET, kind); s.settimeout(2)
                        try:
                            s.connect((host, {port})); s.send(b"x")
                            if kind == socket.SOCK_STREAM: print("REACHED", host)
                        except OSError as e:
                            print(host, e.errno)
                """,
            )

        assert "REACHED" not in answer
        assert "Traceback" not in answer
        assert not reached.is_set()

    async def test_unix_sockets_of_the_host(self, sandbox: Sandbox, tmp_path: Path) -> None:
        name = secrets.token_hex(8)
        with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
            abstract.bind(f"\0{name}")
            abstract.listen()
            named.bind(str(tmp_path / "s"))
            named.listen()
            (tmp_path / "s").chmod(0o777)
            answer = await python(
                sandbox,
                f"""
                import socket
                paths = ("\\0{name}", "{tmp_path}/s", "/var/run/docker.sock", "/run/docker.sock")
                for path in paths:
                    try:
                        socket.socket(socket.AF_UNIX).connect(path); print("REACHED", repr(path))
                    except OSError as e:
                        print(e)
                """,
            )

        assert "REACHED" not in answer
        assert "Traceback" not in answer

    async def test_the_hypervisor_and_raw_sockets(self, sandbox: Sandbox) -> None:
        answer = await python(
            sandbox,
            """
            import socket
            for name, family, kind in (("vsock", 40, 1), ("packet", 17, 3), ("alg", 38, 5), ("raw", 2, 3)):
                try:
                    socket.socket(family, kind); print(name, "OPENED")
                except OSError as e:
                    print(name, "refused", e.errno)
            """,
        )

        assert "OPENED" not in answer
        assert answer.count("refused") == 4


class TestAltering:
    async def test_settings_of_the_kernel(self, sandbox: Sandbox) -> None:
        before = core_pattern()
        result = await sandbox.exec(
            "for f in /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/sysrq-trigger "
            "/proc/sys/kernel/modprobe /proc/1/oom_score_adj /sys/kernel/uevent_helper; do "
            "{ : > $f; } 2>/dev/null && echo OPENED $f; done; "
            "{ echo '|/tmp/x' > /proc/sys/kernel/core_pattern; } 2>/dev/null && echo WROTE; true"
        )

        assert b"OPENED /proc/sys" not in result.stdout
        assert b"WROTE" not in result.stdout
        assert core_pattern() == before

    async def test_the_system(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec(
            "for f in /usr/x /bin/x /bin/skills/x /etc/x /etc/passwd /dev/x /lib/x /x /run/x; do "
            "{ echo x >> $f; } 2>/dev/null && echo WROTE $f; done; "
            "mknod n b 8 0 && echo MADE; mknod /tmp/n c 1 1 && echo MADE; "
            "mount -o remount,rw / && echo REMOUNTED; mount --bind /tmp /bin/skills && echo MOUNTED; true"
        )

        assert result.stdout == b""

    async def test_with_calls_to_the_kernel(self, sandbox: Sandbox) -> None:
        answer = await python(sandbox, TRY_CALLS)
        refused = {
            line.rsplit(" ", 1)[0] for line in answer.splitlines() if line.endswith((" EPERM", " ENOSYS"))
        }
        worked = {line.rsplit(" ", 1)[0] for line in answer.splitlines() if line.endswith(" WORKED")}

        assert "Traceback" not in answer
        assert worked <= allowed_calls(sandbox)
        if sandbox.id.startswith("local-"):
            assert len(refused) == len(answer.splitlines()), answer

    async def test_with_more_rights(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec(
            "grep -E 'CapEff|NoNewPrivs' /proc/self/status; sudo -n id; su -c id; "
            "cp /bin/bash b; chmod u+s b; ./b -p -c 'id -u'; chown 0:0 b && echo CHOWNED; true"
        )

        assert b"CapEff:\t0000000000000000" in result.stdout
        assert b"NoNewPrivs:\t1" in result.stdout
        assert b"\n0\n" not in result.stdout
        assert b"CHOWNED" not in result.stdout


class TestExhausting:
    async def test_a_fork_bomb_ends_with_its_command(self, sandbox: Sandbox) -> None:
        marker = marked()
        result = await sandbox.exec(
            f"b() {{ sleep {marker} & b & b & }}; b 2>/dev/null; sleep 5", timeout=timedelta(seconds=3)
        )

        assert result.code != 0 or not result.timed_out
        assert (await sandbox.exec("pkill -9 sleep; echo alive")).stdout.endswith(b"alive\n")
        if sandbox.id.startswith("local-"):
            assert await until(lambda: not running(marker))

    async def test_memory(self, sandbox: Sandbox) -> None:
        result = await sandbox.exec("python3 -c 'x = bytearray(8 << 30); print(len(x))'")

        assert result.code != 0
        assert b"8589934592" not in result.stdout

    async def test_a_flood_of_output(self, sandbox: Sandbox) -> None:
        seen = 0

        def count(text: str) -> None:
            nonlocal seen
            seen += len(text)

        result = await sandbox.exec(
            "head -c 1000000000 /dev/zero | tr '\\0' x; echo end",
            on_output=count,
            timeout=timedelta(minutes=8),
        )

        assert result.truncated
        assert result.stdout.endswith(b"end\n")
        assert len(result.stdout) < 1_100_000
        assert seen < 1_200_000

    async def test_processes_left_behind(self, sandbox: Sandbox) -> None:
        if not sandbox.id.startswith("local-"):
            pytest.skip("left until the sandbox stops, as the table says")
        marker = marked()
        await sandbox.exec(f"setsid nohup sleep {marker} >/dev/null 2>&1 & disown -a")

        assert await until(lambda: not running(marker))


def groups_named(name: str) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"*/agent-runner-*-{name}"))


def core_pattern() -> str:
    return Path("/proc/sys/kernel/core_pattern").read_text()


def allowed_calls(sandbox: Sandbox) -> set[str]:
    """Calls harmless without rights which the engines' own filters let through."""
    if sandbox.id.startswith("local-"):
        return set()
    return {"io_uring_setup", "add_key", "keyctl", "ptrace", "personality", "userfaultfd"}


class TestLocalOnly:
    @pytest.fixture
    async def small(self, tmp_path: Path) -> AsyncIterator[Sandbox]:
        limits = Limits(cpu_seconds=1, file_size=1 << 20, processes=20, open_files=32)
        provider = LocalProvider(tmp_path / "small", limits=limits)
        yield await provider.ensure(SandboxSpec("ses-small"))
        await provider.delete("ses-small")
        await provider.aclose()

    async def test_limits_hold(self, small: Sandbox) -> None:
        burnt = await small.exec("while :; do :; done", timeout=timedelta(minutes=5))
        written = await small.exec("head -c 10M /dev/zero > big; stat -c %s big")
        forked = await small.exec("for i in $(seq 40); do sleep 6 & done; true", timeout=timedelta(minutes=2))
        shared = await small.exec("head -c 100M /dev/zero > /dev/shm/x; stat -c %s /dev/shm/x")

        assert not burnt.timed_out
        assert burnt.code in (137, 152)
        assert written.stdout.strip() == str(1 << 20).encode()
        assert b"Resource temporarily unavailable" in forked.stderr
        assert int(shared.stdout or b"0") <= 64 << 20

    async def test_limits_of_a_session_hold_over_all_its_processes(self, tmp_path: Path) -> None:
        if not Groups(tmp_path, GroupLimits()).available:
            pytest.skip("no control groups of this machine can be used by this process")
        provider = LocalProvider(tmp_path, group_limits=GroupLimits(memory=100 << 20, processes=30))
        name = f"ses-{secrets.token_hex(8)}"
        sandbox = await provider.ensure(SandboxSpec(name))
        # Each holds what it got until it is killed, so whichever of the two it is, one must fall.
        one = "python3 -c 'x = b\"x\" * (60 << 20); import time; time.sleep(600)'"
        together = await sandbox.exec(
            f"{one} & {one} & wait -n; echo $?; kill %1 %2", timeout=timedelta(minutes=5)
        )
        forked = await sandbox.exec("for i in $(seq 60); do sleep 6 & done; true")
        await provider.delete(name)
        await provider.sweep()
        await provider.aclose()
        left = groups_named(name)

        assert not together.timed_out
        assert together.stdout.strip() == b"137"
        assert b"Resource temporarily unavailable" in forked.stderr
        assert left == []

    async def test_a_session_gets_its_share_of_the_processor_and_no_more(self, tmp_path: Path) -> None:
        if not Groups(tmp_path, GroupLimits()).available:
            pytest.skip("no control groups of this machine can be used by this process")
        provider = LocalProvider(tmp_path, group_limits=GroupLimits(cpus=0.2))
        name = f"ses-{secrets.token_hex(8)}"
        sandbox = await provider.ensure(SandboxSpec(name))
        burnt = await sandbox.exec("timeout 1 bash -c 'while :; do :; done'; times | tail -n1")
        await provider.delete(name)
        await provider.aclose()

        user = re.search(rb"m([\d.]+)s", burnt.stdout)
        assert user is not None
        assert float(user.group(1)) < 0.6

    async def test_the_launcher_takes_nothing_from_the_sessions_variables(self, tmp_path: Path) -> None:
        provider = LocalProvider(tmp_path / "sandboxes")
        library = tmp_path / "evil.so"
        library.write_bytes(b"not a library")
        environment = {
            "LD_PRELOAD": str(library),
            "BASH_ENV": "/workspace/evil",
            "PATH": "/workspace:/usr/bin",
        }
        try:
            sandbox = await provider.ensure(SandboxSpec("ses-env", environment))
            await sandbox.put([("evil", b"echo EVIL >&2"), ("setpriv", b"#!/bin/sh\ntouch /tmp/evil")])
            result = await sandbox.exec("echo $LD_PRELOAD; ulimit -u; ls /tmp")
        finally:
            await provider.delete("ses-env")
            await provider.aclose()

        # Inside they count, where they concern the session alone; limits were set before.
        assert result.stdout.split() == [str(library).encode(), b"256"]

    async def test_a_killed_worker_leaves_no_process(self, tmp_path: Path) -> None:
        marker = marked()
        code = f"""
        import asyncio
        from pathlib import Path
        from agent_runner.adapters.sandbox.local import LocalProvider
        from agent_runner.ports.sandboxes import SandboxSpec

        async def main():
            provider = LocalProvider(Path({str(tmp_path / "sandboxes")!r}))
            sandbox = await provider.ensure(SandboxSpec("ses-killed"))
            await sandbox.exec("setsid sleep {marker} & sleep {marker}")

        asyncio.run(main())
        """
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            textwrap.dedent(code),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            assert await until(lambda: running(marker))
        finally:
            worker.send_signal(signal.SIGKILL)
            await worker.wait()

        assert await until(lambda: not running(marker))
        provider = LocalProvider(tmp_path / "sandboxes")
        await provider.delete("ses-killed")
        await provider.sweep()
        assert groups_named("ses-killed") == []
        await provider.aclose()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives sessions users of their own")
    async def test_sessions_run_as_users_of_their_own(self, tmp_path: Path) -> None:
        provider = LocalProvider(tmp_path / "sandboxes")
        owners = set()
        for name in ("ses-a", "ses-b"):
            await provider.ensure(SandboxSpec(name))
            owners.add((tmp_path / "sandboxes/sessions" / name / "workspace").stat().st_uid)
        await provider.delete("ses-a")
        await provider.delete("ses-b")
        await provider.aclose()

        assert len(owners) == 2
        assert 0 not in owners
        assert list((tmp_path / "sandboxes/uids").iterdir()) == []

    async def test_a_planted_file_cannot_be_had_by_its_problem(self, tmp_path: Path) -> None:
        provider = LocalProvider(tmp_path / "sandboxes")
        sandbox = await provider.ensure(SandboxSpec("ses-1"))
        await sandbox.exec("ln -s ../skills up; ln -s /workspace/../uids uids")

        assert await sandbox.put([("up/evil", b"")]) == [FileProblem.DENIED]
        assert list((tmp_path / "sandboxes/sessions/ses-1/skills").iterdir()) == []
        await provider.delete("ses-1")
        await provider.aclose()
