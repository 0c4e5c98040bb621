"""A server for tests which speaks Daytona's API as SDK 0.226 calls it, and really runs the commands.

Each sandbox is a bubblewrap tree of its own: one long-lived process, commands entering its namespaces.
`faults` answers requests instead of the server, to see what becomes of our side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, WSMsgType, web

from agent_runner.adapters.sandbox.local.bubblewrap import find_bubblewrap
from agent_runner.adapters.sandbox.local.skeleton import Skeleton, build_skeleton

KEY = "test-key"
Fault = Callable[[web.Request], web.StreamResponse | float | None]


@dataclass
class Command:
    id: str
    process: asyncio.subprocess.Process
    log: list[bytes] = field(default_factory=list)
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    exit_code: int | None = None


@dataclass
class Remote:
    """One sandbox: what the API shows of it, its directory and its processes."""

    data: dict[str, Any]
    directory: Path
    main: asyncio.subprocess.Process | None = None
    inner_pid: int = 0
    sessions: dict[str, dict[str, Command]] = field(default_factory=dict)


class DaytonaServer:
    """`async with DaytonaServer(root) as server:` then use `server.api_url` and `KEY`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sandboxes: dict[str, Remote] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.created = 0
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.api_url = ""

    async def __aenter__(self) -> DaytonaServer:
        self._root.mkdir(parents=True, exist_ok=True)
        self._skeleton: Skeleton = build_skeleton(self._root)
        program = find_bubblewrap(self._root)
        assert program is not None
        self._program = program
        application = web.Application(middlewares=[self._admit], client_max_size=1 << 30)
        self._add_routes(application.router)
        self._runner = web.AppRunner(application, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.api_url = f"http://127.0.0.1:{port}/api"
        return self

    async def __aexit__(self, *error: object) -> None:
        for remote in list(self._sandboxes.values()):
            await self._kill(remote)
        # Killed commands' pipes run dry first; what does not end then is cut off.
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.cleanup()

    @property
    def count(self) -> int:
        """How many sandboxes there are."""
        return len(self._sandboxes)

    def lose(self, name: str) -> None:
        """Make a sandbox vanish as if somebody else had deleted it."""
        del self._sandboxes[self._by_name(name).data["id"]]

    async def put_to_sleep(self, name: str) -> None:
        """Stop a sandbox as Daytona does after a time without use."""
        await self._kill(self._by_name(name))

    def _add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/api/sandbox", self._create)
        router.add_get("/api/sandbox", self._list)
        router.add_get("/api/sandbox/{id}", self._get)
        router.add_delete("/api/sandbox/{id}", self._delete)
        router.add_post("/api/sandbox/{id}/start", self._start)
        router.add_post("/api/sandbox/{id}/stop", self._stop)
        router.add_post("/api/sandbox/{id}/last-activity", self._activity)
        box = "/toolbox/{id}"
        router.add_post(f"{box}/process/execute", self._execute)
        router.add_post(f"{box}/process/session", self._open_session)
        router.add_delete(f"{box}/process/session/{{sid}}", self._close_session)
        router.add_post(f"{box}/process/session/{{sid}}/exec", self._session_execute)
        router.add_get(f"{box}/process/session/{{sid}}/command/{{cid}}", self._session_command)
        router.add_get(f"{box}/process/session/{{sid}}/command/{{cid}}/logs", self._logs)
        router.add_post(f"{box}/files/bulk-upload", self._upload)
        router.add_post(f"{box}/files/bulk-download", self._download)

    @web.middleware
    async def _admit(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        for fault in self.faults:
            answer = fault(request)
            if isinstance(answer, float):
                await asyncio.sleep(answer)
            elif answer is not None:
                return answer
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return problem(request, 401, "Unauthorized")
        try:
            response: web.StreamResponse = await handler(request)
        except KeyError:
            return problem(request, 404, "Not found")
        return response

    def _by_name(self, name: str) -> Remote:
        if name in self._sandboxes:
            return self._sandboxes[name]
        for remote in self._sandboxes.values():
            if remote.data["name"] == name:
                return remote
        raise KeyError(name)

    def _of(self, request: web.Request) -> Remote:
        return self._by_name(request.match_info["id"])

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name = asked.get("name") or f"sandbox-{secrets.token_hex(4)}"
        with contextlib.suppress(KeyError):
            self._by_name(name)
            return problem(request, 409, f"Sandbox with name {name} already exists")
        identity = secrets.token_hex(16)
        directory = self._root / identity
        for part in ("workspace", "tmp", "skills"):
            (directory / part).mkdir(parents=True)
        data = {
            "id": identity,
            "organizationId": "org",
            "name": name,
            "user": asked.get("user") or "daytona",
            "env": asked.get("env") or {},
            "labels": asked.get("labels") or {},
            "public": False,
            "networkBlockAll": bool(asked.get("networkBlockAll")),
            "kvm": False,
            "target": "us",
            "cpu": 1,
            "gpu": 0,
            "memory": 1,
            "disk": 3,
            "toolboxProxyUrl": self.api_url.removesuffix("/api") + "/toolbox",
            "state": "creating",
            "desiredState": "started",
            "snapshot": asked.get("snapshot") or "default",
            "autoStopInterval": asked.get("autoStopInterval", 15),
        }
        remote = self._sandboxes[identity] = Remote(data, directory)
        self.created += 1
        self._later(self._boot(remote))
        return web.json_response(data)

    async def _list(self, request: web.Request) -> web.Response:
        wanted = json.loads(request.query.get("labels") or "{}")
        found = [
            remote.data
            for remote in self._sandboxes.values()
            if wanted.items() <= remote.data["labels"].items()
        ]
        start = int(request.query.get("cursor") or 0)
        page = found[start : start + 2]
        following = str(start + 2) if start + 2 < len(found) else None
        return web.json_response({"items": page, "nextCursor": following})

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self._of(request).data)

    async def _delete(self, request: web.Request) -> web.Response:
        remote = self._of(request)
        remote.data["state"] = "destroying"

        async def destroy() -> None:
            await self._kill(remote)
            await asyncio.to_thread(shutil.rmtree, remote.directory, True)
            self._sandboxes.pop(remote.data["id"], None)

        self._later(destroy())
        return web.json_response(remote.data)

    async def _start(self, request: web.Request) -> web.Response:
        remote = self._of(request)
        if remote.data["state"] != "stopped":
            return problem(request, 400, f"Sandbox is {remote.data['state']}")
        remote.data["state"] = "starting"
        self._later(self._boot(remote))
        return web.json_response(remote.data)

    async def _stop(self, request: web.Request) -> web.Response:
        remote = self._of(request)
        if remote.data["state"] != "started":
            return problem(request, 400, f"Sandbox is {remote.data['state']}")
        remote.data["state"] = "stopping"
        self._later(self._kill(remote))
        return web.json_response(remote.data)

    async def _activity(self, request: web.Request) -> web.Response:
        self._of(request)
        return web.Response(status=201)

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _boot(self, remote: Remote) -> None:
        """Start the process whose namespaces are the sandbox."""
        status, told = os.pipe()
        options = ["--unshare-user", "--uid", "1000", "--gid", "1000", "--unshare-pid", "--unshare-net"]
        options += ["--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session"]
        options += ["--ro-bind", str(self._skeleton.path), "/", "--ro-bind", "/usr", "/usr"]
        for source, target in self._skeleton.binds:
            options += ["--ro-bind", source, target]
        options += ["--proc", "/proc", "--dev", "/dev"]
        for part, target in (("skills", "/bin/skills"), ("tmp", "/tmp"), ("workspace", "/workspace")):
            options += ["--bind", str(remote.directory / part), target]
        remote.main = await asyncio.create_subprocess_exec(
            self._program, *options, "--json-status-fd", str(told),
            "--", "bash", "-c", "echo ready; exec sleep infinity",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            pass_fds=[told], env={"PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        os.close(told)
        assert remote.main.stdout is not None
        assert await remote.main.stdout.readline() == b"ready\n"
        first = await asyncio.to_thread(os.read, status, 4096)
        os.close(status)
        remote.inner_pid = json.loads(first.splitlines()[0])["child-pid"]
        remote.data["state"] = "started"

    async def _kill(self, remote: Remote) -> None:
        if remote.main is not None:
            # Never pid 0, which would mean this very process's group.
            with contextlib.suppress(ProcessLookupError):
                os.kill(remote.inner_pid or remote.main.pid, signal.SIGKILL)
            await remote.main.communicate()
            remote.main = None
        remote.sessions.clear()
        if remote.data["state"] != "destroying":
            remote.data["state"] = "stopped"

    async def _spawn(self, remote: Remote, **streams: Any) -> asyncio.subprocess.Process:
        """A shell inside, which takes its commands from standard input, as Daytona's daemon does it."""
        enter = ["nsenter", f"--target={remote.inner_pid}", "--user", "--mount", "--pid", "--net", "--ipc"]
        enter += ["--setuid=1000", "--setgid=1000"]
        return await asyncio.create_subprocess_exec(
            *enter, "bash", stdin=asyncio.subprocess.PIPE, start_new_session=True,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/home/daytona", **remote.data["env"]},
            **streams,
        )  # fmt: skip

    async def _execute(self, request: web.Request) -> web.Response:
        remote, asked = self._of(request), await request.json()
        if remote.main is None:
            return problem(request, 400, "Sandbox is not running")
        process = await self._spawn(
            remote, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd="/"
        )
        command = asked["command"].encode()
        if asked.get("cwd"):
            command = f"cd {asked['cwd']}\n".encode() + command
        try:
            output, _ = await asyncio.wait_for(process.communicate(command), asked.get("timeout"))
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            return problem(request, 408, "command execution timeout")
        return web.json_response({"exitCode": process.returncode, "result": output.decode(errors="replace")})

    async def _open_session(self, request: web.Request) -> web.Response:
        remote = self._of(request)
        if remote.main is None:
            return problem(request, 400, "Sandbox is not running")
        remote.sessions[(await request.json())["sessionId"]] = {}
        return web.Response(status=201)

    async def _close_session(self, request: web.Request) -> web.Response:
        commands = self._of(request).sessions.pop(request.match_info["sid"])
        for command in commands.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.process.pid, signal.SIGTERM)
        return web.Response(status=204)

    async def _session_execute(self, request: web.Request) -> web.Response:
        remote, asked = self._of(request), await request.json()
        commands = remote.sessions[request.match_info["sid"]]
        process = await self._spawn(remote, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        command = Command(secrets.token_hex(8), process)
        commands[command.id] = command
        self._later(self._watch(command, asked["command"].encode()))
        assert asked.get("runAsync")
        return web.json_response({"cmdId": command.id}, status=202)

    async def _watch(self, command: Command, script: bytes) -> None:
        process = command.process
        assert process.stdin is not None

        async def pump(prefix: bytes, reader: asyncio.StreamReader | None) -> None:
            assert reader is not None
            while data := await reader.read(1 << 15):
                command.log.append(prefix + data)
                command.grown.set()

        process.stdin.write(script)
        process.stdin.close()
        await asyncio.gather(
            pump(b"\x01\x01\x01", process.stdout), pump(b"\x02\x02\x02", process.stderr), process.wait()
        )
        command.exit_code = process.returncode
        command.grown.set()

    async def _session_command(self, request: web.Request) -> web.Response:
        command = self._command(request)
        return web.json_response({"id": command.id, "command": "", "exitCode": command.exit_code})

    def _command(self, request: web.Request) -> Command:
        return self._of(request).sessions[request.match_info["sid"]][request.match_info["cid"]]

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        command = self._command(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sending = asyncio.ensure_future(self._send_log(socket, command))
        # Notice a client which goes away.
        async for message in socket:
            if message.type in (WSMsgType.CLOSE, WSMsgType.ERROR):
                break
        sending.cancel()
        return socket

    async def _send_log(self, socket: web.WebSocketResponse, command: Command) -> None:
        sent = 0
        while True:
            while sent < len(command.log):
                await socket.send_bytes(command.log[sent])
                sent += 1
            if command.exit_code is not None:
                await socket.close()
                return
            command.grown.clear()
            await command.grown.wait()

    def _host_path(self, remote: Remote, path: str) -> Path:
        for inside, part in (("/workspace", "workspace"), ("/tmp", "tmp"), ("/bin/skills", "skills")):
            if path.startswith(inside + "/"):
                return remote.directory / part / path[len(inside) + 1 :]
        raise KeyError(path)

    async def _upload(self, request: web.Request) -> web.Response:
        remote = self._of(request)
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            if (part.name or "").endswith(".path"):
                target = self._host_path(remote, await part.text())
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(bytes(await part.read()))
        return web.Response()

    async def _download(self, request: web.Request) -> web.StreamResponse:
        remote, asked = self._of(request), await request.json()
        boundary = secrets.token_hex(16)
        body = bytearray()
        for path in asked["paths"]:
            try:
                content, name = self._host_path(remote, path).read_bytes(), "file"
            except OSError:
                content, name = json.dumps({"message": "file not found", "statusCode": 404}).encode(), "error"
            body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; '.encode()
            body += f'filename="{path}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode()
            body += content + b"\r\n"
        body += f"--{boundary}--\r\n".encode()
        return web.Response(
            body=bytes(body), headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
        )


def problem(
    request: web.Request, status: int, message: str, headers: dict[str, str] | None = None
) -> web.Response:
    body = {
        "statusCode": status,
        "message": message,
        "code": "",
        "source": "api",
        "timestamp": "2026-01-01T00:00:00Z",
        "path": request.path,
        "method": request.method,
    }
    return web.json_response(body, status=status, headers=headers)


@contextlib.asynccontextmanager
async def daytona_server(root: Path) -> AsyncIterator[DaytonaServer]:
    async with DaytonaServer(root) as server:
        yield server
