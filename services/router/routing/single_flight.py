"""Identical work under way at once is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SingleFlight(Generic[Key, Value]):
    """The first caller of a key works, the others wait for what it finds."""

    def __init__(self) -> None:
        self._flights: dict[Key, asyncio.Future[Value]] = {}
        self.joined = 0
        """Calls that were spared the work."""

    async def run(self, key: Key, work: Callable[[], Awaitable[Value]]) -> Value:
        """The result of `work`, or of the same work by another caller; its error is everybody's.

        If the caller who works is cancelled, one of those who wait works in its place.
        """
        while (flight := self._flights.get(key)) is not None:
            try:
                value = await asyncio.shield(flight)
            except asyncio.CancelledError:
                if not flight.cancelled():  # it was this caller who was cancelled
                    raise
            else:
                self.joined += 1
                return value
        self._flights[key] = flight = asyncio.get_running_loop().create_future()
        try:
            value = await work()
        except asyncio.CancelledError:
            flight.cancel()
            raise
        except BaseException as error:
            flight.set_exception(error)
            flight.exception()  # somebody has seen it: this caller
            raise
        else:
            flight.set_result(value)
            return value
        finally:
            del self._flights[key]
