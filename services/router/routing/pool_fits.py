"""Fits of pools (`pool_fit.py`): made aside, kept while there is memory for them, and made again when their pools have changed.

A query never waits for one. Until its pools are fitted, it is routed by cosine, and none is left unanswered for being out of scope.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import Final, NamedTuple, Protocol

import numpy as np

from services.router.catalogue.description import examples_of
from services.router.catalogue.port import Catalogue
from services.router.catalogue.records import Reach, Scope
from services.router.learning.pool_fit import MAX_FITTED, PoolFit, fit
from smoa.bounded_cache import ENTRY_BYTES, BoundedCache
from smoa.errors import Unavailable
from smoa.tasks import begin, end

_log = logging.getLogger(__name__)
Pools = tuple[str, ...]
_MAX_WANTED: Final = 1_024
_MOST_REST_S: Final = 20.0
_RESTS: Final = 4.0
"""Times what a fit took is waited before the next, so that a library which changes all the time leaves most of a core to queries."""


class Changes(Protocol):
    """What counts the changes of pools, and keeps answers that hang on them."""

    def state_of(self, pools: Pools) -> tuple[int, ...]:
        """Another one after each change."""

    def refitted(self, pools: Pools) -> None:
        """Forget the answers from these pools: they are judged anew from now on. That is a change, too."""


class _Made(NamedTuple):
    fit: PoolFit | None
    state: tuple[int, ...]
    """Of its pools, before they were read."""


class PoolFits:
    """One task makes them, one after the other."""

    def __init__(self, catalogue: Catalogue, changes: Changes, in_scope_loss: float, max_bytes: int) -> None:
        self._catalogue, self._changes, self._in_scope_loss = catalogue, changes, in_scope_loss
        self._made: BoundedCache[Pools, _Made] = BoundedCache(max_bytes)
        self._empty: BoundedCache[str, tuple[int, ...]] = BoundedCache(max_bytes // 8)
        """Tenants' pools without adapters, and their state then: all such tenants have the fit of the shared pool."""
        self._asked: OrderedDict[Pools, Reach] = OrderedDict()
        self._changed: OrderedDict[Pools, Reach] = OrderedDict()
        """What is to be fitted, first come, first served: what a query was for, before what has only changed."""
        self._forgotten: set[str] = set()
        """Adapters that have changed while a fit is being made."""
        self._task: asyncio.Task[None] | None = None

    def of(self, reach: Reach) -> PoolFit | None:
        """The fit of a reach's pools, if there is one yet; another is begun where they have changed."""
        pools = self._pools_of(reach)
        made = self._made.get(pools)
        if made is None or made.state != self._changes.state_of(pools):
            self._changed.pop(reach.pools, None)
            self._want(self._asked, reach)
        return None if made is None else made.fit

    def want(self, reach: Reach) -> None:
        """Have the pools of a reach fitted. Of very many, as while as many tenants are imported, the last are not waited for: they are
        fitted when they are asked.
        """
        if reach.pools not in self._asked:
            self._want(self._changed, reach)

    def _want(self, among: OrderedDict[Pools, Reach], reach: Reach) -> None:
        if len(among) < _MAX_WANTED:
            among.setdefault(reach.pools, reach)
        if not self._runs:
            self._task = begin(self._run(), "pool-fits")

    @property
    def _runs(self) -> bool:
        return self._task is not None and not self._task.done()

    def forget(self, adapter_id: str) -> None:
        """An adapter is not what it was."""
        if self._runs:
            self._forgotten.add(adapter_id)
        for made in self._made.values():
            if made.fit is not None:
                made.fit.known.pop(adapter_id, None)

    async def settled(self) -> None:
        """Wait until every fit that is wanted is made."""
        while self._task is not None and self._runs:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        """Make no more."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        while first := self._asked or self._changed:
            _, reach = first.popitem(last=False)
            self._forgotten.clear()
            began_s = time.monotonic()
            try:
                await self._make(reach)
            except Unavailable as error:
                _log.info("the pools of %s are not fitted anew: %s", reach.tenant, error)
            if self._asked or self._changed:
                await asyncio.sleep(min(_RESTS * (time.monotonic() - began_s), _MOST_REST_S))

    async def _make(self, reach: Reach) -> None:
        own = reach.pools[0]
        own_before, before = self._changes.state_of((own,)), self._changes.state_of(reach.pools)
        if not await self._catalogue.scroll(Scope(tenant=reach.tenant, base_model=reach.base_model, include_shared=False), "", 1):
            self._empty.put(own, own_before, ENTRY_BYTES)
        pools = self._pools_of(reach)
        if pools != reach.pools:
            before = self._changes.state_of(pools)
        if (there := self._made.get(pools)) is not None and there.state == before:
            return  # it was asked for while it was being made
        described = await self._catalogue.described(pools, MAX_FITTED + 1)
        examples = await examples_of(self._catalogue, described[:MAX_FITTED])
        try:
            made = await asyncio.to_thread(fit, examples, self._in_scope_loss, ranks=len(described) <= MAX_FITTED)
        except (MemoryError, np.linalg.LinAlgError) as error:  # not again at the next query: it would fail as well
            _log.error("the pools of %s cannot be fitted, and are routed by cosine until they change", reach.tenant, exc_info=error)
            made = None
        if made is not None:
            for adapter_id in self._forgotten:
                made.known.pop(adapter_id, None)
        changed, last = before != self._changes.state_of(pools), self._made.get(pools)
        if not changed and any(one is not None and one.matters for one in (made, last and last.fit)):
            self._changes.refitted(pools)
        state = before if changed else self._changes.state_of(pools)
        self._made.put(pools, _Made(made, state), ENTRY_BYTES + (0 if made is None else made.bytes))

    def _pools_of(self, reach: Reach) -> Pools:
        """Those of a reach, without a tenant's own that is empty."""
        own, shared = reach.pools
        return (shared,) if self._empty.get(own) == self._changes.state_of((own,)) else (own, shared)
