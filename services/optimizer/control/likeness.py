"""Which adapters of a library are alike, by their sketches: a file is read to be compared only if another's sketch is near.

What was compared is not compared again: a pass looks for what is near to what is new. Of very many that are new at once, as after a
start, not all pairs are looked at: passes take turns with random partitions, until hardly one can have been missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from services.optimizer.control.sketches import HasFile, Refuse, Sketches
from services.optimizer.policy import merging
from services.optimizer.policy.candidates import near_pairs, near_pairs_in_cells
from services.optimizer.policy.library_policy import Family
from smoa.adapter import Adapter, decode
from smoa.errors import SmoaError
from smoa.store import AdapterStore

_log = logging.getLogger(__name__)
MAX_PAIRS = 200_000
"""Near pairs of one family that are compared."""
MAX_PRODUCTS: Final = 4 * 10**8
"""Products of sketches that a pass takes to find all that are near to what is new: about two seconds."""
PARTITIONS: Final = 12
"""Of more: so many passes, each with one."""
MAX_FILES_BYTES: Final = 2**30
"""Weights of files that are kept for the next comparison, but for the two of this one."""


class Member(NamedTuple):
    """Of a family."""

    adapter_id: str
    digest: str
    since_us: float
    """It is there, or is there again."""


@dataclass
class _Family:
    """What was found among adapters that may merge."""

    searched: set[str] = field(default_factory=set)
    """Ids."""
    near: set[tuple[str, str]] = field(default_factory=set)
    """Pairs of ids, lower and higher."""
    partitions: int = PARTITIONS
    """Looked through of those that came together."""


class Likeness:
    """Keeps sketches, near pairs and cosines between passes, and files within one."""

    def __init__(self, store: AdapterStore, min_cosine: float, max_family: int) -> None:
        self._store, self._min_cosine, self._max_family = store, min_cosine, max_family
        self._sketches = Sketches(store, self._read)
        self._cosine: dict[tuple[str, str], float] = {}  # by digests
        self._files: dict[str, Adapter] = {}
        self._families: dict[tuple[object, ...], _Family] = {}

    def forget_files(self) -> None:
        """A pass is over."""
        self._files = {}

    async def cosines(
        self, families: Mapping[Family, Sequence[Member]], rejected: Container[tuple[str, str]], refuse: Refuse
    ) -> dict[tuple[str, str], float]:
        """By (lower id, higher id), of those of each family that may be alike by their sketches and are not `rejected`."""
        groups: defaultdict[tuple[object, ...], list[Member]] = defaultdict(list)
        for of_family, family in families.items():
            if len(family) > self._max_family:
                _log.warning("a family of %d adapters is compared in its newest %d only", len(family), self._max_family)
                family = sorted(family, key=lambda one: -one.since_us)[: self._max_family]
            compared = family if len(family) > 1 else []
            await self._sketches.find(compared, refuse)
            for one in compared:
                if one.digest in self._sketches:
                    groups[(*of_family, self._sketches[one.digest].layers)].append(one)
        self._sketches.forget({one.digest for group in groups.values() for one in group})
        self._cosine = {pair: cosine for pair, cosine in self._cosine.items() if all(one in self._sketches for one in pair)}
        found: dict[tuple[str, str], float] = {}
        self._families = {name: self._families.get(name, _Family()) for name in groups}
        for name, group in groups.items():
            members = {one.adapter_id: one for one in group}
            for low, high in sorted(await self._near(self._families[name], group)):
                if (low, high) in rejected:
                    continue
                if (cosine := await self._compared(members[low], members[high], refuse)) is not None:
                    found[low, high] = cosine
        return found

    async def _near(self, family: _Family, group: Sequence[Member]) -> set[tuple[str, str]]:
        """Pairs of ids whose sketches are near, as far as they were looked for."""
        ids = [one.adapter_id for one in group]
        family.searched.intersection_update(ids)
        family.near = {pair for pair in family.near if family.searched.issuperset(pair)}
        new = [place for place, name in enumerate(ids) if name not in family.searched]
        if len(new) * len(group) > MAX_PRODUCTS:
            new, family.partitions = [], 0
        if not new and family.partitions >= PARTITIONS:
            return family.near
        sketches = np.stack([self._sketches[one.digest].sketch for one in group]).astype(np.float32)
        sketches /= np.maximum(np.linalg.norm(sketches, axis=1, keepdims=True), 1e-9)
        room = MAX_PAIRS - len(family.near)
        places = await asyncio.to_thread(near_pairs, sketches, self._min_cosine, room, new) if new else []
        if family.partitions < PARTITIONS:
            places += await asyncio.to_thread(near_pairs_in_cells, sketches, self._min_cosine, room, family.partitions)
            family.partitions += 1
        family.searched.update(ids)
        family.near.update((min(ids[a], ids[b]), max(ids[a], ids[b])) for a, b in places)
        if len(family.near) >= MAX_PAIRS:
            _log.warning("of a family of %d adapters only %d near pairs are compared", len(group), len(family.near))
        return family.near

    async def _compared(self, low: HasFile, high: HasFile, refuse: Refuse) -> float | None:
        pair = (low.digest, high.digest)
        if pair not in self._cosine:
            first, second = await self.file(low, refuse), await self.file(high, refuse)
            if first is None or second is None:
                return None
            self._cosine[pair] = next(iter((await asyncio.to_thread(merging.cosines, [first, second])).values()))
        return self._cosine[pair]

    async def file(self, one: HasFile, refuse: Refuse) -> Adapter | None:
        """An adapter's file; None, and `refuse` is told why, where it cannot be read."""
        if one.digest not in self._files:
            if (adapter := await self._read(one, refuse)) is None:
                return None
            self._files[one.digest] = adapter
            while len(self._files) > 2 and sum(one.nbytes for one in self._files.values()) > MAX_FILES_BYTES:
                del self._files[next(iter(self._files))]  # the oldest
        return self._files[one.digest]

    async def _read(self, one: HasFile, refuse: Refuse) -> Adapter | None:
        try:
            return await asyncio.to_thread(decode, await self._store.get(one.digest))
        except SmoaError as error:
            refuse(f"{one.adapter_id} cannot be compared: {error}")
            return None
