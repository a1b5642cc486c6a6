"""One pass: read the library, propose, log every proposal with its numbers, apply through the registry."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from services.optimizer.candidates import near_pairs
from services.optimizer.merging import Child, cosines, merged, random_sketch
from services.optimizer.policy import AdapterView, Merge, Prune, Rules, merges, prunes
from smoa.adapter import Adapter, decode, encode
from smoa.client import SmoaClient
from smoa.errors import SmoaError
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

_log = logging.getLogger(__name__)


@dataclass
class PassReport:
    """What a pass did."""

    pruned: list[Prune] = field(default_factory=list)
    merged: list[Merge] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


MAX_PAIRS = 200_000
"""Near pairs of one family that a pass compares."""


class Known(NamedTuple):
    """What is kept of a file between passes."""

    layers: tuple[int, ...]
    sketch: NDArray[np.float32]


class Optimizer:
    """Applies the policy. `owns` says which adapters this worker decides about, so that workers share the library without talking."""

    def __init__(
        self,
        client: SmoaClient,
        store: AdapterStore,
        rules: Rules,
        owns: Callable[[str], bool],
        dry_run: bool,
        max_family: int,
        merge: Callable[[Sequence[Adapter], Sequence[float], str], Child] = merged,
    ) -> None:
        self._client, self._store, self._rules, self._owns = client, store, rules, owns
        self._dry_run, self._max_family, self._merge = dry_run, max_family, merge
        self._known: dict[str, Known] = {}
        self._cosine: dict[tuple[str, str], float] = {}  # by digests
        self._files: dict[str, Adapter] = {}

    async def run_pass(self) -> PassReport:
        """Merge, then prune among the rest: two near-duplicates share their uses, and each alone may look unneeded."""
        report = PassReport()
        library = [view_of(adapter) async for adapter in self._client.list_all(all_tenants=True)]
        try:
            await self._change(library, report)
        finally:
            self._files = {}
        verb = "would have applied" if self._dry_run else "applied"
        _log.info(
            "pass over %d adapters %s %d prunes and %d merges, %d refused",
            len(library),
            verb,
            len(report.pruned),
            len(report.merged),
            len(report.refused),
        )
        return report

    async def _change(self, library: Sequence[AdapterView], report: PassReport) -> None:
        likeness = await self._cosines(library, report)
        proposed = await asyncio.to_thread(merges, library, likeness, self._rules)
        for merge in proposed:
            if self._owns(merge.adapters[0].adapter_id):
                await self._apply_merge(merge, report)
        merging = {view.adapter_id for merge in proposed for view in merge.adapters}
        for prune in prunes(library, self._rules):
            if prune.adapter.adapter_id not in merging and self._owns(prune.adapter.adapter_id):
                await self._apply_prune(prune, report)

    async def _apply_prune(self, prune: Prune, report: PassReport) -> None:
        adapter = prune.adapter
        _log.info("%sprune %s %s: %s", "dry run: " if self._dry_run else "", adapter.name, adapter.adapter_id, prune.reason)
        if not self._dry_run:
            try:
                await self._client.retire(adapter.tenant, adapter.adapter_id, prune.reason)
            except grpc.aio.AioRpcError as error:
                self._refuse(report, f"prune {adapter.adapter_id}: {error.details()}")
                return
        report.pruned.append(prune)

    async def _apply_merge(self, merge: Merge, report: PassReport) -> None:
        parents = [adapter.adapter_id for adapter in merge.adapters]
        _log.info("%smerge %s: %s", "dry run: " if self._dry_run else "", " + ".join(parents), merge.reason)
        if not self._dry_run:
            weights = [adapter.successes + 1.0 for adapter in merge.adapters]
            parts = [one for adapter in merge.adapters if (one := await self._file(adapter, report)) is not None]
            if len(parts) < len(merge.adapters):
                return
            try:
                child = await asyncio.to_thread(self._merge, parts, weights, merge.merge_id)
                digest = await self._store.put(encode(child.adapter))
                reason = f"{merge.reason}; {child.error:.2%} of the wanted change lost" if child.error else merge.reason
                await self._client.apply_merge(merge.adapters[0].tenant, merge.merge_id, digest, parents, reason)
            except grpc.aio.AioRpcError as error:
                self._refuse(report, f"merge {merge.merge_id}: {error.details()}")
                return
            except SmoaError as error:
                self._refuse(report, f"merge {merge.merge_id}: {error}")
                return
        report.merged.append(merge)

    def _refuse(self, report: PassReport, reason: str) -> None:
        _log.warning("not applied, will be proposed again: %s", reason)
        report.refused.append(reason)

    async def _cosines(self, library: Iterable[AdapterView], report: PassReport) -> dict[tuple[str, str], float]:
        """Of those that may be alike by their sketches: a file is read once for its sketch, and again only if it has a near one."""
        families: defaultdict[tuple[object, ...], list[AdapterView]] = defaultdict(list)
        for view in library:
            families[view.family].append(view)
        groups: defaultdict[tuple[object, ...], list[AdapterView]] = defaultdict(list)
        for name, family in families.items():
            if len(family) > self._max_family:
                _log.warning("a family of %d adapters is compared in its newest %d only", len(family), self._max_family)
                family = sorted(family, key=lambda view: view.age_s)[: self._max_family]
            for view in family if len(family) > 1 else []:
                if (known := await self._sketched(view, report)) is not None:
                    groups[(*name, known.layers)].append(view)
        wanted = {view.digest for group in groups.values() for view in group}
        self._known = {digest: known for digest, known in self._known.items() if digest in wanted}
        self._cosine = {pair: cosine for pair, cosine in self._cosine.items() if wanted.issuperset(pair)}
        found: dict[tuple[str, str], float] = {}
        for group in groups.values():
            sketches = np.stack([self._known[view.digest].sketch for view in group])
            near = await asyncio.to_thread(near_pairs, sketches, self._rules.min_cosine, MAX_PAIRS)
            if len(near) == MAX_PAIRS:
                _log.warning("of a family of %d adapters only the first %d near pairs are compared", len(group), MAX_PAIRS)
            for place_a, place_b in near:
                low, high = sorted((group[place_a], group[place_b]), key=lambda view: view.adapter_id)
                if (cosine := await self._compared(low, high, report)) is not None:
                    found[low.adapter_id, high.adapter_id] = cosine
        return found

    async def _compared(self, low: AdapterView, high: AdapterView, report: PassReport) -> float | None:
        pair = (low.digest, high.digest)
        if pair not in self._cosine:
            first, second = await self._file(low, report), await self._file(high, report)
            if first is None or second is None:
                return None
            self._cosine[pair] = next(iter((await asyncio.to_thread(cosines, [first, second])).values()))
        return self._cosine[pair]

    async def _sketched(self, view: AdapterView, report: PassReport) -> Known | None:
        if (known := self._known.get(view.digest)) is not None:
            return known
        if (adapter := await self._file(view, report)) is None:
            return None
        del self._files[view.digest]
        known = self._known[view.digest] = Known(adapter.manifest.layers, await asyncio.to_thread(random_sketch, adapter))
        return known

    async def _file(self, view: AdapterView, report: PassReport) -> Adapter | None:
        if view.digest not in self._files:
            try:
                self._files[view.digest] = await asyncio.to_thread(decode, await self._store.get(view.digest), view.digest)
            except SmoaError as error:
                self._refuse(report, f"{view.adapter_id} cannot be compared: {error}")
                return None
        return self._files[view.digest]


def view_of(adapter: registry_pb2.Adapter) -> AdapterView:
    """The policy's form of a registry entry."""
    return AdapterView(
        adapter_id=adapter.adapter_id,
        digest=adapter.digest,
        tenant=adapter.tenant,
        name=adapter.name,
        kind=common.AdapterKind.Name(adapter.kind).removeprefix("ADAPTER_KIND_").lower(),
        base_model=adapter.base_model,
        rank=adapter.rank,
        modules=tuple(adapter.modules),
        age_s=time.time() - adapter.created_at_us / 1e6,
        uses=adapter.statistics.uses,
        outcomes=adapter.statistics.outcomes,
        successes=adapter.statistics.successes,
    )
