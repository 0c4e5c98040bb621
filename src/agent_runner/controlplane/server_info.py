"""`agent_runner.v1.ServerService`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from agent_runner.services.container import Services
from agent_runner.v1.server_service_pb2 import (
    GetMetricsRequest,
    GetMetricsResponse,
    GetServerInfoRequest,
    GetServerInfoResponse,
    Metric,
    MetricSample,
)

_PATIENCE = 2.0
"""Seconds Temporal and the database get to answer before they count as away."""


class ServerController:
    """What this server is and whether it is well."""

    def __init__(self, services: Services, version: str, temporal_address: str, database: str = "") -> None:
        self._workflows = services.workflows
        self._metrics = services.metrics
        self._health = services.health
        self._version = version
        self._temporal_address = temporal_address
        self._database = database
        self._started_at = datetime.now(UTC)

    async def get_server_info(self, request: GetServerInfoRequest) -> GetServerInfoResponse:
        reachable, problem = await asyncio.gather(self._temporal_reachable(), self._health.problem(_PATIENCE))
        return GetServerInfoResponse(
            version=self._version,
            temporal_address=self._temporal_address,
            temporal_reachable=reachable,
            database=self._database,
            database_problem=problem,
            started_at=self._started_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        )

    async def get_metrics(self, request: GetMetricsRequest) -> GetMetricsResponse:
        return GetMetricsResponse(
            metrics=[
                Metric(
                    name=metric.name,
                    help=metric.help,
                    counter=metric.counter,
                    samples=[MetricSample(labels=labels, value=value) for labels, value in metric.samples],
                )
                for metric in await self._metrics.metrics()
            ]
        )

    async def _temporal_reachable(self) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._workflows.reachable()
        except TimeoutError:
            return False
