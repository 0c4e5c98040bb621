"""What can go wrong, one type per thing a caller can do about it.

    AgentRunnerError
    ├── InvalidRequestError        the request is wrong; `violations` name the fields
    ├── NotFoundError              no such thing
    ├── AlreadyExistsError         the name is taken
    ├── ConflictError              someone else wrote first
    ├── FencedError                a newer attempt holds the execution; stop
    ├── PositionError              an append leaves a gap
    ├── FailedPreconditionError    not in this state
    │   └── SecretUnreadableError  a stored secret cannot be decrypted
    ├── UnauthenticatedError       no key, or a wrong one
    ├── PermissionDeniedError      for somebody else only
    ├── SlowWatcherError           cut off; go on from the last seq
    ├── UnavailableError           try again (retryable)
    │   ├── WorkflowServiceUnavailableError
    │   └── SandboxUnavailableError
    ├── SandboxRefusedError        this machine cannot isolate as asked
    ├── ModelError                 the model cannot be used, or its provider said no
    │   └── ModelUnavailableError  the provider is away or busy (retryable)
    ├── LimitReachedError          the execution used up what it may use
    ├── McpServerError             a tool server the agent cannot do without is not to be had
    ├── ArtifactError              the artifact is broken or was altered
    └── SettingsError              a setting is wrong

`retryable` says whether the same call may succeed later, nothing changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class AgentRunnerError(Exception):
    """Base of everything this package raises on purpose."""

    retryable = False


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that is wrong.

    Attributes:
        field: path as in the message, such as `spec.instructions` or `spec.skill_refs[2].kind`.
        problem: what is wrong and what would be right.
        rule: id of the rule, such as `string.min_len`; empty for rules without one.
    """

    field: str
    problem: str
    rule: str = ""


class InvalidRequestError(AgentRunnerError):
    """The request cannot be carried out as it is; nothing was changed."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.problem}" for v in self.violations))

    @classmethod
    def of(cls, field: str, problem: str, rule: str = "") -> InvalidRequestError:
        return cls([Violation(field, problem, rule)])


class NotFoundError(AgentRunnerError):
    """There is no such thing."""

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        self.kind, self.name = kind, name
        super().__init__(f"{kind} {name!r} was not found." + (f" {hint}" if hint else ""))


class AlreadyExistsError(AgentRunnerError):
    """The name is taken within its organization and kind."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name!r} exists already. Use apply to change it, or choose another name.")


class ConflictError(AgentRunnerError):
    """Someone else wrote first; nothing was changed."""

    def __init__(self, kind: str, name: str, expected: int) -> None:
        super().__init__(
            f"{kind} {name!r} has left version {expected}. Read it again, then reapply your change."
        )


class FencedError(AgentRunnerError):
    """A newer attempt holds the execution; what this one sent was not stored."""

    def __init__(self, execution_id: str, attempt: int, current: int) -> None:
        super().__init__(
            f"Execution {execution_id!r} is held by attempt {current}; attempt {attempt} must stop."
        )


class PositionError(AgentRunnerError):
    """An append would leave a gap in the log; nothing was stored."""

    def __init__(self, execution_id: str, position: int, expected: int) -> None:
        self.expected = expected
        super().__init__(
            f"Execution {execution_id!r} expects position {expected}, not {position}. Send from there on."
        )


class FailedPreconditionError(AgentRunnerError):
    """The thing is not in a state in which this can be done."""


class SecretUnreadableError(FailedPreconditionError):
    """A stored secret cannot be decrypted: its key is missing, or it was altered or moved."""


class UnauthenticatedError(AgentRunnerError):
    """The caller showed no key, or a wrong one."""

    def __init__(self) -> None:
        super().__init__("This server wants a key. Set AGENT_RUNNER_API_KEY to the key it was started with.")


class PermissionDeniedError(AgentRunnerError):
    """What was asked for is for somebody else; the message says what would show that it is for the caller."""


class SlowWatcherError(AgentRunnerError):
    """The watcher did not keep up and was cut off."""

    retryable = True

    def __init__(self, last_seq: int) -> None:
        super().__init__(f"The watcher fell behind. Watch again with after_seq={last_seq}.")


class UnavailableError(AgentRunnerError):
    """Something this call needs is away."""

    retryable = True


class WorkflowServiceUnavailableError(UnavailableError):
    """Temporal cannot be reached, or does not do what it is asked for, in words of its own."""

    def __init__(self, address: str, refusal: str = "") -> None:
        away = f"Temporal at {address} cannot be reached. Check TEMPORAL_ADDRESS and that the service runs."
        super().__init__(f"Temporal at {address} refuses: {refusal}" if refusal else away)


class SandboxUnavailableError(UnavailableError):
    """The sandbox provider could not start or reach a sandbox."""


class SandboxRefusedError(AgentRunnerError):
    """This machine cannot isolate commands in the way that was asked for."""


class ModelError(AgentRunnerError):
    """The model is unknown, has no key, or its provider refused the call."""


class ModelUnavailableError(ModelError):
    """The model's provider is away or busy, also after our own retries."""

    retryable = True


class LimitReachedError(AgentRunnerError):
    """The execution used up one of its limits."""

    def __init__(self, limit: str, value: object) -> None:
        super().__init__(f"The limit {limit} = {value} was reached.")


class McpServerError(AgentRunnerError):
    """An MCP server that is required cannot be opened."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"MCP server {name!r}, which is required, could not be opened: {reason}")


class ArtifactError(AgentRunnerError):
    """An artifact is broken, too large or not what its hash says."""


class SettingsError(AgentRunnerError):
    """A setting is wrong; the message names it."""
