"""Single flight: one works, all get the result, and nobody's cancellation is another's loss."""

from __future__ import annotations

import asyncio

import pytest

from services.router.routing.single_flight import SingleFlight


class _Work:
    def __init__(self) -> None:
        self.calls, self.go = 0, asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.calls += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return self.calls


async def _started(*tasks: asyncio.Task[int]) -> None:
    for _ in range(3 * len(tasks)):
        await asyncio.sleep(0)


async def test_identical_calls_work_once_and_different_ones_apart() -> None:
    flights, work, other = SingleFlight[str, int](), _Work(), _Work()
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(10)] + [asyncio.create_task(flights.run("b", other))]
    await _started(*tasks)
    work.go.set()
    other.go.set()
    assert await asyncio.gather(*tasks) == [1] * 11
    assert (work.calls, other.calls, flights.joined) == (1, 1, 9)
    assert await flights.run("a", work) == 2


async def test_an_error_is_everybodys() -> None:
    flights, work = SingleFlight[str, int](), _Work()
    work.error = ValueError("no")
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
    await _started(*tasks)
    work.go.set()
    assert [str(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == ["no"] * 3
    assert work.calls == 1


async def test_another_works_when_the_one_who_works_is_cancelled() -> None:
    flights, work = SingleFlight[str, int](), _Work()
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
    await _started(*tasks)
    tasks[0].cancel()
    await _started(*tasks)
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert await asyncio.gather(*tasks[1:]) == [2, 2]


async def test_who_waits_may_be_cancelled_alone() -> None:
    flights, work = SingleFlight[str, int](), _Work()
    tasks = [asyncio.create_task(flights.run("a", work)) for _ in range(3)]
    await _started(*tasks)
    tasks[1].cancel()
    await _started(*tasks)
    work.go.set()
    assert list(await asyncio.gather(tasks[0], tasks[2])) == [1, 1]
