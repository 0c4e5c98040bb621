"""Artifacts in an object store: a folder, memory, S3, GCS or Azure, all through obstore."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from agent_runner.errors import InvalidRequestError, NotFoundError, SettingsError, UnavailableError

_KEY = re.compile(r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]{1,255})*\Z")

_PART, _PARTS_AT_ONCE = 5 << 20, 2
"""Bytes of one part of an upload (the least S3 takes), and how many may be in memory."""

MAX_KEY_LENGTH = 1024
"""Characters; what S3 allows."""


class ObjectArtifactStore:
    """Artifacts as objects of one bucket or folder."""

    def __init__(self, store: ObjectStore, *, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder
        """Where the objects are files; None elsewhere."""

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Open the store a URL names; nothing is contacted yet.

        Args:
            url: `file:///folder` (made when missing), `memory:///`, `s3://bucket/prefix`, or another
                that obstore knows. Credentials come from the environment, such as `AWS_*`.
            options: passed to obstore, such as `config` or `client_options`.

        Raises:
            SettingsError: the URL is none of these.
        """
        try:
            if url.startswith("file:"):
                return cls._in_folder(Path(unquote(urlsplit(url).path)))
            return cls(from_url(url, **options))
        except (BaseError, OSError, ValueError) as error:
            raise SettingsError(
                f"The artifact store {url!r} cannot be opened: {_first_line(error)}. "
                "Use file:///folder, memory:/// or s3://bucket/prefix."
            ) from error

    @classmethod
    def _in_folder(cls, folder: Path) -> Self:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(LocalStore(folder, automatic_cleanup=True), folder=folder)

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        _check(key)
        counted = _Counted(chunks)
        try:
            await obstore.put_async(
                self._store, key, counted, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE
            )
            if self._folder is not None:
                # The log may name the artifact as soon as this returns, and the log survives a power
                # cut; obstore only renames.
                await asyncio.to_thread(_sync, self._folder / key, self._folder)
        except (BaseError, OSError) as error:
            if counted.failure is error:
                raise
            raise _unavailable(key, error) from error
        return counted.size

    def get(self, key: str, *, chunk_size: int = 1 << 20) -> AsyncIterator[bytes]:
        _check(key)
        return self._chunks(key, chunk_size)

    async def _chunks(self, key: str, chunk_size: int) -> AsyncIterator[bytes]:
        try:
            found = await obstore.get_async(self._store, key)
            async for piece in found.stream(min_chunk_size=chunk_size):
                for start in range(0, len(piece), chunk_size):
                    yield bytes(piece[start : start + chunk_size])
        except FileNotFoundError as error:
            raise NotFoundError("artifact", key) from error
        except BaseError as error:
            raise _unavailable(key, error) from error

    async def exists(self, key: str) -> bool:
        _check(key)
        try:
            await obstore.head_async(self._store, key)
        except FileNotFoundError:
            return False
        except BaseError as error:
            raise _unavailable(key, error) from error
        return True

    async def delete(self, key: str) -> None:
        _check(key)
        await self._delete(key)

    async def delete_under(self, folder: str) -> int:
        _check(folder)
        try:
            found = await obstore.list(self._store, prefix=folder).collect_async()
        except BaseError as error:
            raise _unavailable(folder, error) from error
        for entry in found:
            await self._delete(entry["path"])
        return len(found)

    async def _delete(self, key: str) -> None:
        try:
            await obstore.delete_async(self._store, key)
        except FileNotFoundError:
            return
        except BaseError as error:
            raise _unavailable(key, error) from error


class _Counted:
    """Passes chunks on and adds up their size."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.size = 0
        self.failure: Exception | None = None
        """What the chunks broke off with."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except Exception as error:
            self.failure = error
            raise
        self.size += len(chunk)
        return chunk


def _check(key: str) -> None:
    if len(key) > MAX_KEY_LENGTH or not _KEY.match(key):
        raise InvalidRequestError.of(
            "key", "an artifact key is names joined by '/': letters, digits, '.', '_' and '-'; no '.' or '..'"
        )


def _sync(path: Path, root: Path) -> None:
    """Have the disk keep a new file and the names of the folders it is in."""
    for synced in (path, *path.parents):
        descriptor = os.open(synced, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if synced == root:
            return


def _unavailable(key: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"The artifact {key!r} cannot be reached in its store: {_first_line(error)}. Try again."
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
