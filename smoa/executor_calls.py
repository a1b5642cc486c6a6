"""Carrying decisions out on whichever executor is there: the one that a decision names, and another of its base model while that one has
not begun to answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc

from smoa.errors import Unavailable
from smoa.statuses import status_in
from smoa.tasks import end
from smoa.v1 import executor_pb2, executor_pb2_grpc, router_pb2, router_pb2_grpc

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
FRESH_S: Final = 2.0
"""For so long what routers know of the executors is taken for true, unless one of them fails."""
STREAMS: Final = 64
"""Calls on one connection to an executor, which takes only so many at once from each (`max_waiting`)."""
CONNECTIONS: Final = 32
"""To one executor; with all of them full, calls wait in turn."""
_ELSEWHERE: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""With one of these another executor may still answer."""
_BUSY_LOAD: Final = 2.0
RECONNECTED_S: Final = 0.4
"""In this time a connection to an executor that is back has been tried again (`CHANNEL_OPTIONS`: at most 250 ms, and a fifth by chance)."""
MAX_BASE_MODELS: Final = 10_000
NO_EXECUTOR: Final = "executor: none has told of itself; start one, or wait until it is ready"


@dataclass
class _Connection:
    channel: grpc.aio.Channel
    stub: executor_pb2_grpc.ExecutorServiceAsyncStub
    calls: int = 0


