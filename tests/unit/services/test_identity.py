from __future__ import annotations

from agent_runner.adapters.store.memory import MemoryResourceStore
from agent_runner.errors import ConflictError, UnavailableError
from agent_runner.ports.stores import StoredResource
from agent_runner.services.identity import StoreHealth


class Disk(MemoryResourceStore):
    """A store whose disk may be full, or that somebody else writes to at the same moment."""

    full = False
    busy = False
    writes = 0

    async def put(self, resource: StoredResource, *, expected: int) -> int:
        if self.full:
            raise UnavailableError("The database cannot be used right now: database or disk is full.")
        if self.busy:
            raise ConflictError(resource.key.kind, resource.key.id, expected)
        self.writes += 1
        return await super().put(resource, expected=expected)


async def test_a_store_that_can_be_read_and_not_written_is_not_usable_until_it_is() -> None:
    disk = Disk()
    health = StoreHealth(disk)
    disk.full = True
    assert "disk is full" in await health.problem(5)

    disk.full = False
    assert await health.problem(5) == ""
    assert disk.writes == 1


async def test_asking_often_writes_seldom() -> None:
    disk = Disk()
    health = StoreHealth(disk)

    assert [await health.problem(5) for _ in range(20)] == [""] * 20
    assert disk.writes == 1


async def test_another_control_plane_that_asks_at_the_same_moment_is_no_problem() -> None:
    disk = Disk()
    disk.busy = True

    assert await StoreHealth(disk).problem(5) == ""
