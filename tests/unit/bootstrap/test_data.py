"""Who holds the data directory, as the one who comes second is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_runner.bootstrap.data import DataDirectory, StackState, held
from agent_runner.errors import FailedPreconditionError


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    directory = DataDirectory(tmp_path)
    directory.prepare()
    return directory


def refused(data: DataDirectory) -> str:
    with pytest.raises(FailedPreconditionError) as refusal, held(data):
        pass
    return str(refusal.value)


def test_beside_a_stack_it_is_told_which_one_and_how_to_stop_it(data: DataDirectory) -> None:
    with held(data):
        StackState(7, "127.0.0.1:1", "", "", "", "").write(data.state)
        message = refused(data)

    assert "(process 7, 127.0.0.1:1)" in message
    assert "`agent-runner down`" in message


def test_beside_a_control_plane_alone_nobody_is_sent_to_a_command_that_does_not_stop_it(
    data: DataDirectory,
) -> None:
    with held(data):
        message = refused(data)

    assert "A control plane runs already" in message
    assert "agent-runner down" not in message
