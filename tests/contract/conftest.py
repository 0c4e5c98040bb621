"""Servers the contract suites run against: real ones, started once and only when a test asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract.servers import mongo_server, redis_server


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
