"""Composition root of the gateway."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import Final

import grpc

from services.gateway.api.application import Application
from services.gateway.api.requests import Defaults
from services.gateway.http_server import HttpServer
from services.gateway.metrics import GatewayMetrics
from services.gateway.serving.answering import Answering
from services.gateway.serving.router_calls import CONNECTIONS, RouterCalls
from services.gateway.settings import GatewaySettings
from smoa.access.access import Access
from smoa.access.channels import Channels
from smoa.access.places import Places
from smoa.access.tls import ServerTls
from smoa.errors import InvalidArgument
from smoa.executor_calls import CHANNEL_OPTIONS, OWN_CONNECTION, ExecutorCalls
from smoa.publisher import EventPublisher
from smoa.rpc import RpcServer
from smoa.spool import Spool
from smoa.v1 import router_pb2_grpc

_PROCESSED_BYTES: Final = 64 * 2**20
"""Envoy may send what it has of a body in one message, however much that is: what is too large is refused then, and not cut off."""
_log = logging.getLogger(__name__)


class Gateway:
    """The servers that run."""

    def __init__(self, http: HttpServer, processor: RpcServer | None) -> None:
        self.http, self.processor = http, processor

    async def ready(self) -> None:
        """It is, as soon as it listens: what it needs may come and go."""
        if self.processor is not None:
            await self.processor.ready()


async def build(settings: GatewaySettings, stack: AsyncExitStack) -> Gateway:
    """Make every part, start it, and leave its end on the stack.

    Raises:
        InvalidArgument, FailedPrecondition: a setting's bad value, or an address that is taken.
    """
    if settings.when_router_is_away not in ("refuse", "pass"):
        raise InvalidArgument("SMOA_GATEWAY_WHEN_ROUTER_IS_AWAY", f"{settings.when_router_is_away!r} is unknown", "use refuse or pass")
    access = Access.of(settings)
    stack.push_async_callback(access.close)
    access.check_address("SMOA_GATEWAY_ADDRESS", settings.address, "call", insecure=settings.insecure)
    channels = Channels()

    def connection(address: str) -> grpc.aio.Channel:
        return channels.to(address, (*CHANNEL_OPTIONS, OWN_CONNECTION))

    own, *for_callers = (connection(settings.router) for _ in range(1 + CONNECTIONS))
    for one in (own, *for_callers):
        stack.push_async_callback(one.close)
    router = RouterCalls(for_callers, settings.route_timeout_s)
    executors = ExecutorCalls(router_pb2_grpc.RouterServiceStub(own), connection, settings.route_timeout_s)
    stack.push_async_callback(executors.close)
    metrics = GatewayMetrics(executors)
    passes = settings.when_router_is_away == "pass"
    answering = Answering(
        router,
        executors,
        base_model=settings.base_model,
        passes=passes,
        timeout_s=settings.timeout_s,
    )

    async def ready() -> None:
        if settings.base_model_name:  # the engines behind Envoy may be no executors of ours
            if not passes:
                await executors.listed()
        else:
            await executors.check(passes=passes)

    bodies = Places.shared(settings.held_body_bytes, "bytes of bodies", asks=access.asks)
    application = Application(
        router,
        answering,
        metrics,
        access=access,
        places=Places.shared(settings.max_calls, asks=access.asks),
        bodies=bodies,
        defaults=Defaults(max_tokens=settings.max_tokens, temperature=settings.temperature),
        max_body_bytes=settings.max_body_bytes,
        timeout_s=settings.timeout_s,
        ready=ready,
    )
    http = HttpServer(application.asgi, settings.address, ServerTls.of(settings), settings.drain_s)
    processor = await _processor(settings, answering, access, bodies, metrics, stack) if settings.envoy_address else None
    await http.start()
    stack.push_async_callback(http.stop)
    _log.info("serving on port %d", http.port)
    return Gateway(http, processor)


async def _processor(
    settings: GatewaySettings, answering: Answering, access: Access, bodies: Places, metrics: GatewayMetrics, stack: AsyncExitStack
) -> RpcServer:
    """Serve Envoy: the callers are known by their requests' headers, and its own connection by TLS if that is asked for."""
    from envoy.service.ext_proc.v3.external_processor_pb2 import DESCRIPTOR
    from envoy.service.ext_proc.v3.external_processor_pb2_grpc import add_ExternalProcessorServicer_to_server

    from services.gateway.envoy.processor import Processor

    publisher = EventPublisher(settings.kafka, Spool(settings.data_folder / "spool", settings.spool_bytes))
    await publisher.start()
    stack.push_async_callback(publisher.stop, settings.drain_s)
    server = RpcServer.of(settings.envoy_address, settings, max_message_bytes=_PROCESSED_BYTES)
    processor = Processor(
        answering,
        access,
        metrics,
        publisher.publish,
        places=Places(settings.max_calls, settings.max_calls),
        bodies=bodies,
        base_model_name=settings.base_model_name,
        passes=settings.when_router_is_away == "pass",
        max_body_bytes=settings.max_body_bytes,
    )
    add_ExternalProcessorServicer_to_server(processor, server.server)
    server.serves(*DESCRIPTOR.services_by_name.values())
    await server.start()
    stack.push_async_callback(server.stop)
    return server
