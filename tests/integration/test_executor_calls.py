"""Calls to executors over real connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from services.local import free_port
from smoa.errors import SmoaError, Unavailable
from smoa.executor_calls import CHANNEL_OPTIONS, OWN_CONNECTION, ExecutorCalls
from smoa.statuses import abort
from smoa.v1 import executor_pb2, executor_pb2_grpc, router_pb2


class _Router:
    def __init__(self, *addresses: str) -> None:
        self._listed = router_pb2.ListExecutorsResponse(executors=[router_pb2.Executor(address=one, base_model="f") for one in addresses])

    async def ListExecutors(self, request: Any, **more: Any) -> router_pb2.ListExecutorsResponse:  # noqa: N802
        return self._listed


class _Executor(executor_pb2_grpc.ExecutorServiceServicer):
    def __init__(self, failure: SmoaError | None = None) -> None:
        self.asked, self._failure = 0, failure

    async def GetStatus(self, request: Any, context: Any) -> executor_pb2.GetStatusResponse:  # noqa: N802
        return executor_pb2.GetStatusResponse()

    async def Score(self, request: Any, context: Any) -> executor_pb2.ScoreResponse:  # noqa: N802
        return executor_pb2.ScoreResponse()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[executor_pb2.GenerateResponse]:  # noqa: N802
        self.asked += 1
        if self._failure is not None:
            await abort(context, self._failure)
        yield executor_pb2.GenerateResponse(text="there")


async def _started(address: str, executor: _Executor | None = None) -> grpc.aio.Server:
    server = grpc.aio.server()
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(executor or _Executor(), server)
    server.add_insecure_port(address)
    await server.start()
    return server


async def test_one_that_says_why_it_cannot_is_not_asked_again() -> None:
    """Its store is slow, or what it was asked broke its step: the same once more makes it worse."""
    address = f"127.0.0.1:{free_port()}"
    executor, router = _Executor(Unavailable("engine: the model step failed", 5.0)), _Router(address)
    made: Any = router
    calls = ExecutorCalls(made, lambda to: grpc.aio.insecure_channel(to, [*CHANNEL_OPTIONS, OWN_CONNECTION]))
    server = await _started(address, executor)
    try:
        with pytest.raises(grpc.aio.AioRpcError, match="the model step failed"):
            await anext(calls.answer(executor_pb2.GenerateRequest(prompt="hello"), router_pb2.Decision(base_model="f")))
        assert executor.asked == 1
    finally:
        await calls.close()
        await server.stop(None)


@pytest.mark.parametrize("count", [1, 2])
async def test_an_executor_that_is_back_is_called_though_its_connection_waits_to_be_tried_again(count: int) -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
    router: Any = _Router(*addresses)
    calls = ExecutorCalls(router, lambda address: grpc.aio.insecure_channel(address, [*CHANNEL_OPTIONS, OWN_CONNECTION]))
    decision = router_pb2.Decision(base_model="f", executor=addresses[0])

    async def said() -> list[tuple[str, str]]:
        request = executor_pb2.GenerateRequest(prompt="hello")
        return [(address, one.text) async for address, one in calls.answer(request, decision, timeout_s=10)]

    server = await _started(addresses[0])
    try:
        assert await said() == [(addresses[0], "there")]
        await server.stop(None)
        for _ in range(2):  # gRPC waits the longer, the more often it failed
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await said()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert calls.moved == 0
        server = await _started(addresses[0])
        assert await said() == [(addresses[0], "there")], "at once"
        assert calls.moved == 0, "it was answered where it was sent first"
    finally:
        await calls.close()
        await server.stop(None)
