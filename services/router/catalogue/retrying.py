"""Read, decide, write; and again, if somebody else has written in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from services.router.catalogue.port import Conflict
from smoa.errors import Unavailable

T = TypeVar("T")
ATTEMPTS: Final = 100
_LONGEST_PAUSE_S: Final = 0.3


async def until_taken(work: Callable[[], Awaitable[T]]) -> T:
    """The result of work that reads what it writes, which is done again while others are faster.

    Raises:
        Unavailable: they always were.
    """
    for attempt in range(ATTEMPTS):
        try:
            return await work()
        except Conflict:
            await asyncio.sleep(random.uniform(0, min(_LONGEST_PAUSE_S, 0.005 * 2**attempt)))
    raise Unavailable("registry: others keep changing the same adapters; retry", 1.0)
