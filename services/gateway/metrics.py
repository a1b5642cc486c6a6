"""The gateway's metrics, as Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from smoa.executor_calls import ExecutorCalls

_SECONDS = tuple(round(0.001 * 1.5**step, 6) for step in range(36))  # 1 ms to 24 minutes


@dataclass
class Told:
    """How a request ended."""

    status: str = "gone"


class GatewayMetrics(Collector):
    """Requests by path and status, and how long they took."""

    def __init__(self, executors: ExecutorCalls) -> None:
        self._executors = executors
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._requests = Counter(
            "smoa_gateway_requests",
            "Requests that ended, by their status; `gone`: the caller went away.",
            ["path", "status"],
            registry=self.registry,
        )
        self._running = Gauge("smoa_gateway_running_requests", "Requests that are being answered.", registry=self.registry)
        self._seconds = Histogram(
            "smoa_gateway_request_seconds", "A request until its answer's end.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self.first_seconds = Histogram(
            "smoa_gateway_first_token_seconds", "A request until its answer's first text.", buckets=_SECONDS, registry=self.registry
        )
        self.routed_by_envoy = Counter(
            "smoa_gateway_processed", "Requests that Envoy had routed, by how: routed, passed, refused.", ["how"], registry=self.registry
        )

    @contextmanager
    def request(self, path: str) -> Iterator[Told]:
        """Around a request; what is yielded is told how it ended."""
        told, began_s = Told(), time.monotonic()
        self._running.inc()
        try:
            yield told
        finally:
            self._running.dec()
            self._requests.labels(path, told.status).inc()
            self._seconds.labels(path).observe(time.monotonic() - began_s)

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client`."""
        yield CounterMetricFamily(
            "smoa_gateway_moved", "Requests that another executor answered than the first that was asked.", self._executors.moved
        )
