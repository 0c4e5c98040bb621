"""Following an execution to its end, for `run` and `watch`, and what Ctrl-C means meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from agent_runner.cli import _errors
from agent_runner.cli._output import note, to_json, write
from agent_runner.cli._progress import JsonLines, PlainLines, Progress, Quiet, answer_of
from agent_runner.client import AgentRunner
from agent_runner.errors import AgentRunnerError, FailedPreconditionError, UnavailableError
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import EXECUTION_COMPLETED

SECOND_PRESS = 2.0
"""Seconds within which a second Ctrl-C cancels the execution."""


class Ending(Enum):
    """Why following came to its end."""

    FINISHED = "finished"
    DETACHED = "detached"
    TIMED_OUT = "timed out"


@dataclass(frozen=True, slots=True)
class Followed:
    """What became of it; `cancelled` when Ctrl-C asked the execution to stop."""

    ending: Ending
    execution: AgentExecution
    cancelled: bool = False


def progress_for(output: str, *, events_are_data: bool) -> Progress:
    """How to show a run. Data goes to stdout, everything else to stderr.

    Args:
        output: `text`, `json` or `jsonl`.
        events_are_data: for `watch`, whose lines are what was asked for; for `run` it is the answer.
    """
    if output == "jsonl":
        return JsonLines(sys.stdout)
    if output == "json" and not sys.stderr.isatty():
        return Quiet()
    without_answer = output == "text" and not events_are_data
    stream = sys.stdout if events_are_data and output == "text" else sys.stderr
    if stream.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb":
        from agent_runner.cli._live import LiveView

        return LiveView(stream, without_answer=without_answer)
    return PlainLines(stream, without_answer=without_answer)


async def follow(
    client: AgentRunner,
    execution_id: str,
    progress: Progress,
    *,
    after_seq: int = 0,
    timeout: float | None = None,
    cancels: bool = False,
    cancel_on_interrupt: bool = False,
) -> Followed:
    """Show events until the execution ends, the timeout passes or Ctrl-C detaches.

    Args:
        timeout: seconds; None for none.
        cancels: whether a second Ctrl-C cancels; else the first one simply ends the watching.
        cancel_on_interrupt: the first Ctrl-C cancels already.
    """
    press = _Interrupts(client, execution_id, progress, cancels=cancels, at_once=cancel_on_interrupt)
    reading = asyncio.ensure_future(_read(client, execution_id, progress, after_seq))
    ending = Ending.FINISHED
    try:
        with press.caught():
            detached = asyncio.ensure_future(press.detached.wait())
            await asyncio.wait({reading, detached}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            detached.cancel()
        if reading.done():
            reading.result()
        else:
            ending = Ending.DETACHED if press.detached.is_set() else Ending.TIMED_OUT
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError, AgentRunnerError, OSError):
            await reading
        progress.close()
    return Followed(ending, await _final(client, execution_id, progress), press.cancelled)


async def _final(client: AgentRunner, execution_id: str, progress: Progress) -> AgentExecution:
    """The execution as the server has it, or as it was shown when the server went away just now."""
    try:
        return await client.executions.get(execution_id)
    except UnavailableError:
        execution = AgentExecution(status=progress.status)
        execution.metadata.id = execution_id
        return execution


async def _read(client: AgentRunner, execution_id: str, progress: Progress, after_seq: int) -> None:
    def on_reconnect(reason: Exception | None) -> None:
        progress.say(
            "The connection is back." if reason is None else "The connection was lost; trying again …"
        )

    async for event in client.executions.watch(execution_id, after_seq=after_seq, on_reconnect=on_reconnect):
        progress.show(event)


class _Interrupts:
    """Ctrl-C while an execution is followed."""

    def __init__(
        self, client: AgentRunner, execution_id: str, progress: Progress, *, cancels: bool, at_once: bool
    ) -> None:
        self._client, self._id, self._progress = client, execution_id, progress
        self._cancels, self._at_once = cancels, at_once
        self._pressed_at: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.detached = asyncio.Event()
        self.cancelled = False

    def caught(self) -> _Caught:
        return _Caught(self._press)

    def _press(self) -> None:
        if self.cancelled:
            self.detached.set()  # it does not stop soon enough for this person
        elif self._at_once or self._pressed_at is not None:
            self._cancel()
        elif self._cancels:
            self._pressed_at = time.monotonic()
            self._progress.say(
                f"Detaching; press Ctrl-C again within {SECOND_PRESS:.0f} s to cancel the run."
            )
            asyncio.get_running_loop().call_later(SECOND_PRESS, self._detach_unless_cancelled)
        else:
            self.detached.set()

    def _detach_unless_cancelled(self) -> None:
        if not self.cancelled:
            self.detached.set()

    def _cancel(self) -> None:
        self.cancelled = True
        self._progress.say("Cancelling …")
        task = asyncio.ensure_future(self._ask_to_cancel())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_to_cancel(self) -> None:
        try:
            await self._client.cancel(self._id, "Ctrl-C")
        except FailedPreconditionError:
            pass  # it has just ended; the watch ends by itself
        except AgentRunnerError as error:
            self._progress.say(f"It could not be cancelled: {error}")
            self.detached.set()


class _Caught:
    """SIGINT goes to `press` while the context is entered."""

    def __init__(self, press: Callable[[], None]) -> None:
        self._press = press

    def __enter__(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._press)

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def conclude(followed: Followed, output: str, *, answer: bool) -> int:
    """Print the result and return the exit code.

    Args:
        answer: print the agent's last words for `text`.
    """
    execution = followed.execution
    if followed.ending is not Ending.FINISHED:
        note(f"Still running. Go on watching with: agent-runner watch {execution.metadata.id}")
        return _errors.TIMED_OUT if followed.ending is Ending.TIMED_OUT else _errors.INTERRUPTED
    if output == "json":
        from agent_runner.cli._output import to_dict

        write(to_json(to_dict(execution)))
    if joined := execution.status.run.joined_execution_id:
        note(f"The answer comes there: agent-runner watch {joined}")
    completed = execution.status.phase == EXECUTION_COMPLETED
    if output == "text" and answer and completed:
        _print_answer(execution)
    if followed.cancelled:
        return _errors.INTERRUPTED
    return _errors.OK if completed else _errors.FAILED


def _print_answer(execution: AgentExecution) -> None:
    text = answer_of(execution.status)
    if sys.stdout.isatty():
        from agent_runner.cli._output import clean

        text = clean(text)
    if text:
        write(text)
