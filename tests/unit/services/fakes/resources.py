"""Requests as a client would make them."""

from __future__ import annotations

from typing import Any

from agent_runner.domain.kinds import API_VERSION
from agent_runner.v1.events_pb2 import (
    ExecutionEvent,
    MessageCompleted,
    MessageDelta,
    MessageStarted,
    PhaseChanged,
    ToolCallCompleted,
    ToolCallStarted,
)
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.api_pb2 import AgentExecution
from ai.stigmer.agentic.agentexecution.v1.enum_pb2 import (
    EXECUTION_COMPLETED,
    EXECUTION_FAILED,
    EXECUTION_IN_PROGRESS,
    MESSAGE_AI,
)
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.agentic.executioncontext.v1.api_pb2 import ExecutionContext
from ai.stigmer.agentic.mcpserver.v1.api_pb2 import McpServer
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.commons.apiresource.enum_pb2 import organization, platform


def agent(name: str = "Helper", *, org: str = "acme", scope: int = organization) -> Agent:
    made = Agent(api_version=API_VERSION, kind="Agent")
    made.metadata.name, made.metadata.org, made.metadata.owner_scope = name, org, scope  # type: ignore[assignment]
    made.spec.instructions = "Help with whatever comes."
    return made


def platform_agent(name: str = "Shared") -> Agent:
    return agent(name, org="", scope=platform)


def instance(agent_id: str, name: str = "second") -> AgentInstance:
    made = AgentInstance(api_version=API_VERSION, kind="AgentInstance")
    made.metadata.name, made.metadata.org = name, "acme"
    made.spec.agent_id = agent_id
    return made


def session(instance_id: str, name: str = "talk") -> Session:
    made = Session(api_version=API_VERSION, kind="Session")
    made.metadata.name, made.metadata.org, made.metadata.owner_scope = name, "acme", organization
    made.spec.agent_instance_id = instance_id
    return made


def environment(name: str = "staging", **values: str) -> Environment:
    made = Environment(api_version=API_VERSION, kind="Environment")
    made.metadata.name, made.metadata.org, made.metadata.owner_scope = name, "acme", organization
    for key, value in values.items():
        made.spec.data[key].value = value
    return made


def context(name: str = "context") -> ExecutionContext:
    made = ExecutionContext(api_version=API_VERSION, kind="ExecutionContext")
    made.metadata.name = name
    made.spec.execution_id = "aex-1"
    return made


def mcp_server(name: str = "files") -> McpServer:
    made = McpServer(api_version=API_VERSION, kind="McpServer")
    made.metadata.name = name
    made.spec.stdio.command = "serve"
    return made


def execution(
    *, agent_id: str = "", session_id: str = "", message: str = "Hello", **spec: Any
) -> AgentExecution:
    made = AgentExecution(api_version=API_VERSION, kind="AgentExecution")
    made.metadata.name = "turn"
    made.spec.agent_id, made.spec.session_id, made.spec.message = agent_id, session_id, message
    for name, value in spec.items():
        setattr(made.spec, name, value)
    return made


IN_PROGRESS = ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_IN_PROGRESS))
COMPLETED = ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_COMPLETED))
FAILED = ExecutionEvent(phase_changed=PhaseChanged(phase=EXECUTION_FAILED, error="It broke."))


def says(message_id: str, text: str = "") -> ExecutionEvent:
    return ExecutionEvent(
        message_started=MessageStarted(message_id=message_id, type=MESSAGE_AI, content=text)
    )


def goes_on(message_id: str, text: str) -> ExecutionEvent:
    return ExecutionEvent(message_delta=MessageDelta(message_id=message_id, text=text))


def has_said(message_id: str) -> ExecutionEvent:
    return ExecutionEvent(message_completed=MessageCompleted(message_id=message_id))


def calls(call_id: str, name: str = "execute") -> ExecutionEvent:
    return ExecutionEvent(tool_call_started=ToolCallStarted(tool_call_id=call_id, name=name))


def called(call_id: str, result: str = "done") -> ExecutionEvent:
    return ExecutionEvent(tool_call_completed=ToolCallCompleted(tool_call_id=call_id, result=result))
