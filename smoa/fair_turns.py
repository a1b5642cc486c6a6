"""Time that callers share: the event loop's, a slice at a time, and a thread's, a piece of work at a time. Whoever has had least goes next.

Without it, work goes in the order in which it came: one who sends a thousand calls has everybody else wait for a thousand.
"""

from __future__ import annotations

import asyncio
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from smoa.fairness import Fairness

T = TypeVar("T")
RESTS: Final = 4
"""Rounds of the loop between two slices: a call is taken in over about as many."""


class _Waiting:
    """Who waits for a turn."""

    def __init__(self) -> None:
        self.fairness = Fairness()
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, caller: str) -> asyncio.Future[None]:
        """Stand in line; the future is done when it is one's turn."""
        waiter = asyncio.get_running_loop().create_future()
        self._queues.setdefault(caller, deque()).append(waiter)
        return waiter

    def gone(self, caller: str, waiter: asyncio.Future[None]) -> None:
        """Who waited went away."""
        if (queue := self._queues.get(caller)) is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._queues[caller]

    def call(self) -> bool:
        """Give a turn to the first of whoever was served least; False: nobody waits."""
        while self._queues:
            caller = self.fairness.by_turn(self._queues)[0]
            queue = self._queues[caller]
            waiter = queue.popleft()
            if not queue:
                del self._queues[caller]
            if not waiter.done():
                waiter.set_result(None)
                return True
        return False

    @contextmanager
    def there(self, caller: str) -> Iterator[None]:
        """One of the caller's is there, in line or at work."""
        self.fairness.enter(caller)
        try:
            yield
        finally:
            self.fairness.leave(caller)


class LoopTurns:
    """The loop's time. Now and then a slice of a call runs: what it does from where it waited to where it waits again. In between is time
    to take calls in, or they would wait in a line where nobody knows whose they are.

    Who is alone waits for nothing.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock_ns, self._waiting, self._is_taken = clock_ns, _Waiting(), False

    async def run(self, caller: str, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns or raises, each of its slices in turn."""
        with self._waiting.there(caller):
            return await self._sliced(caller, work)

    @types.coroutine
    def _sliced(self, caller: str, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        error: BaseException | None = None
        try:
            while True:
                if self._is_taken and len(self._waiting.fairness) > 1:
                    waiter = self._waiting.add(caller)
                    try:
                        yield from waiter.__await__()
                    except BaseException as cancelled:  # noqa: BLE001  not passed over: the work has it
                        self._waiting.gone(caller, waiter)
                        error = cancelled
                elif not self._is_taken:
                    self._is_taken = True
                    asyncio.get_running_loop().call_soon(self._round, RESTS)
                began_ns = self._clock_ns()
                try:
                    asked = work.send(None) if error is None else work.throw(error)
                except StopIteration as done:
                    return done.value  # type: ignore[no-any-return]
                finally:
                    self._waiting.fairness.serve(caller, (self._clock_ns() - began_ns) // 1000)
                error = None
                try:
                    yield asked
                except BaseException as thrown:  # noqa: BLE001  not passed over: the work has it
                    error = thrown
        finally:
            work.close()

    def _round(self, rests: int) -> None:
        if not rests:
            self._is_taken = self._waiting.call()
        if self._is_taken:
            asyncio.get_running_loop().call_soon(self._round, rests - 1 if rests else RESTS)


class ThreadTurns:
    """A thread's time: one piece of work at a time, to its end, although its caller may have gone away."""

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock_ns, self._waiting, self._is_taken = clock_ns, _Waiting(), False

    async def run(self, caller: str, work: Callable[[], T]) -> T:
        """What the work returns or raises, on a thread, in turn."""
        with self._waiting.there(caller):
            if self._is_taken:
                waiter = self._waiting.add(caller)
                try:
                    await waiter
                except asyncio.CancelledError:
                    self._waiting.gone(caller, waiter)
                    if not waiter.cancelled():  # it was called, and went away
                        self._next()
                    raise
            self._is_taken = True
            return await asyncio.shield(asyncio.ensure_future(self._worked(caller, work)))

    async def _worked(self, caller: str, work: Callable[[], T]) -> T:
        began_ns = self._clock_ns()
        with self._waiting.there(caller):
            try:
                return await asyncio.to_thread(work)
            finally:
                self._waiting.fairness.serve(caller, (self._clock_ns() - began_ns) // 1000)
                self._next()

    def _next(self) -> None:
        self._is_taken = self._waiting.call()
