"""One who takes all that is to be had: others are answered, probes too, and what was taken comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from smoa.access.access import Access
from smoa.access.callers import CallersFile
from smoa.access.channels import Channels, ConnectionSettings
from smoa.access.rates import SAVED_S, Rate, Rates
from smoa.rpc import RpcServer
from smoa.v1 import executor_pb2, executor_pb2_grpc, registry_pb2, registry_pb2_grpc
from tests.access_support import caller, callers_file
from tests.kafka_support import until

PLACES, SHARE = 20, 5
CHANGES_PER_S = 20.0


class _Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Imports nothing, and lists nothing."""

    async def ImportAdapters(  # noqa: N802
        self, request_iterator: AsyncIterator[registry_pb2.ImportAdaptersRequest], context: object
    ) -> AsyncIterator[registry_pb2.ImportAdaptersResponse]:
        async for _ in request_iterator:
            yield registry_pb2.ImportAdaptersResponse()

    async def ListAdapters(self, request: object, context: object) -> registry_pb2.ListAdaptersResponse:  # noqa: N802
        return registry_pb2.ListAdaptersResponse()

    async def RetireAdapter(self, request: object, context: object) -> registry_pb2.Adapter:  # noqa: N802
        return registry_pb2.Adapter()

    async def GetAdapter(self, request: object, context: object) -> registry_pb2.Adapter:  # noqa: N802
        raise ZeroDivisionError


class _Executor(executor_pb2_grpc.ExecutorServiceServicer):
    """Says more than anybody reads."""

    async def Generate(self, request: object, context: object) -> AsyncIterator[executor_pb2.GenerateResponse]:  # noqa: N802
        while True:
            yield executor_pb2.GenerateResponse(text="x" * 65_536)


class Flooded:
    """A server, and callers of it."""

    def __init__(self, address: str, keys: dict[str, str], folder: Path, stack: AsyncExitStack) -> None:
        self._address, self._keys, self._folder, self._stack = address, keys, folder, stack

    async def channel(self, who: str, *options: tuple[str, Any]) -> grpc.aio.Channel:
        connection = ConnectionSettings()
        if who:
            (self._folder / who).write_text(self._keys[who])
            connection = ConnectionSettings(token_file=str(self._folder / who))
        return await self._stack.enter_async_context(Channels(connection).to(self._address, options))

    async def lists(self, who: str) -> str:
        stub = registry_pb2_grpc.RegistryServiceStub(await self.channel(who))
        try:
            await stub.ListAdapters(registry_pb2.ListAdaptersRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    async def health(self) -> str:
        stub = health_pb2_grpc.HealthStub(await self.channel(""))
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="live"), timeout=5)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@pytest.fixture
async def flooded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Flooded]:
    monkeypatch.setattr("smoa.access.calls.STALLED_S", 1.0)
    keys = callers_file(tmp_path / "callers.json", caller("greedy", "greedy", "library infer"), caller("victim", "acme", "library infer"))
    rates = Rates(Rate("calls", 0.0), Rate("changes", CHANGES_PER_S))
    server = RpcServer("127.0.0.1:0", PLACES, access=Access(CallersFile(tmp_path / "callers.json")), rates=rates)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(_Registry(), server.server)  # type: ignore[abstract]
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(_Executor(), server.server)  # type: ignore[abstract]
    await server.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, 0)
        yield Flooded(f"127.0.0.1:{server.port}", keys, tmp_path, stack)


class _Calls:
    """Many calls at once, and how they end."""

    def __init__(self, calls: list[Any]) -> None:
        self._calls, self._codes = calls, [asyncio.ensure_future(call.code()) for call in calls]

    async def refused(self, wanted: int) -> None:
        """Wait until so many have been refused for want of a place."""
        async with asyncio.timeout(20):
            while sum(one.done() for one in self._codes) < wanted:
                await asyncio.wait([one for one in self._codes if not one.done()], return_when=asyncio.FIRST_COMPLETED)
        assert self.ended() == {"RESOURCE_EXHAUSTED": wanted}

    def ended(self) -> Counter[str]:
        """How many have ended how."""
        return Counter(one.result().name for one in self._codes if one.done())

    async def all_ended(self) -> Counter[str]:
        """How all ended."""
        async with asyncio.timeout(20):
            await asyncio.wait(self._codes)
        return self.ended()

    def cancel(self) -> None:
        """End those that go on."""
        for call in self._calls:
            call.cancel()


