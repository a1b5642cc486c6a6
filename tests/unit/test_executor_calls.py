"""What a caller knows of the executors, and how it asks for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from smoa.errors import Unavailable
from smoa.executor_calls import ExecutorCalls
from smoa.v1 import router_pb2


class _Router:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: asyncio.Future[router_pb2.ListExecutorsResponse] = asyncio.get_running_loop().create_future()

    async def ListExecutors(self, request: Any, **more: Any) -> router_pb2.ListExecutorsResponse:  # noqa: N802
        self.asked += 1
        return await asyncio.shield(self.answer)


def _calls(router: _Router) -> ExecutorCalls:
    made: Any = router
    return ExecutorCalls(made, lambda address: pytest.fail(f"nobody calls {address}"))


def _listed(*names: str) -> router_pb2.ListExecutorsResponse:
    every = [router_pb2.Executor(address=f"{name}:1", base_model=f"f-{name}", base_model_name=name) for name in names]
    return router_pb2.ListExecutorsResponse(executors=every)


async def test_those_who_wait_for_a_router_share_one_call_and_its_error() -> None:
    router = _Router()
    calls = _calls(router)
    waiting = [asyncio.create_task(calls.listed()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # who began it goes away, and the others wait on
    await asyncio.sleep(0)
    router.answer.set_exception(Unavailable("router: is away", 1.0))
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in ended] == [asyncio.CancelledError] + [Unavailable] * 4
    assert router.asked == 1
    router.answer = asyncio.get_running_loop().create_future()
    router.answer.set_result(_listed("small"))
    assert [one.address for one in await calls.listed()] == ["small:1"]
    assert router.asked == 2
    await calls.close()


async def test_a_base_model_is_known_while_its_executors_start_again() -> None:
    router = _Router()
    calls = _calls(router)
    for there in (("small", "large"), ("large",), ()):
        router.answer = asyncio.get_running_loop().create_future()
        router.answer.set_result(_listed(*there))
        assert len(await calls.listed(anew=True)) == len(there)
        assert calls.base_models == {"f-small": "small", "f-large": "large"}
    with pytest.raises(Unavailable, match="executor: none has told of itself"):
        await calls.check()
    await calls.close()


async def test_without_a_router_it_is_ready_only_where_requests_pass() -> None:
    router = _Router()
    calls = _calls(router)
    router.answer.set_result(_listed("small"))
    await calls.check()
    router.answer = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(calls.listed(anew=True), 0)
    await calls.close()  # ends the call that hangs
    assert [task for task in asyncio.all_tasks() if task.get_name() == "list executors"] == []
