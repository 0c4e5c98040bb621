"""Scripts for the scripted model: what a YAML file may say, and where it is wrong.

A script is a list of turns; a turn answers one user message, in steps; a step is one answer of the
model. `docs/guides/models.md` explains the format with examples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agent_runner.errors import ModelError

if TYPE_CHECKING:
    from ruamel.yaml.comments import CommentedMap

SUFFIXES = (".yaml", ".yml")

FailureKind = Literal[
    "rate_limit",
    "overloaded",
    "unavailable",
    "dropped",
    "timeout",
    "no_key",
    "no_credit",
    "unknown_model",
    "too_long",
    "bug",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Failure(_Strict):
    """An error in place of an answer, or in the middle of one.

    Attributes:
        times: how often, until the answer comes; 0: always.
        after_tokens: how much is streamed before; 0 fails before the first token.
        retry_after: seconds the provider asks to wait; None: it does not say.
        message: the provider's words; empty for the usual ones of the kind.
    """

    kind: FailureKind
    times: int = Field(default=0, ge=0)
    after_tokens: int = Field(default=0, ge=0)
    retry_after: float | None = Field(default=None, ge=0)
    message: str = ""


class Call(_Strict):
    """A tool call.

    Attributes:
        id: empty for one made from the turn, the step and the call's place: the same in every run.
        raw_args: arguments as text, such as broken JSON; replaces `args`.
    """

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    id: str = ""
    raw_args: str | None = None


class UsageNumbers(_Strict):
    """Tokens to report; None counts roughly. `cached` is a part of `input`."""

    input: int | None = Field(default=None, ge=0)
    output: int | None = Field(default=None, ge=0)
    cached: int = Field(default=0, ge=0)


class Timing(_Strict):
    """How an answer is streamed; None leaves it to the script's defaults.

    Attributes:
        delay_ms: milliseconds per token.
        first_token_ms: milliseconds before the first token.
        chunk_tokens: tokens per piece.
    """

    delay_ms: float | None = Field(default=None, ge=0)
    first_token_ms: float | None = Field(default=None, ge=0)
    chunk_tokens: int | None = Field(default=None, ge=1)


class Step(Timing):
    """One answer of the model."""

    text: str = ""
    thinking: str = ""
    calls: tuple[Call, ...] = ()
    usage: UsageNumbers = UsageNumbers()
    fail: Failure | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class When(_Strict):
    """Which user messages a turn answers; every pattern given must be found (`re.search`).

    Attributes:
        message: pattern for the user's message.
        system: pattern for the system prompt, which tells sub-agents apart.
        turn: the number of user messages so far, from 1.
    """

    message: str = ""
    system: str = ""
    turn: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _message_alone(cls, value: Any) -> Any:
        return {"message": value} if isinstance(value, str) else value

    @field_validator("message", "system")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class Turn(_Strict):
    """The answers to one user message.

    Attributes:
        when: None: taken in order by messages no other turn asks for.
        loop: begin again after the last step, for ever.
    """

    when: When | None = None
    steps: tuple[Step, ...] = Field(min_length=1)
    loop: bool = False


class Script(_Strict):
    """A whole script."""

    description: str = ""
    defaults: Timing = Timing()
    turns: tuple[Turn, ...] = Field(min_length=1)


def packaged_scripts() -> Sequence[str]:
    """Names of the scripts which ship with the package."""
    folder = resources.files(__package__) / "scripts"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(SUFFIXES))


def locate_script(name: str) -> Path:
    """The file `script:NAME` means: a path, or the name of a packaged script.

    Raises:
        ModelError: there is no such file; the message lists the packaged ones.
    """
    packaged = Path(str(resources.files(__package__) / "scripts" / f"{name}.yaml"))
    path = Path(name).expanduser()
    if not name.endswith(SUFFIXES) and "/" not in name and packaged.is_file():
        return packaged
    if path.is_file():
        return path
    raise ModelError(
        f"Script {name!r} was not found. Give the path of a YAML file as the worker sees it, or one of: "
        f"{', '.join(packaged_scripts())}."
    )


def read_script(path: Path) -> Script:
    """Read and check a script.

    Raises:
        ModelError: it cannot be read or is wrong; the message begins with `file:line:column`.
    """
    # Imported with the first script: 1.5 MiB, which runners of other models do without.
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        tree = YAML().load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ModelError(f"{where}: {error.problem or error.context}") from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ModelError(f"{path}: {error}") from error
    if not isinstance(tree, CommentedMap):
        raise ModelError(f"{path}:1:1: a script is a mapping with `turns`")
    try:
        return Script.model_validate(_plain(tree))
    except ValidationError as error:
        # A misspelt field is the reason why another one is missing, so it is told first.
        problems = error.errors(include_url=False)
        problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        line, column = _position(tree, problem["loc"])
        place = ".".join(str(part) for part in problem["loc"])
        raise ModelError(f"{path}:{line}:{column}: {place}: {_words(problem)}") from error


def _words(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "there is no such field"
    message = str(problem["msg"])
    return message.removeprefix("Value error, ")


def _plain(node: Any) -> Any:
    """The tree without ruamel's own types, which would travel into tool arguments."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _position(tree: CommentedMap, loc: Sequence[int | str]) -> tuple[int, int]:
    """Line and column, from 1, of the deepest part of `loc` the file has."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    node: Any = tree
    line, column = tree.lc.line, tree.lc.col
    for part in loc:
        try:
            if isinstance(node, CommentedMap):
                line, column = node.lc.key(part)
            elif isinstance(node, CommentedSeq):
                line, column = node.lc.item(part)
            node = node[part]
        except (KeyError, IndexError, TypeError):
            break
    return line + 1, column + 1
