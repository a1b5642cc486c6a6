"""Tasks that somebody owns: begun here so that a bug in one is seen, ended here so that none is left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
_AGAIN_S: Final = 2.0
_AT_ONCE: Final = 32


def begin(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start work that goes on until it is ended. Should it end by itself with an error, that is a bug, and is logged at once."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s ended, and nothing does its work until a restart", task.get_name(), exc_info=error)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over; again, if need be: a client that is busy connecting may lose a cancellation.

    Not soon again, or it would cut off the closing of what the task holds, and leave connections open.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_S)


async def connected(connecting: Coroutine[Any, Any, T]) -> T:
    """What a client's connecting returns. Whoever is cancelled meanwhile waits for it a moment: a connection that is cut off while it is
    made belongs to nobody, and is left open.
    """
    task = asyncio.ensure_future(connecting)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=_AGAIN_S)
        task.cancel()
        raise


async def now_and_then(number: int) -> None:
    """In a loop over a thousand, at its item of this number: let others in between."""
    if number % _AT_ONCE == _AT_ONCE - 1:
        await asyncio.sleep(0)


class Uncancelled:
    """Work that goes on when its caller goes away: what it does must be done whole."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns or raises; an error that no caller is there for is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_unheard)
            raise

    async def close(self) -> None:
        """Wait for work whose callers have gone."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _log_unheard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("work whose caller had gone away failed: %r", error)
