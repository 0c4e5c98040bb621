"""What every test shares."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator

import pytest
from blocking import Detector
from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair. Where all tests must pass, the same examples are
# tried each time, so that a run says of a change alone what it says; elsewhere new ones are found.
settings.register_profile(
    "ours",
    deadline=None,
    derandomize=os.environ.get("TEST_SERVERS") == "required",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ours")

_exit_status = 0


@pytest.fixture(scope="session")
def blocking_detector() -> Iterator[Detector]:
    with Detector().active() as detector:
        yield detector


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop(blocking_detector: Detector) -> Iterator[None]:
    """Fails the test in which code of ours blocked the event loop, wherever the error went."""
    yield
    if findings := blocking_detector.take():
        pytest.fail("\n".join(dict.fromkeys(map(str, findings))), pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    global _exit_status
    _exit_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without interpreter shutdown once the report is printed.

    A process that has opened a Temporal client can abort in the interpreter's exit (an upstream bug,
    open since 2023), which would turn a passed run red at random. What was to be cleaned up at exit
    still is: servers that tests started end here. Holds for the workers of `-n` too, which have
    reported by now.
    """
    if "temporalio" in sys.modules or hasattr(config, "workerinput"):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_status)
