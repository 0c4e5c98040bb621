"""The kinds of resources, and how each is called, read from the services' own descriptors."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from agent_runner.errors import InvalidRequestError

API_VERSION = "agentic.stigmer.ai/v1"
PLATFORM, ORGANIZATION = 1, 2
"""Values of `ApiResourceOwnerScope`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of resource.

    Attributes:
        name: as in manifests, `AgentInstance`.
        number: its `ApiResourceKind`.
        id_prefix: what ids of the kind begin with, before `-`.
        word: how it is printed and typed, `instance`; the plural adds `s`.
        aliases: what else may be typed for it.
        owner_scope: the scope set where a manifest has none.
        rank: kinds with a lower one are applied first, since others refer to them.
    """

    name: str
    number: int
    id_prefix: str
    word: str
    aliases: tuple[str, ...] = ()
    owner_scope: int = ORGANIZATION
    rank: int = 0

    @property
    def plural(self) -> str:
        return f"{self.word}s"

    @property
    def package(self) -> str:
        return f"ai.stigmer.agentic.{self.name.lower()}.v1"

    @property
    def message(self) -> type[Message]:
        """The generated class of the resource."""
        module = importlib.import_module(f"{self.package}.api_pb2")
        found: type[Message] = getattr(module, self.name)
        return found

    def command(self, method: str) -> MethodDescriptor | None:
        """A method of the command service; None when the kind has none of the name."""
        return _service(self.package, "command_pb2", f"{self.name}CommandController").methods_by_name.get(
            method
        )

    def query(self, method: str) -> MethodDescriptor | None:
        """A method of the query service; None when the kind has none of the name."""
        service = _service(self.package, "query_pb2", f"{self.name}QueryController")
        return service.methods_by_name.get(method)

    def is_id(self, text: str) -> bool:
        """Whether text has the form of an id of the kind, `agt-01…` or `agt_01…`."""
        prefix, rest = text[: len(self.id_prefix) + 1], text[len(self.id_prefix) + 1 :]
        return prefix in (f"{self.id_prefix}-", f"{self.id_prefix}_") and len(rest) == 26 and rest.isalnum()


@cache
def _service(package: str, module: str, name: str) -> ServiceDescriptor:
    loaded: Any = importlib.import_module(f"{package}.{module}")
    found: ServiceDescriptor = loaded.DESCRIPTOR.services_by_name[name]
    return found


AGENT = Kind("Agent", 40, "agt", "agent", ("ag",), rank=2)
INSTANCE = Kind("AgentInstance", 45, "ain", "instance", ("agentinstance", "ain"), rank=3)
SESSION = Kind("Session", 42, "ses", "session", ("ses",), rank=4)
EXECUTION = Kind(
    "AgentExecution", 41, "aex", "execution", ("agentexecution", "ex", "run"), owner_scope=0, rank=5
)
ENVIRONMENT = Kind("Environment", 53, "env", "environment", ("env",))
SKILL = Kind("Skill", 43, "skl", "skill", ("sk",))
MCP_SERVER = Kind("McpServer", 44, "mcp", "mcpserver", ("mcp",))
CONTEXT = Kind("ExecutionContext", 54, "exec", "context", ("executioncontext", "ctx"), owner_scope=0, rank=6)

KINDS = (AGENT, INSTANCE, SESSION, EXECUTION, ENVIRONMENT, SKILL, MCP_SERVER, CONTEXT)


def kind_named(text: str) -> Kind:
    """The kind a person means: `agent`, `agents`, `ag` or `Agent`, in any case.

    Raises:
        InvalidRequestError: there is none; close matches are in the message.
    """
    wanted = text.lower().replace("_", "").replace("-", "")
    for kind in KINDS:
        names = (kind.word, kind.name.lower(), *kind.aliases)
        if wanted in names or wanted in {f"{name}s" for name in names}:
            return kind
    from difflib import get_close_matches

    close = get_close_matches(wanted, [kind.plural for kind in KINDS], n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(k.plural for k in KINDS)}."
    raise InvalidRequestError.of("kind", f"{text!r} is no kind of resource. {hint}")


def kind_of(resource: Message) -> Kind:
    """The kind a message is of.

    Raises:
        InvalidRequestError: it is no resource.
    """
    for kind in KINDS:
        if resource.DESCRIPTOR.full_name == f"{kind.package}.{kind.name}":
            return kind
    raise InvalidRequestError.of("kind", f"{resource.DESCRIPTOR.full_name} is no resource.")


def canonical_id(text: str) -> str:
    """An id as the server writes it: `_` is accepted after the prefix, case does not matter."""
    return text.lower().replace("_", "-", 1)
