"""Prometheus metrics over HTTP: a service's own collector, read when somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, start_http_server

from smoa.errors import FailedPrecondition, InvalidArgument


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
    try:
        server, thread = start_http_server(int(port), host, registry)
    except OSError as error:
        raise FailedPrecondition(f"metrics_address: cannot listen on {address} ({error}); choose another or stop its owner") from error
    try:
        yield server.server_port
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()
