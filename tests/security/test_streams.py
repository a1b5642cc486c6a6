"""One who takes all that is to be had of the services as they are started: the victim's calls and everybody's probes are answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from smoa.v1 import executor_pb2, executor_pb2_grpc, registry_pb2_grpc, router_pb2, router_pb2_grpc
from tests.integration.router_support import MONEY
from tests.security.world import World, status_of

pytestmark = pytest.mark.asyncio(loop_scope="session")
SHARE = 250
"""Of 1,000 places, those that one caller may have."""
STREAMS = 8
"""Of them, those of one connection to a router."""


async def _connections(world: World, stack: AsyncExitStack, who: str, count: int, to: str = "") -> list[grpc.aio.Channel]:
    return [await stack.enter_async_context(world.channel(who, to=to)) for _ in range(count)]


@asynccontextmanager
async def _held(calls: list[Any]) -> AsyncIterator[Counter[str]]:
    """Calls that go on, but for those that were refused: how these ended, once they have."""
    codes = [asyncio.ensure_future(call.code()) for call in calls]
    await asyncio.wait(codes, timeout=3)
    try:
        yield Counter(one.result().name for one in codes if one.done())
    finally:
        for call in calls:
            call.cancel()
        await asyncio.wait(codes)


async def _all(stream: Any) -> list[Any]:
    return [one async for one in stream]


async def _is_answered(world: World) -> None:
    """The victim's route and answer, and the probes."""
    async with world.client("victim") as client:
        decision = await client.route(MONEY[0], base_model=world.base_model, tenant="acme")
        assert (await client.generate(MONEY[0], decision, max_tokens=1))[1].completion_tokens == 1
    await world.check_alive()


async def test_idle_imports_on_many_connections(world: World) -> None:
    async with AsyncExitStack() as stack:
        stubs: list[Any] = [registry_pb2_grpc.RegistryServiceStub(one) for one in await _connections(world, stack, "mallory", 40)]
        async with _held([stub.ImportAdapters() for stub in stubs for _ in range(STREAMS)]) as ended:
            assert ended == {"RESOURCE_EXHAUSTED": 40 * STREAMS - SHARE}
            await _is_answered(world)


async def test_idle_imports_on_one_connection_wait_at_their_client(world: World) -> None:
    async with world.channel("mallory") as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        async with _held([stub.ImportAdapters() for _ in range(1000)]) as ended:
            assert not ended
            await _is_answered(world)
            async with world.client("mallory") as client:
                assert (await client.route(MONEY[0], base_model=world.base_model, tenant="mallory")).decision_id


@pytest.mark.parametrize("where", ["router", "executor"])
async def test_watchers_of_health_on_many_connections(world: World, where: str) -> None:
    async with AsyncExitStack() as stack:
        stubs = [health_pb2_grpc.HealthStub(one) for one in await _connections(world, stack, "stranger", 40, to=getattr(world, where))]
        async with _held([stub.Watch(health_pb2.HealthCheckRequest()) for stub in stubs for _ in range(STREAMS)]) as ended:
            assert ended == {"RESOURCE_EXHAUSTED": 40 * STREAMS - SHARE}
            await _is_answered(world)


async def test_a_thousand_streams_of_nobody(world: World) -> None:
    async with world.channel("stranger") as channel:
        stub = registry_pb2_grpc.RegistryServiceStub(channel)
        async with _held([stub.ImportAdapters() for _ in range(1000)]) as ended:
            assert ended.total() == 1000
            assert ended.keys() <= {"UNAUTHENTICATED", "UNAVAILABLE"}, "gRPC itself ends a connection on which too much is refused"
            await _is_answered(world)


async def test_answers_that_nobody_reads(world: World) -> None:
    window = (("grpc.http2.lookahead_bytes", 0), ("grpc.http2.bdp_probe", 0))
    async with world.channel("mallory", to=world.executor, options=window) as channel:
        stub = executor_pb2_grpc.ExecutorServiceStub(channel)
        request = executor_pb2.GenerateRequest(tenant="mallory", prompt="x", max_tokens=512, ignore_eos=True, n=1)
        async with _held([stub.Generate(request) for _ in range(150)]):
            await _is_answered(world)


async def test_batches_of_long_queries(world: World) -> None:
    texts = [f"{number} " + "word " * 1600 for number in range(256)]
    batch = [router_pb2.RouteRequest(tenant="mallory", query=text, base_model=world.base_model) for text in texts]
    async with world.channel("mallory") as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        calls = [stub.RouteBatch(router_pb2.RouteBatchRequest(requests=batch), timeout=60) for _ in range(4)]
        async with _held(calls), asyncio.timeout(20):
            await _is_answered(world)


async def test_a_message_that_is_too_large(world: World) -> None:
    async with world.client("mallory") as client:
        request = router_pb2.RouteRequest(tenant="mallory", query="x" * (5 * 2**20), base_model=world.base_model)
        code, said = await status_of(client.router.Route(request, timeout=10))
    assert code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in said


async def test_metadata_without_end(world: World) -> None:
    async with world.channel("mallory") as channel:
        call = router_pb2_grpc.RouterServiceStub(channel).Route(router_pb2.RouteRequest(), metadata=(("x", "y" * 100_000),), timeout=10)
        assert (await status_of(call))[0] != "OK"
    await _is_answered(world)


async def test_bytes_that_are_no_message(world: World) -> None:
    """Of every kind of caller: what cannot be parsed is nobody's fault but theirs."""
    async with world.channel("mallory") as channel:
        for data in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x00"):
            for method in ("RouterService/Route", "FeedbackService/ReportOutcome", "RegistryService/RegisterAdapter"):
                call: Any = channel.unary_unary(f"/smoa.v1.{method}")
                code, said = await status_of(call(data, timeout=10))
                assert (code, said.partition(":")[0]) == ("INVALID_ARGUMENT", "request")
            stream: Any = channel.stream_stream("/smoa.v1.RegistryService/ImportAdapters")
            assert (await status_of(_all(stream(iter([data]), timeout=10))))[0] == "INVALID_ARGUMENT"
        for method in ("/smoa.v1.RouterService/Nothing", "/smoa.v2.Other/Route", "/"):
            nothing: Any = channel.unary_unary(method)
            assert (await status_of(nothing(b"", timeout=10)))[0] == "UNIMPLEMENTED"


async def test_connections_that_say_nothing(world: World) -> None:
    """To every port, in the clear and with half a handshake."""
    opened = []
    for address in (world.router, world.executor, *world.metrics.values()):
        host, _, port = address.rpartition(":")
        for said in (b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            for _ in range(10):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(said)
                opened.append(writer)
    try:
        await _is_answered(world)
    finally:
        for writer in opened:
            writer.close()


async def test_who_keeps_to_the_limit_of_a_connection_is_never_refused(world: World) -> None:
    """One connection, and many more calls at once than it may have: they wait at the client."""
    async with world.client("victim") as client:

        async def ask(number: int) -> str:
            return (await client.route(MONEY[number % len(MONEY)], base_model=world.base_model, tenant="acme")).decision_id

        assert len(set(await asyncio.gather(*(ask(number) for number in range(3000))))) == 3000
