"""Prometheus metrics over HTTP: a service's own collector, read when somebody asks, on the event loop that owns what it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from smoa.errors import FailedPrecondition, InvalidArgument

ANSWER_S: Final = 10.0
"""A loop that is busy for longer answers no scrape."""


class _OnLoop(Collector):
    """What a registry has, collected on the loop: the HTTP server asks from threads of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry, self._loop = registry, asyncio.get_running_loop()

    def collect(self) -> list[Metric]:
        """See `prometheus_client`."""

        async def collected() -> list[Metric]:
            return list(self._registry.collect())

        return asyncio.run_coroutine_threadsafe(collected(), self._loop).result(ANSWER_S)


@asynccontextmanager
async def serve_metrics(address: str, registry: CollectorRegistry) -> AsyncIterator[int]:
    """Answer `GET /metrics` on `host:port` while inside; yields the port (of use when 0 was asked for). An empty address serves nothing.

    Raises:
        InvalidArgument: an address that is not `host:port`.
        FailedPrecondition: it is taken.
    """
    if not address:
        yield 0
        return
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not host:
        raise InvalidArgument("metrics_address", f"{address!r} is not host:port", "write 0.0.0.0:9464, or leave it empty for none")
    on_loop = CollectorRegistry(support_collectors_without_names=True)
    on_loop.register(_OnLoop(registry))
    try:
        server, thread = start_http_server(int(port), host, on_loop)
    except OSError as error:
        raise FailedPrecondition(f"metrics_address: cannot listen on {address} ({error}); choose another or stop its owner") from error
    try:
        yield server.server_port
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()
