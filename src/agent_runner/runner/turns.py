"""What one turn is made of: whose message, which agent, with which variables, model and limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent_runner.domain import environments
from agent_runner.domain.encodings import SHORTEST
from agent_runner.domain.skill_prompts import with_skills
from agent_runner.errors import FailedPreconditionError
from agent_runner.ports.agents import SubAgentSpecification
from agent_runner.ports.environments import EnvironmentResolver, ResolvedEnvironment
from agent_runner.ports.mcp import McpTools
from agent_runner.ports.resource_readers import ResourceReader
from agent_runner.services.skill_loading import LoadedSkills
from agent_runner.v1.options_pb2 import Limits, ModelOptions
from ai.stigmer.agentic.agent.v1.api_pb2 import Agent
from ai.stigmer.agentic.agentexecution.v1.spec_pb2 import AgentExecutionSpec
from ai.stigmer.agentic.agentinstance.v1.api_pb2 import AgentInstance
from ai.stigmer.agentic.environment.v1.api_pb2 import Environment
from ai.stigmer.agentic.session.v1.api_pb2 import Session
from ai.stigmer.commons.apiresource.io_pb2 import ApiResourceReference

DEFAULT_INSTRUCTIONS = "You are a helpful assistant. Do what the user asks with the tools you have."


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything read that a turn needs.

    Attributes:
        session: empty for an execution that names only an agent.
        warnings: what the run goes on without.
    """

    session: Session
    agent: Agent
    environment: ResolvedEnvironment
    warnings: Sequence[str] = ()


async def plan(
    reader: ResourceReader,
    resolver: EnvironmentResolver | None,
    spec: AgentExecutionSpec,
    execution_id: str,
    attempt: int,
    token: str,
    learn: Callable[[ResolvedEnvironment], None],
) -> Plan:
    """Read session, instance, agent and variables.

    Args:
        learn: told the variables as soon as they are known, also when the rest fails.

    Raises:
        NotFoundError: one of them is gone.
        FailedPreconditionError: a variable the agent asks for has no value.
    """
    resolved, found = await asyncio.gather(
        _resolved(resolver, execution_id, attempt, token),
        _agent_of(reader, spec, ours=bool(token) and resolver is not None),
        return_exceptions=True,
    )
    if isinstance(resolved, BaseException):
        raise resolved
    if resolved is not None:
        learn(resolved)
    if isinstance(found, BaseException):
        raise found
    session, instance, agent = found
    if resolved is None:
        resolved = await _merged(reader, spec, instance, agent)
        learn(resolved)
    if resolved.missing:
        names = ", ".join(resolved.missing)
        raise FailedPreconditionError(
            f"Agent {agent.metadata.slug!r} needs a value for {names}. Set it in an environment of the "
            "instance, or give it with the execution."
        )
    return Plan(session, agent, resolved)


async def _agent_of(
    reader: ResourceReader, spec: AgentExecutionSpec, *, ours: bool
) -> tuple[Session, AgentInstance, Agent]:
    """Where the execution runs; without the instance where its environments are merged for us.

    Our own control plane does that, and has put the agent into the execution, which saves asking for one
    after the other.
    """
    if not spec.session_id:
        return Session(), AgentInstance(), await reader.agent(spec.agent_id)
    if ours and spec.agent_id:
        found = await asyncio.gather(reader.session(spec.session_id), reader.agent(spec.agent_id))
        return found[0], AgentInstance(), found[1]
    session = await reader.session(spec.session_id)
    instance = await reader.instance(session.spec.agent_instance_id)
    return session, instance, await reader.agent(instance.spec.agent_id)


async def _resolved(
    resolver: EnvironmentResolver | None, execution_id: str, attempt: int, token: str
) -> ResolvedEnvironment | None:
    return None if resolver is None else await resolver.resolve(execution_id, attempt, token)


async def _merged(
    reader: ResourceReader, spec: AgentExecutionSpec, instance: AgentInstance, agent: Agent
) -> ResolvedEnvironment:
    """Merged here, from a server of the Stigmer API, which gives values in clear."""
    layers = await _environments(reader, instance)
    merged = environments.resolve(
        agent.spec.env_spec.data,
        [(layer.metadata.slug, layer.spec.data) for layer in layers],
        spec.runtime_env,
    )
    return ResolvedEnvironment(merged.values, frozenset(merged.secrets), merged.missing)


async def _environments(reader: ResourceReader, instance: AgentInstance) -> Sequence[Environment]:
    """In the order of the references, read at once."""
    references = []
    for reference in instance.spec.environment_refs:
        own = ApiResourceReference()
        own.CopyFrom(reference)
        own.org = reference.org or instance.metadata.org
        own.ClearField("kind")  # 52 is stored by Stigmer's clients and refused by its own environment service
        references.append(own)
    return await asyncio.gather(*(reader.environment(reference) for reference in references))


def no_tools(agent: Agent) -> McpTools:
    """For a worker that opens no MCP servers."""
    names = [server.name for server in agent.spec.mcp_servers]
    return McpTools(
        warnings=[f"MCP servers are not connected by this runner: {', '.join(names)}."] if names else []
    )


def unmasked(plan: Plan) -> Sequence[str]:
    """A warning for secrets too short to be found in text."""
    values = plan.environment.values
    names = sorted(name for name in plan.environment.secret_names if 0 < len(values[name]) < SHORTEST)
    words = f"Secrets of fewer than {SHORTEST} characters are not masked in what people see"
    return [f"{words}: {', '.join(names)}."] if names else []


def no_skills(agent: Agent) -> LoadedSkills:
    """For a worker that has no way to them."""
    names = [reference.slug for reference in agent.spec.skill_refs]
    return LoadedSkills(
        warnings=[f"Skills are not loaded by this runner: {', '.join(names)}."] if names else []
    )


def instructions(agent: Agent, skills: LoadedSkills) -> str:
    """The system prompt: the agent's own, or one line where it has none, and its skills."""
    return with_skills(agent.spec.instructions.strip() or DEFAULT_INSTRUCTIONS, skills.sections.get("", ""))


def sub_agents(agent: Agent, skills: LoadedSkills, tools: McpTools) -> Sequence[SubAgentSpecification]:
    return [
        SubAgentSpecification(
            name=sub.name,
            description=sub.description or sub.name,
            instructions=with_skills(sub.instructions, skills.sections.get(sub.name, "")),
            tools=tools.for_sub_agent(
                sub.mcp_servers,
                {name: choice.enabled_tools for name, choice in sub.mcp_tool_selections.items()},
            ),
        )
        for sub in agent.spec.sub_agents
    ]


def model_wishes(spec: AgentExecutionSpec, agent: Agent, pinned: str = "") -> Sequence[ModelOptions]:
    """What was asked for, the strongest first: by the execution, then by the agent.

    Args:
        pinned: the model an earlier attempt ran with. It is kept, whatever has changed since: the
            conversation so far is that model's, and another worker may have another default.
    """
    config = spec.execution_config
    named = [config.options.model, ModelOptions(model_name=config.model_name), agent.spec.options.model]
    return [ModelOptions(model_name=pinned), *named]


def limits(spec: AgentExecutionSpec, agent: Agent) -> Limits:
    """Per kind the execution's limit, else the agent's."""
    merged = Limits()
    merged.CopyFrom(agent.spec.options.limits)
    merged.MergeFrom(spec.execution_config.options.limits)
    return merged
