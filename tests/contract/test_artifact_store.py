"""What every ArtifactStore keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent_runner.adapters.artifacts.deferred import DeferredArtifactStore
from agent_runner.adapters.artifacts.objects import ObjectArtifactStore
from agent_runner.errors import InvalidRequestError, NotFoundError, SettingsError, UnavailableError
from agent_runner.ports.artifacts import ArtifactStore

STORES: dict[str, Callable[[Path], ArtifactStore]] = {
    "memory": lambda folder: ObjectArtifactStore.from_url("memory:///"),
    "file": lambda folder: ObjectArtifactStore.from_url((folder / "artifacts").as_uri()),
    "deferred": lambda folder: DeferredArtifactStore(lambda: ObjectArtifactStore.from_url("memory:///")),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return STORES[request.param](tmp_path)


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def read(store: ArtifactStore, key: str, **options: int) -> bytes:
    return b"".join([chunk async for chunk in store.get(key, **options)])


async def test_what_was_put_is_read_back(store: ArtifactStore) -> None:
    assert await store.put("skills/acme/pdf/a1.zip", stream(b"one ", b"two")) == 7

    assert await read(store, "skills/acme/pdf/a1.zip") == b"one two"
    assert await store.exists("skills/acme/pdf/a1.zip")


async def test_nothing_is_something_too(store: ArtifactStore) -> None:
    assert await store.put("empty", stream()) == 0
    assert await read(store, "empty") == b""


async def test_a_second_put_replaces_the_first(store: ArtifactStore) -> None:
    await store.put("a/b", stream(b"a long first text"))
    await store.put("a/b", stream(b"second"))

    assert await read(store, "a/b") == b"second"


async def test_large_bytes_stream_in_and_out(store: ArtifactStore) -> None:
    chunk = bytes(range(256)) * 4096
    assert await store.put("large", stream(*[chunk] * 20)) == 20 << 20

    sizes = [len(part) async for part in store.get("large")]
    assert sum(sizes) == 20 << 20
    assert max(sizes) <= 1 << 20


async def test_a_put_that_breaks_off_leaves_what_was_there(store: ArtifactStore) -> None:
    async def broken(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * (1 << 20)
        raise OSError("the sender went away")

    await store.put("a/kept", stream(b"before"))
    for key, count in (("a/kept", 1), ("a/kept", 12), ("a/new", 1), ("a/new", 12)):
        with pytest.raises(OSError, match="went away"):
            await store.put(key, broken(count))

    assert await read(store, "a/kept") == b"before"
    assert not await store.exists("a/new")


async def test_what_is_not_there_is_not_found(store: ArtifactStore) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.here"):
        await read(store, "nothing.here")
    assert not await store.exists("nothing.here")
    await store.delete("nothing.here")


async def test_deleted_bytes_are_gone(store: ArtifactStore) -> None:
    await store.put("a/b", stream(b"x"))
    await store.delete("a/b")

    assert not await store.exists("a/b")


async def test_what_is_under_a_folder_goes_at_once_and_nothing_beside_it(store: ArtifactStore) -> None:
    gone = ("runs/a/one", "runs/a/deep/two", "runs/a/deep/three")
    kept = ("runs/ab/one", "runs/b", "a/one", "other/runs/a/one")
    for key in (*gone, *kept):
        await store.put(key, stream(b"x"))

    assert await store.delete_under("runs/a") == 3
    assert await store.delete_under("runs/a") == 0

    assert [key for key in (*gone, *kept) if await store.exists(key)] == list(kept)


BAD_KEYS = [
    "",
    "/",
    "a/",
    "/a",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a/.",
    "./a",
    "a b",
    "a\\b",
    "a%2e",
    "ü",
    "a\n",
    "x" * 300,
]


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_a_key_with_other_characters_is_refused(store: ArtifactStore, key: str) -> None:
    with pytest.raises(InvalidRequestError, match="names joined by"):
        await store.put(key, stream(b"x"))
    with pytest.raises(InvalidRequestError):
        await read(store, key)
    with pytest.raises(InvalidRequestError):
        await store.exists(key)
    with pytest.raises(InvalidRequestError):
        await store.delete_under(key)
    with pytest.raises(InvalidRequestError):
        await store.delete(key)


@pytest.mark.parametrize("key", ["a", "...", ".a", "a..b", "..a/b", "A-Z_0.9/x"])
async def test_a_key_of_allowed_characters_works(store: ArtifactStore, key: str) -> None:
    await store.put(key, stream(b"x"))
    assert await read(store, key) == b"x"


def test_an_unknown_address_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="nonsense"):
        ObjectArtifactStore.from_url("nonsense://somewhere")


def test_a_folder_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match="cannot be opened"):
        ObjectArtifactStore.from_url((tmp_path / "file" / "artifacts").as_uri())


async def test_a_folder_with_an_odd_name_is_found_again_by_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "my files ü%20"
    await ObjectArtifactStore.from_url(folder.as_uri()).put("a/b", stream(b"x"))

    assert (folder / "a" / "b").read_bytes() == b"x"
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_a_name_in_the_way_is_said(tmp_path: Path) -> None:
    store = ObjectArtifactStore.from_url(tmp_path.as_uri())
    await store.put("a", stream(b"x"))
    with pytest.raises(UnavailableError, match="'a/b' cannot be reached"):
        await store.put("a/b", stream(b"y"))
