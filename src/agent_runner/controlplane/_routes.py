"""Every service of the API, and which controller answers it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor

from agent_runner.controlplane._rpc import Methods, Streams, rpc_service
from agent_runner.controlplane.agent_instances import AgentInstanceController
from agent_runner.controlplane.executions import ExecutionController
from agent_runner.controlplane.resources import ResourceController, resource_methods
from agent_runner.controlplane.server_info import ServerController
from agent_runner.controlplane.sessions import SessionController
from agent_runner.controlplane.skills import SkillController
from agent_runner.controlplane.tool_results import ToolResultController
from agent_runner.controlplane.variables import VariableController
from agent_runner.controlplane.workspaces import WorkspaceController
from agent_runner.services.container import Services
from agent_runner.v1 import (
    execution_service_pb2,
    resource_service_pb2,
    runner_service_pb2,
    server_service_pb2,
    skill_service_pb2,
    workspace_service_pb2,
)
from ai.stigmer.agentic.agent.v1 import command_pb2 as agent_command
from ai.stigmer.agentic.agent.v1 import query_pb2 as agent_query
from ai.stigmer.agentic.agentexecution.v1 import command_pb2 as execution_command
from ai.stigmer.agentic.agentexecution.v1 import query_pb2 as execution_query
from ai.stigmer.agentic.agentinstance.v1 import command_pb2 as instance_command
from ai.stigmer.agentic.agentinstance.v1 import query_pb2 as instance_query
from ai.stigmer.agentic.environment.v1 import command_pb2 as environment_command
from ai.stigmer.agentic.environment.v1 import query_pb2 as environment_query
from ai.stigmer.agentic.executioncontext.v1 import command_pb2 as context_command
from ai.stigmer.agentic.executioncontext.v1 import query_pb2 as context_query
from ai.stigmer.agentic.mcpserver.v1 import command_pb2 as mcp_command
from ai.stigmer.agentic.mcpserver.v1 import query_pb2 as mcp_query
from ai.stigmer.agentic.session.v1 import command_pb2 as session_command
from ai.stigmer.agentic.session.v1 import query_pb2 as session_query
from ai.stigmer.agentic.skill.v1 import command_pb2 as skill_command
from ai.stigmer.agentic.skill.v1 import query_pb2 as skill_query


class Routes:
    """The services to register."""

    def __init__(self, services: Services, server: ServerController, slow_after: timedelta) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []
        self.names: list[str] = []
        self._slow_after = slow_after
        self._add_resources(services)
        self._add_ours(services, server)

    def _add_resources(self, services: Services) -> None:
        instances = AgentInstanceController(services.agent_instances)
        sessions = SessionController(services.sessions)
        executions = ExecutionController(services.executions, services.watches)
        skills = SkillController(services.skills)
        self._add((agent_command, agent_query), resource_methods(services.agents))
        self._add(
            (instance_command, instance_query),
            {**resource_methods(services.agent_instances), "getByAgent": instances.get_by_agent},
        )
        self._add(
            (session_command, session_query),
            {
                **resource_methods(services.sessions),
                "list": sessions.list,
                "listByAgent": sessions.list_by_agent,
            },
        )
        self._add(
            (execution_command, execution_query),
            {
                **resource_methods(services.executions),
                "updateStatus": services.executions.update_status,
                "list": executions.list,
                "listBySession": executions.list_by_session,
            },
            {"subscribe": executions.subscribe},
        )
        self._add((environment_command, environment_query), resource_methods(services.environments))
        self._add((context_command, context_query), resource_methods(services.execution_contexts))
        self._add((mcp_command, mcp_query), resource_methods(services.mcp_servers))
        self._add(
            (skill_command, skill_query),
            {
                **resource_methods(services.skills),
                "push": skills.push,
                "getArtifact": skills.get_artifact,
            },
        )

    def _add_ours(self, services: Services, server: ServerController) -> None:
        executions = ExecutionController(services.executions, services.watches)
        variables = VariableController(services.variables, services.keys)
        results = ToolResultController(services.results)
        self.handlers.append(results.upload_handler())
        self._add(
            (execution_service_pb2,),
            {
                "CancelExecution": executions.cancel,
                "TerminateExecution": executions.terminate,
                "PauseExecution": executions.pause,
                "ResumeExecution": executions.resume,
            },
            {"WatchExecution": executions.watch, "GetToolResult": results.get},
        )
        self._add(
            (runner_service_pb2,),
            {
                "StartAttempt": services.events.start_attempt,
                "AppendEvents": services.events.append,
                "ResolveEnvironment": variables.resolve,
            },
        )
        skills = SkillController(services.skills)
        self._add(
            (skill_service_pb2,),
            {
                "ListSkillVersions": skills.list_versions,
                "RollbackSkill": skills.rollback,
                "DeleteSkill": skills.delete,
            },
            {"GetArtifact": skills.stream_artifact},
        )
        self.handlers.append(skills.push_handler())
        files = WorkspaceController(services.workspaces)
        self._add((workspace_service_pb2,), {"ListFiles": files.list}, {"DownloadFile": files.download})
        self.handlers.extend(files.handlers())
        self._add((resource_service_pb2,), {"ListResources": ResourceController(services).list_resources})
        self._add(
            (server_service_pb2,),
            {
                "GetServerInfo": server.get_server_info,
                "GetMetrics": server.get_metrics,
                "RotateKeys": variables.rotate_keys,
            },
        )

    def _add(
        self,
        modules: Sequence[Any],
        methods: Methods,
        streams: Streams | None = None,
    ) -> None:
        for module in modules:
            file: FileDescriptor = module.DESCRIPTOR
            service: ServiceDescriptor
            for service in file.services_by_name.values():
                self.handlers.append(rpc_service(service, methods, streams, slow_after=self._slow_after))
                self.names.append(service.full_name)
