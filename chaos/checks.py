"""What must be true after a storm, read from logs, workspaces and what watchers have seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from agent_runner.domain.phases import is_terminal, phase_word
from agent_runner.domain.status import StatusFold, fold
from agent_runner.v1.events_pb2 import ExecutionEvent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecutionStatus
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_CANCELLED,
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    MESSAGE_HUMAN,
)
from chaos.compactions import compacted
from chaos.scripts import EFFECTS, line_of
from chaos.watchers import Subscribed, Watched, digest

UNOWNED = timedelta(seconds=60)

Session = Sequence[tuple[str, Sequence[ExecutionEvent]]]
"""Names and logs of the executions of a session, in the order of creation."""


@dataclass(slots=True)
class Findings:
    """What was counted; `problems` is empty when every promise was kept."""

    phases: Counter[str] = field(default_factory=Counter)
    events: int = 0
    attempts: int = 0
    resumes: int = 0
    lost: int = 0
    duplicated: int = 0
    effects: int = 0
    repeated: int = 0
    missing: int = 0
    uncertain: int = 0
    states: int = 0
    """That subscribers were shown."""
    steered: int = 0
    """Messages that have joined a running turn."""
    longest_silence: float = 0.0
    cancels: list[float] = field(default_factory=list)
    """Seconds from a logged cancel to the end."""
    failures: list[str] = field(default_factory=list)
    """Executions that FAILED, with the reason they state."""
    problems: list[str] = field(default_factory=list)


def moment(event: ExecutionEvent) -> datetime:
    return datetime.fromisoformat(event.time)


def check_log(watched: Watched, log: Sequence[ExecutionEvent], found: Findings) -> None:
    """Without gaps, the same as was watched, attempts never going back, an end with a reason."""
    name = watched.execution_id
    found.problems += [f"{name}: watcher: {problem}" for problem in watched.problems]
    whole = compacted(watched.events) if watched.compacted else watched.events
    if not watched.compacted and [event.seq for event in log] != list(range(1, len(log) + 1)):
        found.problems.append(f"{name}: the log has gaps")
    seen = Counter(event.seq for event in watched.events)
    lost = [event.seq for event in log if not seen[event.seq]]
    twice = sum(count - 1 for count in seen.values())
    found.lost, found.duplicated = found.lost + len(lost), found.duplicated + twice
    if list(whole) != list(log):
        found.problems.append(f"{name}: the watcher saw another log; lost {lost[:5]}, {twice} twice")
    attempts = [event.attempt for event in log if event.attempt]
    if attempts != sorted(attempts):
        found.problems.append(f"{name}: an older attempt wrote after a newer one")
    found.events += len(log)
    found.attempts += max(attempts, default=0)
    found.resumes += max(max(attempts, default=0) - 1, 0)
    _check_end(watched, log, found)


def _check_end(watched: Watched, log: Sequence[ExecutionEvent], found: Findings) -> None:
    name = watched.execution_id
    end = log[-1].phase_changed if log else None
    if end is None or not is_terminal(end.phase):
        found.problems.append(f"{name}: has not ended")
        return
    found.phases[phase_word(end.phase)] += 1
    if end.phase == EXECUTION_FAILED:
        stated = found.failures if end.error else found.problems
        stated.append(f"{name}: FAILED: {end.error or 'without a reason'}")
    if end.phase == EXECUTION_COMPLETED and any(_open_calls(log)):
        found.problems.append(f"{name}: COMPLETED with calls that have not ended")
    if end.phase == EXECUTION_CANCELLED and not watched.cancelled:
        found.problems.append(f"{name}: CANCELLED, though nobody asked")
    _check_cancel(name, log, found)


def _check_cancel(name: str, log: Sequence[ExecutionEvent], found: Findings) -> None:
    """A cancel that was logged is followed by the end, soon."""
    asked = next((event for event in log if event.HasField("cancel_requested")), None)
    if asked is None:
        return
    seconds = (moment(log[-1]) - moment(asked)).total_seconds()
    found.cancels.append(seconds)
    if seconds > UNOWNED.total_seconds():
        found.problems.append(f"{name}: ended {seconds:.0f} s after it was cancelled")


def _open_calls(log: Iterable[ExecutionEvent]) -> Iterator[str]:
    calls: dict[str, bool] = {}
    for event in log:
        kind = event.WhichOneof("event")
        if kind == "tool_call_started":
            calls[event.tool_call_started.tool_call_id] = True
        elif kind in ("tool_call_completed", "tool_call_failed"):
            calls[getattr(event, kind).tool_call_id] = False
    return (call for call, is_open in calls.items() if is_open)


def check_states(seen: Subscribed, found: Findings) -> None:
    """Each state is the log folded so far, none goes back, no phase is left out, the last is the end."""
    name, shown = seen.watched.execution_id, Counter(state.seq for state in seen.states)
    folded, phases = StatusFold(), []
    digests: dict[int, bytes] = {}
    for event in seen.watched.events:
        before = folded.phase
        folded.apply(event)
        if folded.phase != before:
            phases.append(event.seq)
        if shown[event.seq]:
            digests[event.seq] = digest(folded.status)
    problems = [f"state {s.seq} is not its log" for s in seen.states if s.digest != digests.get(s.seq)]
    for earlier, later in pairwise(seen.states):
        if later.seq < earlier.seq:
            problems.append(f"state {later.seq} came after {earlier.seq}")
        if later.connection == earlier.connection:
            left_out = [seq for seq in phases if earlier.seq < seq < later.seq]
            problems += [f"the phase of {seq} was left out" for seq in left_out]
    if not seen.states or seen.states[-1].seq != len(seen.watched.events):
        problems.append("was not shown the end")
    found.states += len(seen.states)
    found.problems += [f"{name}: subscriber: {problem}" for problem in problems]


def check_steered(session: Session, messages: Mapping[str, str], found: Findings) -> None:
    """What has joined a turn has joined one, has none of its own, and stands in it once.

    Args:
        messages: of the executions.
    """
    holders: dict[str, set[str]] = {}
    for holder, log in session:
        for event in log:
            if event.HasField("steering_joined"):
                holders.setdefault(event.steering_joined.execution_id, set()).add(holder)
    statuses = {name: fold(AgentExecutionStatus(), log) for name, log in session}
    for name, log in session:
        joined = holders.get(name, set())
        found.steered += bool(joined)
        if len(joined) > 1:
            found.problems.append(f"{name}: joined several turns: {joined}")
        if joined and any(event.HasField("attempt_started") for event in log):
            found.problems.append(f"{name}: joined a turn and had one of its own")
        if not joined and any(event.HasField("joined_execution") for event in log):
            found.problems.append(f"{name}: says it has joined, but nobody has it")
        for holder in joined:
            said = [m.content for m in statuses[holder].messages if m.type == MESSAGE_HUMAN]
            if said.count(messages[name]) != 1:
                found.problems.append(f"{name}: stands {said.count(messages[name])} times in {holder}")


def check_effects(folder: Path, session: Session, found: Findings) -> None:
    """No line twice; a line whose call completed once; no line nobody asked for."""
    path = folder / EFFECTS
    lines = Counter(path.read_text().splitlines() if path.exists() else ())
    found.effects += sum(lines.values())
    for line, count in lines.items():
        if count > 1:
            found.repeated += count - 1
            found.problems.append(f"done {count} times: {line}")
    asked: set[str] = set()
    for name, log in session:
        for line, completed in _asked(log).items():
            asked.add(line)
            if completed and not lines[line]:
                found.missing += 1
                found.problems.append(f"{name}: completed, but not done: {line}")
            found.uncertain += not completed
    for line in lines.keys() - asked:
        found.problems.append(f"done, but not in the log: {line}")


def _asked(log: Iterable[ExecutionEvent]) -> Mapping[str, bool]:
    """Lines that calls were to write, and whether the call completed."""
    lines: dict[str, str] = {}
    asked: dict[str, bool] = {}
    for event in log:
        kind = event.WhichOneof("event")
        if kind == "tool_call_started":
            command = event.tool_call_started.args.fields["command"].string_value
            if line := line_of(command):
                lines[event.tool_call_started.tool_call_id] = line
                asked.setdefault(line, False)
        elif kind == "tool_call_completed" and (call := event.tool_call_completed.tool_call_id) in lines:
            asked[lines[call]] = True
    return asked


def check_order(session: Session, found: Findings) -> None:
    """One after the other in the order of creation, and nobody waits long without anybody at work."""
    ended: datetime | None = None
    for name, log in session:
        if not log:
            continue
        started = next((moment(e) for e in log if e.WhichOneof("event") == "attempt_started"), None)
        if started is not None and ended is not None and started < ended:
            found.problems.append(f"{name}: began before the one before it had ended")
        begun = max(moment(log[0]), ended) if ended is not None else moment(log[0])
        # Until its turn comes it waits for the one before.
        times = [begun, *(moment(event) for event in log if moment(event) > begun)]
        silence = max((b - a for a, b in pairwise(times)), default=timedelta())
        found.longest_silence = max(found.longest_silence, silence.total_seconds())
        if silence > UNOWNED:
            found.problems.append(f"{name}: {silence.total_seconds():.0f} s without anybody at work")
        # One that waited and was cancelled has ended before those it waited for.
        ended = moment(log[-1]) if ended is None else max(ended, moment(log[-1]))


def recoveries(log: Sequence[ExecutionEvent], kills: Sequence[tuple[datetime, int]]) -> Iterator[float]:
    """Seconds from the SIGKILL of the worker that ran the execution to the next attempt.

    Args:
        kills: when which process was killed.
    """
    begun = [event for event in log if event.WhichOneof("event") == "attempt_started"]
    end = moment(log[-1])
    for held, following in pairwise(begun):
        pid = int(held.attempt_started.worker.rpartition("/")[2])
        for when, killed in kills:
            if killed == pid and moment(held) < when < min(moment(following), end):
                yield (moment(following) - when).total_seconds()
