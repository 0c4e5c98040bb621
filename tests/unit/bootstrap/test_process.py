from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from agent_runner.bootstrap.process import run_service
from agent_runner.errors import FailedPreconditionError


@pytest.fixture(autouse=True)
def usual_interval() -> Iterator[None]:
    usual = sys.getswitchinterval()
    yield
    sys.setswitchinterval(usual)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_service_that_still_waits_for_another_is_stopped_by_one_signal(number: signal.Signals) -> None:
    closed = False

    async def service(_stop: asyncio.Event) -> None:
        nonlocal closed
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 30)
        finally:
            closed = True

    assert run_service(service) == 0
    assert closed


def test_a_service_that_serves_stops_by_itself() -> None:
    stopped = False

    async def service(stop: asyncio.Event) -> None:
        nonlocal stopped
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 30)
        await asyncio.sleep(0)
        stopped = True

    assert run_service(service) == 0
    assert stopped


def test_what_keeps_a_service_from_starting_is_told_by_the_command_line() -> None:
    async def service(_stop: asyncio.Event) -> None:
        raise FailedPreconditionError("A stack runs already.")

    with pytest.raises(FailedPreconditionError, match="runs already"):
        run_service(service)