class ExecutorCalls:
    """Executors as a router knows them, and connections to them."""

    def __init__(
        self, router: router_pb2_grpc.RouterServiceAsyncStub, open_channel: Callable[[str], grpc.aio.Channel], timeout_s: float = 10.0
    ) -> None:
        """`open_channel` makes a channel to an address, each a connection of its own."""
        self._router, self._open, self._timeout_s = router, open_channel, timeout_s
        self._connections: dict[str, list[_Connection]] = {}
        self._listed: Sequence[router_pb2.Executor] = ()
        self._listed_at_s = -FRESH_S
        self._asking: asyncio.Task[None] | None = None
        self._names: dict[str, str] = {}
        self.moved = 0
        """Requests that another executor answered than the one they were sent to first."""

    async def listed(self, *, anew: bool = False) -> Sequence[router_pb2.Executor]:
        """The executors that told of themselves of late. Whoever asks meanwhile shares one call, and how it ends.

        Raises:
            grpc.aio.AioRpcError: the router's status.
        """
        if anew or time.monotonic() - self._listed_at_s >= FRESH_S:
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask(), name="list executors")
            await asyncio.shield(self._asking)
        return self._listed

    async def _ask(self) -> None:
        try:
            response = await self._router.ListExecutors(router_pb2.ListExecutorsRequest(), timeout=self._timeout_s)
            self._listed, self._listed_at_s = tuple(response.executors), time.monotonic()
            for one in self._listed:
                if one.base_model in self._names or len(self._names) < MAX_BASE_MODELS:
                    self._names[one.base_model] = one.base_model_name
            await self._forget({one.address for one in self._listed})
        finally:
            self._asking = None

    @property
    def base_models(self) -> Mapping[str, str]:
        """Fingerprint -> name of every base model that an executor was listed with: one that starts again is still known."""
        return self._names

    async def check(self, *, passes: bool = False) -> None:
        """Whether a request could be answered; `passes`: without a router, too, by executors that are known.

        Raises:
            Unavailable: no executor has told of itself.
            grpc.aio.AioRpcError: the router's status.
        """
        try:
            await self.listed()
        except grpc.aio.AioRpcError:
            if not (passes and self._listed):
                raise
        if not self._listed:
            raise Unavailable(NO_EXECUTOR, 2.0)

    async def answer(
        self,
        request: executor_pb2.GenerateRequest,
        decision: router_pb2.Decision,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        *,
        anew: bool = False,
    ) -> AsyncGenerator[tuple[str, executor_pb2.GenerateResponse], None]:
        """Generate under a decision; (address of the executor, message) as they come. Until the first message, an executor that is away or
        full is passed over for another. With none of them reached, each is asked once more after a moment: one that has only just come back
        is away to us until its connection is tried again.

        Args:
            request: What to generate; its tenant, and its adapters or stages, are the decision's.
            decision: It says of which base model, and which executor to ask first; if that is none, or none that the router lists,
                whichever has least to do. Nobody else is called: what goes with the call says who we are.
            metadata: That goes with the call.
            timeout_s: For all of it.
            anew: An executor began it, and died: it has moved, wherever it is answered now.

        Raises:
            Unavailable: no executor of the base model has told of itself.
            grpc.aio.AioRpcError: the status of the last one that was asked.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        base_model, first = decision.base_model, decision.executor
        whole = executor_pb2.GenerateRequest(
            tenant=decision.tenant,
            decision_id=decision.decision_id,
            adapters=() if decision.stages else decision.adapters,
            stages=decision.stages,
        )
        whole.MergeFrom(request)
        tried: list[str] = []
        sent_to, again, all_away = "", False, True
        while True:
            named = bool(first) and not tried and await self._is_listed(first)
            address = first if named else await self._next(base_model, tried)
            tried.append(address)
            sent_to = sent_to or address
            begun = False
            try:
                async with self._connection(address) as stub:
                    left_s = None if deadline_s is None else max(0.001, deadline_s - time.monotonic())
                    call = stub.Generate(whole, timeout=left_s, metadata=tuple(metadata))
                    try:
                        async for response in call:
                            if not begun:
                                begun = True
                                self.moved += anew or address != sent_to
                            yield address, response
                    finally:
                        call.cancel()  # whoever goes away, its row is free at once
                return
            except grpc.aio.AioRpcError as error:
                if begun or error.code() not in _ELSEWHERE:
                    raise
                all_away &= error.code() is grpc.StatusCode.UNAVAILABLE and status_in(error) is None  # an executor says why
                if not await self._others(error, base_model, tried):
                    soon = deadline_s is None or time.monotonic() + RECONNECTED_S < deadline_s
                    if again or not all_away or not soon:
                        raise
                    again = True
                    tried.clear()
                    await asyncio.sleep(RECONNECTED_S)

    async def _is_listed(self, address: str) -> bool:
        if all(one.address != address for one in self._listed):
            await self._listed_anew()
        return any(one.address == address for one in self._listed)

    async def _listed_anew(self) -> None:
        """Ask the router, if it is there; what it said last is better than nothing."""
        with suppress(grpc.aio.AioRpcError):
            await self.listed(anew=True)

    async def _next(self, base_model: str, tried: Sequence[str]) -> str:
        others = self._untried(base_model, tried)
        if not others:
            await self._listed_anew()
            others = self._untried(base_model, tried)
        if not others:
            raise Unavailable(
                f"executor: none of base model {base_model[:12]} has told of itself; start one, or wait until it is ready", 2.0
            )
        return min(others, key=lambda one: one.load).address

    async def _others(self, error: grpc.aio.AioRpcError, base_model: str, tried: Sequence[str]) -> bool:
        """Whether another executor is worth asking."""
        await self._listed_anew()
        others = self._untried(base_model, tried)
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # where others are as full, asking them all makes it worse
            return any(one.load < _BUSY_LOAD for one in others)
        return bool(others)

    def _untried(self, base_model: str, tried: Sequence[str]) -> list[router_pb2.Executor]:
        return [one for one in self._listed if one.base_model == base_model and one.address not in tried]

    @asynccontextmanager
    async def _connection(self, address: str) -> AsyncIterator[executor_pb2_grpc.ExecutorServiceAsyncStub]:
        """A connection with room for a call, opened if there is none."""
        there = self._connections.setdefault(address, [])
        chosen = next((one for one in there if one.calls < STREAMS), None)
        if chosen is None:
            if len(there) < CONNECTIONS:
                channel = self._open(address)
                chosen = _Connection(channel, executor_pb2_grpc.ExecutorServiceStub(channel))
                there.append(chosen)
            else:
                chosen = min(there, key=lambda one: one.calls)
        chosen.calls += 1
        try:
            yield chosen.stub
        finally:
            chosen.calls -= 1

    async def _forget(self, addresses: set[str]) -> None:
        """Close connections to executors that are gone, once nothing runs on them."""
        for address in [one for one in self._connections if one not in addresses]:
            kept = [one for one in self._connections[address] if one.calls]
            for idle in [one for one in self._connections.pop(address) if not one.calls]:
                await idle.channel.close()
            if kept:
                self._connections[address] = kept

    async def close(self) -> None:
        """Close every connection."""
        if self._asking is not None:
            await end(self._asking)
        connections, self._connections = self._connections, {}
        for one in [one for there in connections.values() for one in there]:
            await one.channel.close()


CHANNEL_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    # Reconnect quickly: a restarted service should be found at once, not after gRPC's two minutes, for another may be next to die, and
    # while a connection waits to be tried again every call over it fails. round_robin spreads calls
    # over all the pods behind a headless service.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.lb_policy_name", "round_robin"),
)
"""Of every channel to a service."""
OWN_CONNECTION: Final = ("grpc.use_local_subchannel_pool", 1)
"""A channel with it shares no connection with others to its address."""
