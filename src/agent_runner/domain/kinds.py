"""The kinds of resources, in one table. What differs between kinds stands here or in their service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.agentic.executioncontext.v1.api_pb2 import ExecutionContext
from ai.stigmer.agentic.mcpserver.v1.api_pb2 import McpServer
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.agentic.skill.v1.api_pb2 import Skill

API_VERSION: Final = "agentic.stigmer.ai/v1"

Resource: TypeAlias = (
    Agent | AgentExecution | AgentInstance | Environment | ExecutionContext | McpServer | Session | Skill
)
R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class KindSpec(Generic[R]):
    """What the services need to know of one kind.

    Attributes:
        number: its `ApiResourceKind`.
        name: the enum value's name, which also is the kind in the store: `agent_execution`.
        kind: the `kind` field of its resources: `AgentExecution`.
        message: the class of its resources.
        id_prefix: what ids begin with, before `-`.
        unique_slugs: whether a slug may be there once per organization.
        updatable: False for resources which are made once and never changed.
        reference_kinds: `ApiResourceKind` numbers by which references name this kind; 0 is leaving it out.
    """

    number: int
    name: str
    kind: str
    message: type[R]
    id_prefix: str
    unique_slugs: bool = True
    updatable: bool = True
    reference_kinds: frozenset[int] = frozenset()

    def accepts_reference(self, kind: int) -> bool:
        """Whether a reference with this kind can mean a resource of ours."""
        return kind in (0, self.number) or kind in self.reference_kinds


AGENT: Final = KindSpec(40, "agent", "Agent", Agent, "agt")
AGENT_EXECUTION: Final = KindSpec(
    41,
    "agent_execution",
    "AgentExecution",
    AgentExecution,
    "aex",
    unique_slugs=False,
)
SESSION: Final = KindSpec(42, "session", "Session", Session, "ses")
SKILL: Final = KindSpec(43, "skill", "Skill", Skill, "skl")
MCP_SERVER: Final = KindSpec(44, "mcp_server", "McpServer", McpServer, "mcp")
AGENT_INSTANCE: Final = KindSpec(45, "agent_instance", "AgentInstance", AgentInstance, "ain")
ENVIRONMENT: Final = KindSpec(
    # 52 is what the Stigmer server wants in references to environments, by mistake.
    53,
    "environment",
    "Environment",
    Environment,
    "env",
    reference_kinds=frozenset({52}),
)
EXECUTION_CONTEXT: Final = KindSpec(
    54, "execution_context", "ExecutionContext", ExecutionContext, "exec", updatable=False
)

KINDS: Final[tuple[KindSpec[Any], ...]] = (
    AGENT,
    AGENT_INSTANCE,
    SESSION,
    AGENT_EXECUTION,
    ENVIRONMENT,
    EXECUTION_CONTEXT,
    SKILL,
    MCP_SERVER,
)
