"""Servers the contract suites run against: real ones, started once and only when a test asks."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator

import pytest
from contract.servers import collect_sockets, mongo_server, redis_server

_OF_MONGO = ("mongo", "test_replicas")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Collects what a test with MongoDB's driver has left, once its loop is closed."""
    yield
    if "pymongo" in sys.modules and any(name in item.nodeid for name in _OF_MONGO):
        collect_sockets()


@pytest.fixture(scope="session")
def mongo_url() -> Iterator[str]:
    """A server that speaks MongoDB's protocol, a replica set of one, empty."""
    with mongo_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis server without persistence."""
    with redis_server() as url:
        yield url
