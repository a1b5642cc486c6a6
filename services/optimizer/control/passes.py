"""One pass: read the library, propose, and carry on what is planned, through the registry."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Iterable

from services.optimizer.control.archiving import Archiving
from services.optimizer.control.caution import Caution
from services.optimizer.control.changes import Changes, Known, PassReport, Proposal
from services.optimizer.control.freezing import Freezing
from services.optimizer.control.gate import Gate
from services.optimizer.control.library import Library
from services.optimizer.control.likeness import Likeness
from services.optimizer.control.making import ChildMaker
from services.optimizer.control.making import Merge as MergeFiles
from services.optimizer.control.trials import Trials
from services.optimizer.control.views import protection_of, view_of
from services.optimizer.policy.library_policy import AdapterView, Rules, merges, prunes
from services.optimizer.policy.merging import merged
from services.optimizer.policy.screening import Screen, oldest_us, screened
from services.optimizer.policy.versions import supersedes
from smoa.adapter import Adapter
from smoa.client import SmoaClient
from smoa.store import AdapterStore
from smoa.v1 import changes_pb2
from smoa.v1.state_pb2 import AdapterCounts

_log = logging.getLogger(__name__)


class Optimizer:
    """Applies the policy. `counted_since` says since when (microseconds) this worker counts all of an adapter's uses and outcomes; None if
    another worker does, which decides about it then: so workers share the library without talking.
    """

    def __init__(
        self,
        client: SmoaClient,
        store: AdapterStore,
        rules: Rules,
        counted_since: Callable[[str], int | None],
        max_family: int,
        merge: MergeFiles = merged,
        caution: Caution | None = None,
        gate: Gate | None = None,
        sign: Callable[[Adapter], Adapter] = lambda adapter: adapter,
        counts: Callable[[str], AdapterCounts | None] = lambda _: None,
        counted_from: Callable[[], float] = lambda: 0.0,
        forget: Callable[[Iterable[str]], None] = lambda _: None,
    ) -> None:
        """`counts` are an adapter's, as this worker has them; none of them began before `counted_from` (microseconds). `forget` is told of
        adapters that were purged long ago.
        """
        self._client, self._rules = client, rules
        self._counted_since, self._counted_from, self._forget = counted_since, counted_from, forget
        self._caution = caution or Caution()
        self.library = Library(client, rules.half_life_s)
        self._likeness = Likeness(store, rules.min_cosine, max_family)
        self.freezing = Freezing(client, rules)
        self.trials = Trials(client, self._caution.trial, self.freezing, counts)
        maker = ChildMaker(store, self._likeness, merge, gate, sign)
        self._archiving = Archiving(client, self.library, self._caution)
        self._changes = Changes(client, self._caution, maker, self.trials.began)

    async def run_pass(self) -> PassReport:
        """Merge, then prune among the rest: two near-duplicates share their uses, and each alone may look unneeded. Then try versions."""
        report, library = PassReport(), self.library
        await library.refresh()
        self._forget(library.purged())
        canaries = library.canaries.values()
        self.trials.are(canary for canary in canaries if self._owns(canary.adapter_id))
        on_trial = {parent for canary in canaries for parent in canary.canary_baseline}
        composed = {one async for composition in self._client.list_compositions(all_tenants=True) for one in composition.adapter_ids}
        now_us = time.time_ns() // 1000
        screen = await asyncio.to_thread(screened, library.blocks, library.families, self._rules, now_us, self._counted_from())
        await self.freezing.look(screen.levels, screen.families)
        known = await self._changes.known()
        views = _Views(lambda one: self._view(one, on_trial, composed, now_us))
        views.add(one for change in known.open.values() for one in change.adapter_ids if one in library)
        try:
            proposals = [*await self._proposals(screen, views, known, report), *self._purges()]
            await self._changes.carry_on(proposals, known, views.made, self._owns, self._ages_s(), report)
            report.archived = await self._archiving.run(self._owns)
        finally:
            self._likeness.forget_files()
        _log.info(
            "pass over %d adapters: %d open proposals, %d wait for a person; %d prunes, %d merges, %d versions tried and %d purges, "
            "%d files archived, %d refused, %d put off",
            *(len(library), len(report.proposed), report.waiting),
            *(len(report.pruned), len(report.merged), len(report.tried), len(report.purged)),
            *(report.archived, len(report.refused), report.put_off),
        )
        return report

    def _view(self, adapter_id: str, on_trial: Container[str], composed: Container[str], now_us: int) -> AdapterView:
        facts, since_us = self.library.facts(adapter_id), self._counted_since(adapter_id)
        protected = protection_of(facts, on_trial, composed, since_us, self._rules.window_s, now_us)
        return self.freezing.protected(view_of(facts, protected, self._rules.half_life_s, now_us))

    def _owns(self, adapter_id: str) -> bool:
        return self._counted_since(adapter_id) is not None

    async def _proposals(self, screen: Screen, views: _Views, known: Known, report: PassReport) -> list[Proposal]:
        found, library = list[Proposal](), self.library
        families = {family: [library.member(row) for row in rows] for family, rows in screen.mergeable.items()}
        likeness = await self._likeness.cosines(families, known.rejected, report.refuse)
        alike = {pair: cosine for pair, cosine in likeness.items() if cosine > self._rules.min_cosine}
        paired = views.add(one for pair in alike for one in pair)
        for merge in await asyncio.to_thread(merges, paired, alike, self._rules):
            ids = tuple(view.adapter_id for view in merge.adapters)
            evidence = {"cosine": merge.cosine, "benefit": merge.benefit}
            tenant = merge.adapters[0].tenant
            found.append(Proposal(changes_pb2.CHANGE_KIND_MERGE, tenant, ids, merge.reason, evidence, merge.merge_id))
        merging = {one for proposal in found for one in proposal.adapter_ids}
        for prune in prunes(views.add(library.id_of(row) for row in screen.doubtful), screen.tenants, self._rules):
            if (one := prune.adapter).adapter_id not in merging:
                since_us = int((time.time() - one.age_s) * 1e6)
                kind = changes_pb2.CHANGE_KIND_PRUNE
                found.append(Proposal(kind, one.tenant, (one.adapter_id,), prune.reason, prune.evidence, since_us=since_us))
        changing = {one for proposal in found for one in proposal.adapter_ids}
        versions = await asyncio.to_thread(library.versions)
        for pair in supersedes(views.add(one for one in versions if one not in changing), self._rules, known.tried):
            both = (pair.younger.adapter_id, pair.older.adapter_id)
            found.append(Proposal(changes_pb2.CHANGE_KIND_SUPERSEDE, pair.younger.tenant, both, pair.reason, {}))
        return found

    def _purges(self) -> list[Proposal]:
        """Weights of what this optimizer took away long ago."""
        if self._caution.purge_after_s <= 0:
            return []
        before_us = int((time.time() - self._caution.purge_after_s) * 1e6)
        return [
            Proposal(changes_pb2.CHANGE_KIND_PURGE, one.tenant, (adapter_id,), f"away for long: {one.reason}"[:2000], {})
            for adapter_id, one in self.library.away.items()
            if one.since_us < before_us
        ]

    def _ages_s(self) -> dict[str, float]:
        """By the tenant: since when its oldest adapter is there."""
        found = dict(oldest_us(self.library.blocks, self.library.families))
        for one in self.library.canaries.values():
            found[one.tenant] = min(one.created_at_us, found.get(one.tenant, one.created_at_us))
        return {tenant: time.time() - at_us / 1e6 for tenant, at_us in found.items()}


class _Views:
    """The policy's forms of those adapters that a pass looks at closely."""

    def __init__(self, make: Callable[[str], AdapterView]) -> None:
        self._make = make
        self.made: dict[str, AdapterView] = {}
        """By id."""

    def add(self, adapter_ids: Iterable[str]) -> list[AdapterView]:
        """Those of these, in order of their ids."""
        ids = sorted(set(adapter_ids))
        for one in ids:
            if one not in self.made:
                self.made[one] = self._make(one)
        return [self.made[one] for one in ids]