async def test_idle_streams_take_a_share_and_give_it_back(flooded: Flooded) -> None:
    stub = registry_pb2_grpc.RegistryServiceStub(await flooded.channel("greedy"))
    idle = _Calls([stub.ImportAdapters() for _ in range(100)])
    await idle.refused(100 - SHARE)
    assert await flooded.lists("greedy") == "RESOURCE_EXHAUSTED"
    assert await flooded.lists("victim") == "OK"
    assert await flooded.health() == "SERVING"
    assert (await idle.all_ended())["DEADLINE_EXCEEDED"] == SHARE, "nothing came on them"
    assert await flooded.lists("greedy") == "OK"


async def test_who_reads_nothing_gives_its_place_back(flooded: Flooded) -> None:
    stub = executor_pb2_grpc.ExecutorServiceStub(await flooded.channel("greedy", ("grpc.http2.lookahead_bytes", 0)))
    unread = [stub.Generate(executor_pb2.GenerateRequest(tenant="greedy", prompt="x")) for _ in range(SHARE)]
    for call in unread:
        await call.read()  # it has begun
    assert await flooded.lists("greedy") == "RESOURCE_EXHAUSTED"
    assert await flooded.lists("victim") == "OK"

    async def is_free() -> bool:
        return await flooded.lists("greedy") == "OK"

    await until("a place is given back", 20, is_free)
    _Calls(unread).cancel()


async def test_watchers_of_health_take_nobodys_place(flooded: Flooded) -> None:
    stub = health_pb2_grpc.HealthStub(await flooded.channel(""))
    watching = _Calls([stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(200)])
    await watching.refused(200 - SHARE)
    assert await flooded.lists("victim") == "OK"
    assert await flooded.health() == "SERVING"
    watching.cancel()


async def test_a_bug_in_a_method_is_the_callers_error_and_no_place_is_lost(flooded: Flooded) -> None:
    stub = registry_pb2_grpc.RegistryServiceStub(await flooded.channel("victim"))
    for _ in range(3 * PLACES):
        with pytest.raises(grpc.aio.AioRpcError, match=r"GetAdapter failed; see the server's log"):
            await stub.GetAdapter(registry_pb2.GetAdapterRequest(), timeout=5)
    assert await flooded.lists("victim") == "OK"


async def test_who_goes_away_in_the_middle_is_no_bug(flooded: Flooded, caplog: pytest.LogCaptureFixture) -> None:
    for how in ("cancel", "close"):
        channel = await flooded.channel("greedy")
        calls = [
            executor_pb2_grpc.ExecutorServiceStub(channel).Generate(executor_pb2.GenerateRequest(tenant="greedy", prompt="x"))
            for _ in range(SHARE)
        ]
        for call in calls:
            await call.read()
        if how == "cancel":
            _Calls(calls).cancel()
        else:
            await channel.close()

        async def is_free() -> bool:
            return await flooded.lists("greedy") == "OK"

        await until("a place is given back", 20, is_free)
    assert not [one for one in caplog.records if one.name.startswith("smoa") and one.levelname == "ERROR"]


async def test_changes_by_the_second_are_each_callers_own(flooded: Flooded) -> None:
    """One that is over its own is refused, and told for how long; what only looks goes on, and so does everybody else."""
    greedy = registry_pb2_grpc.RegistryServiceStub(await flooded.channel("greedy"))
    victim = registry_pb2_grpc.RegistryServiceStub(await flooded.channel("victim"))
    said, request = "", registry_pb2.RetireAdapterRequest()
    for _ in range(int(20 * CHANGES_PER_S * SAVED_S)):
        try:
            await greedy.RetireAdapter(request, timeout=5)
        except grpc.aio.AioRpcError as error:
            said = f"{error.code().name} {error.details()}"
            break
    assert said.startswith(f"RESOURCE_EXHAUSTED changes: greedy is over {CHANGES_PER_S:g} a second; wait 0."), said
    assert await flooded.lists("greedy") == "OK"
    await victim.RetireAdapter(request, timeout=5)
