"""What the user reads when something goes wrong, and the exit codes.

0 done               4 not allowed                124 --timeout passed, the run goes on
1 failed             5 not found                  130 interrupted
2 wrong usage        6 conflict, wrong state      143 terminated
3 waits for a person 7 server not reachable
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import click

from agent_runner import errors
from agent_runner.cli._options import recall
from agent_runner.errors import AgentRunnerError, InvalidRequestError

OK, FAILED, USAGE, WAITING, NOT_ALLOWED, NOT_FOUND, CONFLICT, UNREACHABLE = range(8)
TIMED_OUT, INTERRUPTED, TERMINATED = 124, 130, 143

_EXIT_CODES: tuple[tuple[type[AgentRunnerError], int], ...] = (
    (errors.InvalidRequestError, USAGE),
    (errors.SettingsError, USAGE),
    (errors.UnauthenticatedError, NOT_ALLOWED),
    (errors.PermissionDeniedError, NOT_ALLOWED),
    (errors.NotFoundError, NOT_FOUND),
    (errors.AlreadyExistsError, CONFLICT),
    (errors.ConflictError, CONFLICT),
    (errors.FailedPreconditionError, CONFLICT),
    (errors.UnavailableError, UNREACHABLE),
)


class CommandError(AgentRunnerError):
    """A command cannot go on.

    Attributes:
        code: the word in brackets.
        exit_code: what the process ends with.
        lines: what is wrong in detail, a line each.
        hint: a command or step that helps.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "FAILED",
        exit_code: int = FAILED,
        lines: Iterable[str] = (),
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.code, self.exit_code, self.lines, self.hint = code, exit_code, tuple(lines), hint


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` Did you mean x?`, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def report(error: BaseException, *, as_json: bool = False) -> int:
    """Tell the user and return the exit code. A closed pipe is silent.

    Args:
        as_json: one JSON object on stderr instead of lines for people.
    """
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        forget_stdout()
        return OK
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()  # a group without a command: its help, which is no error of anybody's
        return USAGE
    if recall("debug"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    told, exit_code = _told(error)
    _say_as_json(told) if as_json else _say(told)
    return exit_code


def forget_stdout() -> None:
    """Nobody reads stdout any more: what is still buffered must not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True, slots=True)
class _Told:
    """What is told of an error."""

    message: str
    code: str
    lines: tuple[str, ...] = ()
    hint: str = ""


def _told(error: BaseException) -> tuple[_Told, int]:
    if isinstance(error, click.ClickException):
        usage = isinstance(error, click.UsageError) and error.ctx is not None
        hint = f"{error.ctx.command_path} --help" if usage else ""  # type: ignore[attr-defined]
        return _Told(error.format_message(), "USAGE", hint=hint), USAGE
    if isinstance(error, CommandError):
        return _Told(str(error), error.code, error.lines, error.hint), error.exit_code
    if isinstance(error, AgentRunnerError):
        return _told_of_ours(error)
    if isinstance(error, UnicodeEncodeError):
        return _Told("An argument is no text in UTF-8.", "USAGE"), USAGE  # which one may be a secret
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return _Told(f"{name}{error.strerror or error}", "IO"), FAILED
    return _Told(f"{type(error).__name__}: {error}", "INTERNAL", hint="the same command with --debug"), FAILED


def _told_of_ours(error: AgentRunnerError) -> tuple[_Told, int]:
    from agent_runner.client.errors import ServerUnreachableError, code_of

    exit_code = next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), FAILED)
    message, hint = str(error), ""
    lines: tuple[str, ...] = ()
    if isinstance(error, InvalidRequestError):
        message, lines = _request_lines(error)
    if isinstance(error, ServerUnreachableError):
        hint = "agent-runner up"
    return _Told(message, code_of(error), lines, hint), exit_code


def _request_lines(error: InvalidRequestError) -> tuple[str, tuple[str, ...]]:
    if len(error.violations) == 1 and error.violations[0].field in ("request", "kind", ""):
        return error.violations[0].problem, ()
    return "The request is not valid.", tuple(f"{v.field}: {v.problem}" for v in error.violations)


def _say_as_json(told: _Told) -> None:
    from agent_runner.cli._output import to_json

    error = {"code": told.code, "message": told.message, "details": list(told.lines), "try": told.hint}
    with contextlib.suppress(OSError):
        click.echo(to_json({"error": {k: v for k, v in error.items() if v}}, indent=None), err=True)


def _say(told: _Told) -> None:
    from agent_runner.cli._output import clean, error_stream_is_styled

    head = "Error:"
    if error_stream_is_styled():
        head = click.style(head, fg="red", bold=True)
    lines = [f"{head} {clean(told.message)} ({told.code})", *(f"  {clean(line)}" for line in told.lines)]
    lines += [f"Try: {told.hint}"] if told.hint else []
    with contextlib.suppress(OSError):  # nobody reads stderr; the exit code says enough
        click.echo("\n".join(lines), err=True, color=True)
