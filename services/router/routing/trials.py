"""Keeps a router's canaries as they are in the catalogue, and takes queries for them from the budget that all routers share.

What is taken is written on the canary's record first, by compare-and-set: so the routers together never answer more with it than it has
earned, whoever is restarted. What a router that dies has taken and not used is lost to the canary, until it has earned more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from contextlib import suppress
from typing import Final

from services.router.catalogue.changes import now_us
from services.router.catalogue.port import Catalogue, Entry
from services.router.catalogue.replacing import on_trial
from services.router.catalogue.retrying import until_taken
from services.router.routing.canaries import Canaries, some_of_budget
from smoa.errors import SmoaError
from smoa.tasks import begin, end

_log = logging.getLogger(__name__)
FOLLOW_S: Final = 1.0
_PAUSE_S: Final = 0.02  # so that many queries for little budget do not keep it busy


class Trials:
    """Of one router. `near` is what its routing reads of `catalogue`."""

    def __init__(self, canaries: Canaries, catalogue: Catalogue, near: Catalogue) -> None:
        self._canaries, self._catalogue, self._near = canaries, catalogue, near
        self._wake, self._known = asyncio.Event(), False
        self._task: asyncio.Task[None] | None = None
        canaries.hungry = self._wake.set

    def start(self) -> None:
        """Begin to follow."""
        self._task = begin(self._run(), "trials")

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        while True:
            try:
                await self.follow()
            except SmoaError as error:
                _log.info("trials cannot be read or written (%s); they stay as they were", error)
                await asyncio.sleep(FOLLOW_S)
            await asyncio.sleep(_PAUSE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_S):
                    await self._wake.wait()

    async def follow(self) -> None:
        """Take the canaries as they are now, and queries for those that have few left."""
        self._wake.clear()
        if not self._known:
            async for canaries in on_trial(self._near):
                self._canaries.update(canaries)
            self._known = True
        for child_id in self._canaries:
            there = await self._near.get(child_id)
            if there is None:
                self._canaries.forget(child_id)
            elif child_id in self._canaries:  # else it was settled while it was read
                self._canaries.update([there[0]])
        for child_id in self._canaries.wanting(now_us()):
            self._canaries.grant(child_id, await until_taken(lambda child_id=child_id: self._take(child_id)))  # type: ignore[misc]

    async def _take(self, child_id: str) -> int:
        found = await self._catalogue.get(child_id)
        if found is None or found[0].state != "canary":
            return 0
        record, vector = found
        count, taken = some_of_budget(record, now_us())
        if count:
            await self._catalogue.write([Entry(dataclasses.replace(record, canary_taken=taken), vector)])
        return count
