"""One caller's calls to a router, and another's."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc

from services.gateway.serving.router_calls import CONNECTIONS, RouterCalls
from smoa.access.access import REPRESENTED
from smoa.access.principal import ANYBODY
from smoa.executor_calls import CHANNEL_OPTIONS, OWN_CONNECTION
from smoa.rpc import RpcServer
from smoa.v1 import router_pb2, router_pb2_grpc
from smoa.v1.access_pb2 import Represented
from tests.access_support import caller

STREAMS = 2


class _Router(router_pb2_grpc.RouterServiceServicer):
    """Answers everybody at once, but for `slow`."""

    def __init__(self) -> None:
        self.released, self.connections = asyncio.Event(), set[str]()

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.Decision:  # noqa: N802
        self.connections.add(context.peer())
        said = dict(context.invocation_metadata()).get(REPRESENTED)
        if said is not None and Represented.FromString(said).name == "slow":
            await self.released.wait()
        return router_pb2.Decision()

    async def RouteBatch(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise AssertionError("nobody calls it")

    ListExecutors = RouteBatch


async def test_who_asks_for_much_is_not_in_everybodys_way() -> None:
    servicer, server = _Router(), RpcServer("127.0.0.1:0", streams=STREAMS)
    router_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server.server)
    await server.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, 0)
        options = (*CHANNEL_OPTIONS, OWN_CONNECTION)
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options))
            for _ in range(CONNECTIONS)
        ]
        calls, request = RouterCalls(channels, timeout_s=20), router_pb2.RouteRequest()
        slow = [asyncio.create_task(calls.route(caller("slow", "public", "infer"), request)) for _ in range(10 * STREAMS)]
        others = [caller(f"other-{number}", "public", "infer") for number in range(64)]

        async def answered(principal: Any) -> bool:
            try:
                await asyncio.wait_for(calls.route(principal, request), 2)
            except TimeoutError:
                return False
            return True

        served = await asyncio.gather(*map(answered, others))
        assert sum(served) >= 0.75 * len(others)  # but for those that share its connection: one in sixteen, by chance
        servicer.released.set()
        await asyncio.gather(*slow)
        await asyncio.gather(*(calls.route(ANYBODY, request) for _ in range(CONNECTIONS)))
        assert len(servicer.connections) == CONNECTIONS  # where nobody is asked, calls go over all of them
