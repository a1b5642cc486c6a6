"""Prometheus metrics over HTTP: a service's own collector, read on the event loop that owns what it reads, by who may operate it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from smoa.access.access import NAMES, Access
from smoa.access.settings import CallersSettings
from smoa.access.tls import ServerTls
from smoa.errors import FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated

ROUTES: Final = {"/metrics": frozenset({"operate"})}
"""What is answered, and the roles for it, where callers are known."""
MAX_READERS: Final = 8
"""Scrapes that are answered at once."""
_REQUEST_BYTES: Final = 4096


class _Read:
    """An HTTP request, as `Access` asks about calls."""

    def __init__(self, request: web.Request) -> None:
        self._request = request

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """Its headers."""
        return [(name.lower(), value) for name, value in self._request.headers.items()]

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Of its certificate."""
        transport = self._request.transport
        certificate: Any = transport.get_extra_info("peercert") if transport is not None else None
        names = (certificate or {}).get("subjectAltName", ())
        return {NAMES: [value.encode() for _, value in names]}


class _Whole(Collector):
    """All that a registry has. In a registry of its own, for those only look at names that collectors said before they were read."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client`."""
        return self._registry.collect()


class _Metrics:
    """Answers `GET /metrics`."""

    def __init__(self, registry: CollectorRegistry, access: Access) -> None:
        self._registry, self._access, self._reading = CollectorRegistry(support_collectors_without_names=True), access, 0
        self._registry.register(_Whole(registry))

    async def answer(self, request: web.Request) -> web.Response:
        """What the registry has now, of the names that were asked for."""
        try:
            await self._access.admit_to(request.path, ROUTES[request.path], _Read(request))
        except Unauthenticated as error:
            return web.Response(status=401, text=f"{error}\n", headers={"WWW-Authenticate": "Bearer"})
        except PermissionDenied as error:
            return web.Response(status=403, text=f"{error}\n")
        if self._reading >= MAX_READERS:
            return web.Response(status=429, text=f"metrics: {MAX_READERS} are read at once; wait a moment\n")
        self._reading += 1
        try:
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
            names = request.query.getall("name[]", [])
            registry: Any = self._registry.restricted_registry(names) if names else self._registry
            return web.Response(body=encode(registry), headers={"Content-Type": content_type})
        finally:
            self._reading -= 1


@asynccontextmanager
async def serve_metrics(address: str, registry: CollectorRegistry, settings: CallersSettings | None = None) -> AsyncIterator[int]:
    """Answer `GET /metrics` on `host:port` while inside; yields the port (of use when 0 was asked for). An empty address serves nothing.

    TLS, and who may read, are what the settings say of the service's calls.

    Raises:
        InvalidArgument: an address that is not `host:port`.
        FailedPrecondition: it is taken, or others than this machine could reach it and nobody would ask them who they are.
    """
    if not address:
        yield 0
        return
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not host:
        raise InvalidArgument("metrics_address", f"{address!r} is not host:port", "write 0.0.0.0:9464, or leave it empty for none")
    settings = settings or CallersSettings()
    access, tls = Access.of(settings), ServerTls.of(settings)
    access.check_address("metrics_address", address, "read there", insecure=settings.insecure)
    application = web.Application(client_max_size=0)
    application.add_routes([web.get(path, _Metrics(registry, access).answer, allow_head=False) for path in ROUTES])
    runner = web.AppRunner(
        application,
        access_log=None,
        keepalive_timeout=30.0,
        shutdown_timeout=1.0,
        max_line_size=_REQUEST_BYTES,
        max_field_size=3 * _REQUEST_BYTES,  # a token is in one
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host.strip("[]"), int(port), ssl_context=tls.context() if tls is not None else None)
        try:
            await site.start()
        except OSError as error:
            raise FailedPrecondition(f"metrics_address: cannot listen on {address} ({error}); choose another or stop its owner") from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
        await access.close()
