"""A container engine of the tests' own: Podman or Docker from the system's packages, started once a run.

Nothing is fetched: the image is the root skeleton of local sandboxes, with the host's `/usr` shown in it;
or, for whom cannot show it directories of the host, with the host's programs copied into it.
`AGENT_RUNNER_TEST_ENGINE=docker` prefers Docker where both are installed.
"""

from __future__ import annotations

import atexit
import functools
import http.client
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent_runner.adapters.sandbox.local.skeleton import build_skeleton

IMAGE = "agent-runner-test:latest"
WHOLE_IMAGE = "agent-runner-test-whole:latest"
PROGRAMS = (
    "base64", "bash", "cat", "chmod", "chown", "cp", "dirname", "env", "find", "grep", "head", "id", "kill",
    "ln", "ls", "mkdir", "mktemp", "mv", "python3", "rm", "sed", "sh", "sleep", "sort", "stat", "tail", "tar",
    "timeout", "touch", "true", "wc",
)  # fmt: skip
"""What is in `WHOLE_IMAGE`, with Python's library but for these parts."""
LEFT_OUT = {
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tkinter",
    "turtledemo",
}

PODMAN_CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
netns = "none"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
exit_command_delay = 5
"""

DOCKER_OPTIONS = (
    "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
    "--default-ulimit=nofile=4096:4096", "--default-ulimit=nproc=4096:4096",
)  # fmt: skip


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=300)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(300)
        self.sock.connect(str(self._path))


@functools.cache
def engine_url() -> str:
    """Address of the engine, started if it is not yet; skips the test where none can be."""
    program = _program()
    # Short: the path of a socket has 108 characters at most.
    directory = Path(tempfile.mkdtemp(prefix="ar-engine-"))
    log = (directory / "log").open("wb")
    engine = subprocess.Popen(
        # A test run that is killed takes its engine along.
        ["setpriv", "--pdeathsig=TERM", "--", *_command(program, directory)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=directory,  # where conmon leaves a file when a container runs out of memory
        env={**os.environ, "CONTAINERS_CONF": str(directory / "containers.conf")},
        start_new_session=True,
    )
    log.close()
    atexit.register(_stop, engine, directory)
    path = directory / "socket"
    deadline = time.monotonic() + 300
    while not _answers(path):
        if engine.poll() is not None or time.monotonic() > deadline:
            pytest.skip(f"{program} does not start here: {(directory / 'log').read_text()[-500:]}")
        time.sleep(0.1)
    _import_image(path, directory)
    return f"unix://{path}"


def _program() -> str:
    if os.geteuid() != 0:
        pytest.skip("container tests start an engine, for which they must be root")
    wanted = ["podman", "dockerd"]
    if os.environ.get("AGENT_RUNNER_TEST_ENGINE") == "docker":
        wanted.reverse()
    for name in wanted:
        if shutil.which(name) and shutil.which("runc"):
            return name
    pytest.skip("no container engine on this machine: apt-get install podman runc")


def _command(program: str, directory: Path) -> list[str]:
    socket_url = f"unix://{directory}/socket"
    if program == "podman":
        (directory / "containers.conf").write_text(PODMAN_CONFIGURATION)
        places = [f"--root={directory}/graph", f"--runroot={directory}/run", f"--tmpdir={directory}/tmp"]
        return ["podman", *places, "system", "service", "--time=0", socket_url]
    places = [f"--data-root={directory}/data", f"--exec-root={directory}/exec", f"--pidfile={directory}/pid"]
    return ["dockerd", *places, "--host", socket_url, *DOCKER_OPTIONS]


def _answers(path: Path) -> bool:
    try:
        return _request(path, "GET", "/_ping")[0] == 200
    except OSError:
        return False


def _request(path: Path, method: str, url: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = UnixConnection(path)
    try:
        connection.request(method, url, body, {"Content-Type": "application/x-tar"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@functools.cache
def whole_image() -> str:
    """An image that needs nothing of the host, brought to the engine; skips the test where none can be."""
    socket_path = Path(engine_url().removeprefix("unix://"))
    _import_image(socket_path, socket_path.parent, WHOLE_IMAGE, sorted(_programs()))
    return WHOLE_IMAGE


def _programs() -> set[str]:
    """Files of the host: `PROGRAMS`, Python's library, and the libraries they load."""
    programs = [found for name in PROGRAMS if (found := shutil.which(name, path="/usr/bin:/bin"))]
    ask = [*_python(), "import sysconfig; print(sysconfig.get_path('stdlib'))"]
    library = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    modules = [
        str(path)
        for path in library.rglob("*")
        if path.is_file() and path.suffix != ".a" and not LEFT_OUT & set(path.relative_to(library).parts)
    ]
    extensions = [path for path in modules if path.endswith(".so")]
    linked = subprocess.run(["ldd", *programs, *extensions], check=False, capture_output=True, text=True)
    found: set[str] = set(modules)
    for path in [*programs, *re.findall(r"(/\S+\.so\S*) \(0x", linked.stdout)]:
        # Both a link and what it leads to, below the directories' real names.
        found |= {f"{Path(path).parent.resolve()}/{Path(path).name}", str(Path(path).resolve())}
    return found


def _python() -> list[str]:
    return [shutil.which("python3", path="/usr/bin:/bin") or "python3", "-I", "-S", "-c"]


def _import_image(path: Path, directory: Path, image: str = IMAGE, files: Sequence[str] = ()) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(build_skeleton(directory).path, arcname=".")
        for file in files:
            archive.add(file, arcname=file.lstrip("/"))
    name, tag = image.split(":")
    status, answer = _request(
        path, "POST", f"/v1.40/images/create?fromSrc=-&repo={name}&tag={tag}", buffer.getvalue()
    )
    assert status == 200, answer


def _stop(engine: subprocess.Popen[bytes], directory: Path) -> None:
    engine.send_signal(signal.SIGTERM)
    try:
        engine.wait(20)
    except subprocess.TimeoutExpired:
        engine.kill()
        engine.wait()
    # Its helpers end a moment after it, and until then make files again.
    for _ in range(10):
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in sorted((place for place in mounts if place.startswith(f"{directory}/")), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.5)
