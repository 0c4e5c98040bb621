"""The promises under fire, in short; `make chaos` blows longer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent_runner.domain.status import fold
from agent_runner.v1.events_pb2 import (
    AttemptStarted,
    ExecutionEvent,
    JoinedExecution,
    MessageStarted,
    PhaseChanged,
    SteeringJoined,
    ToolCallCompleted,
    ToolCallStarted,
)
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    EXECUTION_IN_PROGRESS,
    EXECUTION_PENDING,
    MESSAGE_HUMAN,
)

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 550.0


def test_kills_and_cuts_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    out = _chaos(
        tmp_path, "faults", "--seed=141", "--count=5", "--gap=0.6", "--sessions=2", "--reconnects=20"
    )

    assert "every promise kept" in out
    assert re.search(r"(\d+) reconnects of watchers: 0 lost, 0 duplicated", out), out
    assert re.search(r"[1-9]\d* side effects: 0 repeated, 0 missing", out), out
    for way in ("gRPC", "server-sent events", "subscribe"):
        assert re.search(rf"watched by: .*'{way}': [1-9]", out), out
    assert re.search(r"[1-9]\d* states of subscribers", out), out
    assert re.search(r"[1-9]\d* logs compacted while somebody was half-way", out), out


@pytest.fixture(autouse=True)
def _repository_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_what_was_lost_or_seen_twice_is_found() -> None:
    from chaos.checks import Findings, check_log
    from chaos.watchers import Watched

    log = _log("10:00:00", "line")
    whole, holed, doubled = (Watched(name, "ses-1") for name in ("whole", "holed", "doubled"))
    for event in log:
        whole.take(event)
        doubled.take(event)
        if event.seq != 2:
            holed.take(event)
    doubled.take(log[-1])

    found = Findings()
    check_log(whole, log, found)
    assert (found.lost, found.duplicated, found.problems) == (0, 0, [])
    check_log(holed, log, found)
    assert (found.lost, found.duplicated) == (1, 0)
    check_log(doubled, log, found)
    assert (found.lost, found.duplicated) == (1, 1)
    assert any("holed" in problem for problem in found.problems)


def test_states_that_go_back_miss_a_phase_or_are_not_the_log_are_found() -> None:
    from chaos.checks import Findings, check_states
    from chaos.watchers import State, Subscribed, Watched, digest

    log = _log("10:00:00", "line")
    watched = Watched("aex-1", "ses-1", events=list(log))
    states = {n: State(1, n, digest(fold(AgentExecutionStatus(), log[:n]))) for n in range(1, len(log) + 1)}
    other = State(1, 3, digest(fold(AgentExecutionStatus(), log[:2])))

    def problems(*shown: State) -> str:
        found = Findings()
        check_states(Subscribed(watched, list(shown)), found)
        return " ".join(found.problems)

    assert problems(states[1], states[3], states[6]) == ""
    assert "came after" in problems(states[4], states[3], states[6])
    assert "phase of 3 was left out" in problems(states[1], states[4], states[6])
    assert problems(states[1], replace(states[4], connection=2), replace(states[6], connection=2)) == ""
    assert "is not its log" in problems(states[1], other, states[6])
    assert "was not shown the end" in problems(states[1], states[3])


def test_messages_that_join_two_turns_or_run_beside_are_found() -> None:
    from chaos.checks import Findings, check_steered

    joining, asks = SteeringJoined(execution_id="aex-2"), MessageStarted(type=MESSAGE_HUMAN, content="two")
    holder = [*_log("10:00:00", "line")]
    holder[4:4] = [ExecutionEvent(steering_joined=joining), ExecutionEvent(message_started=asks)]
    again = ExecutionEvent(message_started=MessageStarted(message_id="b", type=MESSAGE_HUMAN, content="two"))
    second = [_log("10:00:01", "line")[0], ExecutionEvent(joined_execution=JoinedExecution())]

    def problems(*session: tuple[str, Sequence[ExecutionEvent]]) -> str:
        found = Findings()
        check_steered(session, {name: "two" for name, _log in session}, found)
        return " ".join(found.problems)

    assert problems(("aex-1", holder), ("aex-2", second)) == ""
    assert "several turns" in problems(("aex-0", holder), ("aex-1", holder), ("aex-2", second))
    assert "one of its own" in problems(("aex-1", holder), ("aex-2", _log("10:00:05", "line")))
    assert "nobody has it" in problems(("aex-1", _log("10:00:00", "line")), ("aex-2", second))
    assert "stands 2 times" in problems(("aex-1", [*holder[:6], again, *holder[6:]]), ("aex-2", second))


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("line\n", None),
        ("line\nline\n", "done 2 times"),
        ("", "not done"),
        ("line\nother\n", "not in the log"),
    ],
)
def test_side_effects_that_are_repeated_missing_or_nobodys_are_found(
    tmp_path: Path, written: str, problem: str | None
) -> None:
    from chaos.checks import Findings, check_effects
    from chaos.scripts import EFFECTS

    (tmp_path / EFFECTS).write_text(written)
    found = Findings()
    check_effects(tmp_path, [("aex-1", _log("10:00:00", "line"))], found)

    if problem is None:
        assert found.problems == []
    else:
        assert problem in " ".join(found.problems)


@pytest.mark.parametrize(
    ("second", "problem"),
    [("10:00:10", ""), ("10:00:01", "before the one before it had ended"), ("10:01:30", "without anybody")],
)
def test_turns_out_of_order_and_executions_without_owner_are_found(second: str, problem: str) -> None:
    from chaos.checks import Findings, check_order

    found = Findings()
    waiting = _log(second, "line")
    waiting[0].time = "2026-01-01T10:00:00+00:00"
    check_order([("aex-1", _log("10:00:00", "line")), ("aex-2", waiting)], found)

    if problem:
        assert problem in " ".join(found.problems)
    else:
        assert found.problems == []


def _log(clock: str, line: str) -> Sequence[ExecutionEvent]:
    """An execution that writes one line within five seconds."""
    command = ToolCallStarted(tool_call_id="c", name="execute")
    command.args.update({"command": f"echo '{line}' >> effects.log"})
    events = [
        ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_PENDING)),
        ExecutionEvent(attempt=1, attempt_started=AttemptStarted(worker="host/1")),
        ExecutionEvent(attempt=1, phase_changed=PhaseChanged(phase=EXECUTION_IN_PROGRESS)),
        ExecutionEvent(attempt=1, tool_call_started=command),
        ExecutionEvent(attempt=1, tool_call_completed=ToolCallCompleted(tool_call_id="c")),
        ExecutionEvent(attempt=1, phase_changed=PhaseChanged(phase=EXECUTION_COMPLETED)),
    ]
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    for number, event in enumerate(events):
        event.seq = number + 1
        event.time = f"2026-01-01T{hours:02}:{minutes:02}:{seconds + number:02}+00:00"
    return events


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("faults", "--only", "flood"), "kill worker"),
        (("--count", "0"), "must be a whole number from 1, not '0'"),
        (("--gap", "nan"), "must be a number of seconds, not 'nan'"),
        (("--help",), "exit code: 0 when every promise was kept"),
    ],
)
def test_what_chaos_can_be_asked_is_told_in_words(arguments: Sequence[str], says: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "chaos", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=WITHIN
    )

    assert told.returncode == (0 if "--help" in arguments else 2)
    assert says in told.stdout + told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("target", ["chaos", "bench"])
def test_make_passes_on_what_it_is_told(target: str) -> None:
    would = subprocess.run(
        ["make", "-n", target, "ARGS=some --words"], cwd=ROOT, capture_output=True, text=True, timeout=WITHIN
    )

    assert f"-m {target} some --words" in would.stdout


def _chaos(folder: Path, *arguments: str) -> str:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = kept | {"HOME": str(folder), "PYTHONPATH": str(ROOT / "src")}
    child = subprocess.Popen(
        [sys.executable, "-m", "chaos", *arguments, f"--keep={folder / 'chaos'}"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        out, _ = child.communicate(timeout=WITHIN)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGTERM)  # ends what it has started
        out, _ = child.communicate(timeout=120)
        raise AssertionError(f"not over within {WITHIN:.0f} s:\n{out}") from None
    assert child.returncode == 0, out
    return out
