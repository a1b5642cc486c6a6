"""Turns of the loop and of a thread: who takes much waits for who takes little, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoa.fair_turns import LoopTurns, ThreadTurns


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def work(self, milliseconds: float) -> None:
        self.ns += int(milliseconds * 1e6)


async def test_one_who_asks_seldom_waits_for_one_slice_of_one_who_asks_a_thousand_times() -> None:
    clock = Clock()
    turns, done = LoopTurns(clock), list[str]()

    async def call(caller: str) -> None:
        for _ in range(4):
            clock.work(1)
            await asyncio.sleep(0)
        done.append(caller)

    greedy = [asyncio.create_task(turns.run("greedy", call("greedy"))) for _ in range(1000)]
    for _ in range(50):
        await asyncio.sleep(0)
    began = clock.ns
    await turns.run("modest", call("modest"))
    assert clock.ns - began <= 10e6, "four slices of its own, and one of the other's before each"
    await asyncio.gather(*greedy)
    assert len(done) == 1001


async def test_both_have_the_same_of_the_loop_however_they_cut_it() -> None:
    clock = Clock()
    turns, spent = LoopTurns(clock), {"long": 0.0, "short": 0.0}

    async def call(caller: str, each: float) -> None:
        while sum(spent.values()) < 2000:
            clock.work(each)
            spent[caller] += each
            await asyncio.sleep(0)

    await asyncio.gather(
        *(turns.run("long", call("long", 8.0)) for _ in range(20)), *(turns.run("short", call("short", 1.0)) for _ in range(3))
    )
    assert spent["long"] == pytest.approx(spent["short"], rel=0.05)


async def test_who_is_alone_waits_for_nothing() -> None:
    turns, rounds = LoopTurns(), 0

    async def count() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await asyncio.sleep(0)

    async def call() -> int:
        before = rounds
        for _ in range(10):
            await asyncio.sleep(0)
        return rounds - before

    assert await turns.run("one", call()) == await call()
    counting.cancel()


async def test_results_errors_and_cancellations_reach_who_they_are_for() -> None:
    turns = LoopTurns()

    async def returns() -> int:
        await asyncio.sleep(0)
        return 3

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    async def times_out() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "in time"
        raise AssertionError

    cleaned = list[str]()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("cleaned")

    busy = [asyncio.create_task(turns.run("other", returns())) for _ in range(50)]
    assert await turns.run("one", returns()) == 3
    with pytest.raises(KeyError):
        await turns.run("one", fails())
    assert await turns.run("one", times_out()) == "in time"
    waiting = asyncio.create_task(turns.run("one", waits()))
    for _ in range(100):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cleaned == ["cleaned"]
    assert await asyncio.gather(*busy) == [3] * 50
    assert not turns._waiting
    assert not turns._waiting.fairness.jobs()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.none() | st.integers(0, 30)), max_size=30))
def test_whatever_is_cancelled_the_others_end(calls: list[tuple[str, int, int | None]]) -> None:
    async def run(make: Callable[[], Any]) -> None:
        turns, ended = make(), 0

        async def call(waits: int) -> None:
            nonlocal ended
            for _ in range(waits):
                await asyncio.sleep(0)
            ended += 1

        def started(caller: str, waits: int) -> asyncio.Task[None]:
            work: Any = call(waits) if isinstance(turns, LoopTurns) else lambda: None
            return asyncio.create_task(turns.run(caller, work))

        tasks = [(started(caller, waits), after) for caller, waits, after in calls]
        for number in range(31):
            await asyncio.sleep(0)
            for task, after in tasks:
                if after == number:
                    task.cancel()
        results = await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        assert not turns._waiting
        async with asyncio.timeout(5):
            while turns._is_taken:  # noqa: ASYNC110  a thread that nobody waits for goes on to its end
                await asyncio.sleep(0)
        assert not turns._waiting.fairness.jobs()

    asyncio.run(run(LoopTurns))
    asyncio.run(run(ThreadTurns))


async def test_a_thread_is_for_one_at_a_time_and_next_for_whoever_had_least() -> None:
    clock, gate, order, running = Clock(), threading.Event(), list[str](), 0
    turns = ThreadTurns(clock)

    def work(caller: str) -> None:
        nonlocal running
        running += 1
        assert running == 1
        gate.wait(10)
        clock.work(1)
        order.append(caller)
        running -= 1

    greedy = [asyncio.create_task(turns.run("greedy", lambda: work("greedy"))) for _ in range(10)]
    await asyncio.sleep(0)
    modest = [asyncio.create_task(turns.run("modest", lambda: work("modest"))) for _ in range(2)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*greedy, *modest)
    assert order[:4].count("modest") == 2
    with pytest.raises(ZeroDivisionError):
        await turns.run("greedy", lambda: 1 // 0)
    assert await turns.run("greedy", lambda: 5) == 5
