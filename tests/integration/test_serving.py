"""A service that loads while it answers: not ready before it has loaded, and stopped in order also before."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from smoa.errors import FailedPrecondition
from smoa.rpc import LIVE, RpcServer, serve
from tests.kafka_support import until


class Service:
    """Loads until it is let go on."""

    def __init__(self) -> None:
        self.began, self.go_on = asyncio.Event(), asyncio.Event()
        self.ended: list[str] = []
        self.server = RpcServer("127.0.0.1:0")

    async def build(self, stack: AsyncExitStack) -> RpcServer:
        stack.callback(self.ended.append, "what it stands on")
        await self.server.start()
        stack.push_async_callback(self.server.stop, 0)
        self.server.load(self._load())
        return self.server

    async def _load(self) -> None:
        self.began.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.ended.append("loading")
            raise
        if self.ended:
            raise FailedPrecondition("index: is not for this program; upgrade it")

    async def health(self, name: str = "") -> str:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@pytest.mark.parametrize("loaded", [False, True])
async def test_a_signal_stops_it_in_order_also_while_it_loads(loaded: bool) -> None:
    service = Service()
    serving = asyncio.create_task(serve(service.build))
    await service.began.wait()
    assert [await service.health(), await service.health(LIVE)] == ["NOT_SERVING", "SERVING"]
    if loaded:
        service.go_on.set()

        async def ready() -> bool:
            return await service.health() == "SERVING"

        await until("readiness", 10, ready)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await serving
    assert service.ended == ([] if loaded else ["loading"]) + ["what it stands on"]


async def test_what_cannot_be_loaded_ends_it_with_the_reason() -> None:
    service = Service()
    serving = asyncio.create_task(serve(service.build))
    await service.began.wait()
    service.ended.append("the loading fails")
    service.go_on.set()
    async with asyncio.timeout(10):
        with pytest.raises(FailedPrecondition, match=r"^index: is not for this program"):
            await serving
