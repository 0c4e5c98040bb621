"""An execution's variables over gRPC."""

from __future__ import annotations

from agent_runner.client.channels import Channel
from agent_runner.client.errors import UnsupportedError
from agent_runner.ports.environments import ResolvedEnvironment
from agent_runner.v1.runner_service_pb2 import ResolveEnvironmentRequest, ResolveEnvironmentResponse

_RESOLVE = "/agent_runner.v1.RunnerService/ResolveEnvironment"


class GrpcEnvironmentResolver:
    """Asks our control plane; a server of the Stigmer API alone does not know the call."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def resolve(self, execution_id: str, attempt: int, token: str) -> ResolvedEnvironment | None:
        request = ResolveEnvironmentRequest(execution_id=execution_id, attempt=attempt, token=token)
        try:
            answer = await self._channel.unary(_RESOLVE, request, ResolveEnvironmentResponse)
        except UnsupportedError:
            return None
        return ResolvedEnvironment(
            values={variable.name: variable.value for variable in answer.variables},
            secret_names=frozenset(variable.name for variable in answer.variables if variable.is_secret),
            missing=tuple(answer.missing),
            mcp_servers={server.name: server.spec for server in answer.mcp_servers},
        )
