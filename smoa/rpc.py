"""A gRPC server's life: health, readiness, and a drain in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from smoa.access.access import Access
from smoa.access.audit import Audit
from smoa.access.calls import CallInterceptor
from smoa.access.places import Places
from smoa.access.rates import Rate, Rates
from smoa.access.settings import AccessSettings
from smoa.access.tls import ServerTls
from smoa.errors import FailedPrecondition
from smoa.tasks import end

_log = logging.getLogger(__name__)
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_CALLS = 1000
_COUNT_OPEN = ("grpc.http.overload_protection", 0)
"""Else gRPC counts calls that have ended for their client against its limit, and refuses at random one that keeps to it."""
LIVE = "live"
"""Health's name for "the process answers", whatever it needs may be away: restarting it would not bring that back."""


class RpcServer:
    """A `grpc.aio` server with health. Not serving until `ready()`; `stop()` refuses new calls, then lets running ones end."""

    def __init__(
        self,
        address: str,
        max_calls: int = MAX_CALLS,
        *,
        share_address: bool = False,
        access: Access | None = None,
        tls: ServerTls | None = None,
        insecure: bool = False,
        health_address: str = "",
        streams: int = 0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        audit: Audit | None = None,
        rates: Rates | None = None,
    ) -> None:
        """`streams` are the calls at once on one connection (0: any number); more wait at their client, and not here.

        Without `access` that asks, it listens on loopback only, unless `insecure` says that this is wanted.
        """
        self._access, self._tls, self._insecure = access or Access(), tls, insecure
        self.audit = audit or Audit(lambda *_: None)
        places = Places.shared(max_calls, asks=self._access.asks)
        self.server = grpc.aio.server(
            interceptors=[CallInterceptor(self._access, places, self.audit, rates or Rates(Rate("calls", 0.0), Rate("changes", 0.0)))],
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.so_reuseport", int(share_address)),
                *([("grpc.max_concurrent_streams", streams), _COUNT_OPEN] if streams else []),
            ],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self._address, self._health_address = address, health_address
        self._probed = grpc.aio.server() if health_address else None
        """Answers health checks only."""
        if self._probed is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probed)
        self._loading: asyncio.Task[None] | None = None
        self.port = 0

    def serves(self, *services: ServiceDescriptor) -> None:
        """Tell who asks what the contracts of its services are (gRPC server reflection): `grpcurl` needs no files then."""
        names = [service.full_name for service in services]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self.server)

    async def start(self) -> None:
        """Bind and listen; health answers NOT_SERVING until `ready`.

        Raises:
            FailedPrecondition: the address is taken, or others than this machine could reach it and nobody would ask them who they are.
        """
        self._access.check_address("address", self._address, "call", insecure=self._insecure)
        try:
            if self._tls is not None:
                self.port = self.server.add_secure_port(self._address, self._tls.credentials())
            else:
                self.port = self.server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise FailedPrecondition(f"address: cannot listen on {self._address} ({error}); choose another or stop its owner") from error
        if self._probed is not None:
            try:
                self._probed.add_insecure_port(self._health_address)
            except RuntimeError as error:
                raise FailedPrecondition(f"health_address: cannot listen on {self._health_address} ({error}); choose another") from error
            await self._probed.start()
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        await self.server.start()

    def load(self, work: Coroutine[Any, Any, None]) -> None:
        """Work that has to be done before it is ready; calls are answered meanwhile, as well as can be."""
        self._loading = asyncio.create_task(work, name="loading")

    async def ready(self) -> None:
        """Every part has said that it is ready, or does so soon."""
        if self._loading is not None:
            await asyncio.shield(self._loading)
        await self._set(health_pb2.HealthCheckResponse.SERVING)
        _log.info("serving on port %d", self.port)

    async def unready(self) -> None:
        """Something it needs is away; calls are still answered as well as can be."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float = 10.0) -> None:
        """Drain."""
        if self._loading is not None:
            await end(self._loading)
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)
        self.audit.tell()
        if self._probed is not None:
            await self._probed.stop(0)
        await self._access.close()

    @classmethod
    def of(
        cls,
        address: str,
        settings: AccessSettings,
        *,
        share_address: bool = False,
        streams: int = 0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        audit: Audit | None = None,
    ) -> RpcServer:
        """As the settings say.

        Raises:
            InvalidArgument, FailedPrecondition: settings that contradict each other, or files that cannot be read.
        """
        return cls(
            address,
            settings.max_calls,
            share_address=share_address,
            access=Access.of(settings),
            tls=ServerTls.of(settings),
            insecure=settings.insecure,
            health_address=settings.health_address,
            streams=streams,
            max_message_bytes=max_message_bytes,
            audit=audit,
            rates=Rates(Rate("calls", settings.calls_per_s), Rate("changes", settings.changes_per_s)),
        )

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        await self._health.set("", status)


def stop_event() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    return stopped


def keep_what_is_there() -> None:
    """Have the garbage collector pass over all that has been loaded by now, most of which stays: to look through it took 70 ms, each time
    that a few thousand objects had come.
    """
    gc.collect()
    gc.freeze()


class Serving(Protocol):
    """What a service runs."""

    async def ready(self) -> None:
        """Returns when every part has said that it is ready."""


async def serve(build: Callable[[AsyncExitStack], Awaitable[Serving]]) -> None:
    """Run a service: build its parts on a stack, say ready, wait for a signal, unwind the stack in reverse order."""
    async with AsyncExitStack() as stack:
        server = await build(stack)
        stopped = stop_event()  # only now: while it loads a model, a signal ends the process as it ends any other
        waiting, saying = (asyncio.ensure_future(one) for one in (stopped.wait(), server.ready()))
        try:
            await asyncio.wait({waiting, saying}, return_when=asyncio.FIRST_COMPLETED)
            if saying.done():
                saying.result()
                keep_what_is_there()
            await waiting
        finally:
            for one in (waiting, saying):
                await end(one)
        _log.info("draining")
