"""Metrics as Prometheus reads them: the server's own, and those of the process."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent_runner.v1.server_service_pb2 import GetMetricsResponse

PREFIX = "agent_runner"
CONTENT_TYPE = CONTENT_TYPE_LATEST


def as_text(answer: GetMetricsResponse) -> bytes:
    """The exposition format 0.0.4."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(_Answer(answer))
    return generate_latest(registry)


class _Answer(Collector):
    def __init__(self, answer: GetMetricsResponse) -> None:
        self._answer = answer

    def collect(self) -> Iterable[Metric]:
        for metric in self._answer.metrics:
            labels = sorted({name for sample in metric.samples for name in sample.labels})
            kind = CounterMetricFamily if metric.counter else GaugeMetricFamily
            family = kind(f"{PREFIX}_{metric.name}", metric.help, labels=labels)
            for sample in metric.samples:
                family.add_metric([sample.labels[name] for name in labels], sample.value)
            yield family
