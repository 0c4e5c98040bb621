"""Variables in clear for runners, and the keys that keep secret ones."""

from __future__ import annotations

from agent_runner.services.environments import ExecutionEnvironments
from agent_runner.services.key_rotation import KeyRotation
from agent_runner.services.validation import validate
from agent_runner.v1.runner_service_pb2 import ResolveEnvironmentRequest, ResolveEnvironmentResponse
from agent_runner.v1.server_service_pb2 import RotateKeysRequest, RotateKeysResponse


class VariableController:
    """`RunnerService/ResolveEnvironment` and `ServerService/RotateKeys`."""

    def __init__(self, variables: ExecutionEnvironments, keys: KeyRotation) -> None:
        self._variables = variables
        self._keys = keys

    async def resolve(self, request: ResolveEnvironmentRequest) -> ResolveEnvironmentResponse:
        validate(request)
        return await self._variables.resolve(request.execution_id, request.attempt, request.token)

    async def rotate_keys(self, request: RotateKeysRequest) -> RotateKeysResponse:
        done = await self._keys.run()
        return RotateKeysResponse(
            rotated=done.rotated,
            current_key_id=self._keys.current_key_id,
            left=dict(done.left),
            unreadable=done.unreadable[:100],
        )
