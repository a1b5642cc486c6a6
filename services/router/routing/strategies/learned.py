"""As hybrid, then in the order of what came of earlier choices: by a learned ranker, and by what outcomes said of queries like this one;
exploring by what is not known yet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from services.router.catalogue.port import Catalogue, Vector
from services.router.catalogue.records import AdapterRecord
from services.router.learning.contexts import Contexts, Correction, context_of, projected
from services.router.learning.habits import Habits
from services.router.learning.pool_fit import PoolFit
from services.router.learning.posteriors import Posteriors
from services.router.learning.ranker import CONSIDERED, WITHIN, Considered, builtin, considered, order
from services.router.routing.explanation import Judged
from services.router.routing.query import Choice, RouteQuery, RoutingDefaults
from services.router.routing.scoring import Hints, weigh
from services.router.routing.strategies.hybrid import Hybrid
from services.router.routing.strategies.strategy import Wanted


class Taught(NamedTuple):
    """What an outcome teaches of an adapter."""

    success: bool
    weight: float = 1.0
    """The adapter's share in it, in [0, 1]."""
    context: bytes = b""
    """The decision's, and the probability of success that it expected."""
    expected: float = 0.0
    user: bytes = b""
    """Hash of who asked."""


class Learned(Hybrid):
    """Scored as hybrid does; the best few are ordered by the ranker, sampled by what is known of each. It decides anew each time."""

    name = "learned"
    repeats = False

    def __init__(self, catalogue: Catalogue, seed: int | None = None) -> None:
        self._catalogue, self._rng = catalogue, np.random.default_rng(seed)
        self.ranker = builtin()
        """What it orders by; replaced while it serves."""
        self.posteriors, self.contexts, self.habits = Posteriors(), Contexts(), Habits()

    def observe(self, tenant: str, adapter_id: str, taught: Taught, *, used: bool = True) -> None:
        """Learn what a decision turned out to be for one of its adapters; or, not `used`, that it is said to have been the right one."""
        if used:
            self.posteriors.observe(tenant, adapter_id, taught.success, taught.weight)
        self.contexts.observe(tenant, adapter_id, taught.context, taught.success - taught.expected, taught.weight)
        self.habits.observe(taught.user, adapter_id, taught.success, taught.weight)

    def wanted(self, top_k: int, most: int, hints: Hints, *, closely: bool) -> Wanted:
        """See `Strategy`."""
        return super().wanted(top_k, most, hints, closely=True)

    def widest(self, top_k: int) -> int:
        """See `Strategy`."""
        return max(top_k, CONSIDERED)

    async def choose(
        self, query: RouteQuery, vector: Vector, fit: PoolFit | None, judged: Sequence[Judged], defaults: RoutingDefaults, *, explore: bool
    ) -> Choice:
        """See `Strategy`."""
        assert query.top_k is not None
        if not judged:
            return Choice(ranker=self.ranker.version)
        best, now_us = judged[0].scored.log_odds, time.time_ns() // 1000
        near = [one for one in judged[:CONSIDERED] if one.scored.log_odds >= best - WITHIN]
        records = await self._catalogue.records([one.scored.candidate.ref.adapter_id for one in near])
        near = [one for one in near if one.scored.candidate.ref.adapter_id in records]
        if not near:  # they were removed while they were looked at
            return Choice(ranker=self.ranker.version)
        context = context_of(vector if fit is None else fit.whole(vector))
        centre = projected(np.zeros_like(vector) if fit is None else fit.centre)
        ids = [one.scored.candidate.ref.adapter_id for one in near]
        corrections = [self.contexts.correction(query.tenant, one, context, centre) for one in ids]
        candidates = [
            self._considered(query, one, records[adapter_id], best, now_us, correction, habit)
            for one, adapter_id, correction, habit in zip(near, ids, corrections, self.habits.log_odds(query.user, ids), strict=True)
        ]
        ranking = order(self.ranker, candidates, self._rng, explore=explore)
        places = ranking.order
        chosen = weigh(
            [near[place].scored for place in places[: query.top_k]],
            [ranking.log_odds[place] for place in places[: query.top_k]],
            self.min_weight(defaults),
        )
        return Choice(
            tuple(chosen),
            near[places[0]].confidence,
            tuple(candidates[place] for place in places),
            tuple(ranking.propensities[place] for place in places),
            tuple(ranking.expected[place] for place in places),
            self.ranker.version,
            context,
        )

    def _considered(
        self, query: RouteQuery, one: Judged, record: AdapterRecord, best: float, now_us: int, correction: Correction, habit: float
    ) -> Considered:
        adapter_id = record.adapter_id
        return considered(
            adapter_id,
            log_odds=one.scored.log_odds,
            best=best,
            example=one.example,
            task=one.task,
            posterior=self.posteriors.of(query.tenant, adapter_id, record.statistics),
            evidence=self.posteriors.evidence(query.tenant, adapter_id),
            days=(now_us - record.created_at_us) / 86_400e6,
            uses=record.statistics.uses,
            correction=correction,
            habit=habit,
        )
