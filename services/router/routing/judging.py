"""Candidates judged by what their pool's fit says (`pool_fit.py`), or by their cosines while it says nothing."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from services.router.catalogue.port import Catalogue, Vector
from services.router.catalogue.records import Candidate, Reach
from services.router.learning.pool_fit import LEAST_ODDS, LOOKED_AT, PoolFit
from services.router.learning.thresholds import Thresholds
from services.router.routing.explanation import Judged
from services.router.routing.pool_fits import Changes, PoolFits
from services.router.routing.query import RoutingDefaults
from services.router.routing.scoring import Hints, Scored, task_score
from services.router.routing.strategies.strategy import Strategy
from smoa.bounded_cache import ENTRY_BYTES, BoundedCache
from smoa.embedding import surface
from smoa.embedding.port import unit_rows
from smoa.embedding.views import centroids

_LEARNED_AT_ONCE: Final = 8  # a fifth of a millisecond each
_NONE: Vector = np.empty((0, 0), np.float32)


class Judge:
    """Of one router: the fits of its pools, and the vectors of examples that it has read."""

    def __init__(self, catalogue: Catalogue, changes: Changes, defaults: RoutingDefaults) -> None:
        self._catalogue, self._changes, self._defaults = catalogue, changes, defaults
        self._examples: BoundedCache[str, Vector] = BoundedCache(defaults.example_cache_bytes)
        self.fits = PoolFits(catalogue, changes, defaults.in_scope_loss, defaults.fit_cache_bytes)
        self.thresholds = Thresholds(defaults.in_scope_loss)
        self.clock: Callable[[], float] = time.time
        """Seconds since the epoch."""

    def adapter_changed(self, adapter_id: str) -> None:
        """An adapter is not what it was."""
        self._examples.drop(adapter_id)
        self.fits.forget(adapter_id)

    async def ranked(
        self, strategy: Strategy, vector: Vector, candidates: Iterable[Candidate], hints: Hints, reach: Reach, fit: PoolFit | None
    ) -> list[Scored]:
        """Candidates scored by a strategy, likeliest first."""
        found = list(candidates)
        log_odds = None if fit is None or not fit.ranks else await self._log_odds(vector, found, reach, fit)
        return strategy.rank(found, hints, self._defaults.temperature, log_odds)

    async def _log_odds(self, vector: Vector, candidates: Sequence[Candidate], reach: Reach, fit: PoolFit) -> list[float] | None:
        """By the fit, up to a constant; those without examples are put where their cosines are. None where none has examples."""
        unknown = [one for one in candidates if one.has_examples and one.ref.adapter_id not in fit.known]
        for number, (adapter_id, examples) in enumerate((await self._examples_of(unknown, reach)).items(), 1):
            if len(examples):
                fit.learn(adapter_id, examples)
            if number % _LEARNED_AT_ONCE == 0:
                await asyncio.sleep(0)
        described = [one.ref.adapter_id for one in candidates if one.ref.adapter_id in fit.known]
        if not described:
            return None
        found = dict(zip(described, await self._likely(fit.whole(vector), candidates, described, reach, fit), strict=True))
        best = max((one for one in candidates if one.ref.adapter_id in found), key=lambda one: one.cosine)
        anchor = found[best.ref.adapter_id]

        def by_cosine(one: Candidate) -> float:
            return anchor + min(max((one.cosine - best.cosine) / self._defaults.temperature, -LEAST_ODDS), LEAST_ODDS)

        return [found[one.ref.adapter_id] if one.ref.adapter_id in found else by_cosine(one) for one in candidates]

    async def _likely(
        self, vector: Vector, candidates: Sequence[Candidate], described: Sequence[str], reach: Reach, fit: PoolFit
    ) -> list[float]:
        """Of those with examples; of the likeliest of them, the nearest example counts."""
        log_odds = fit.log_odds(vector, described)
        if not fit.nearness or len(described) == 1:
            return fit.with_nearest(log_odds, {})
        likeliest = heapq.nlargest(LOOKED_AT, range(len(described)), key=log_odds.__getitem__)
        by_id = {one.ref.adapter_id: one for one in candidates}
        examples = await self._examples_of([by_id[described[place]] for place in likeliest], reach)
        cosines = {place: float((own @ vector).max()) for place in likeliest if len(own := examples[described[place]])}
        return fit.with_nearest(log_odds, cosines)

    async def judged(self, vector: Vector, ranked: Sequence[Scored], hints: Hints, reach: Reach, fit: PoolFit | None) -> list[Judged]:
        """Each with how close the query is, and the probability that it is in its scope."""
        examples = await self._examples_of([one.candidate for one in ranked], reach)
        bar = None
        if fit is not None and fit.can_tell and surface.is_known(vector):  # of examples it is known how close they are in both views
            bar = self.thresholds.of(reach.tenant, reach.base_model, fit.threshold, self.clock())
        made = []
        for one in ranked:
            candidate, own = one.candidate, examples[one.candidate.ref.adapter_id]
            task = task_score(candidate.labels, hints)
            nearest = float((own @ vector).max()) if len(own) else candidate.cosine
            fits, confidence, closeness = True, None, None
            if fit is not None and bar is not None and len(own):
                closeness = bar.of(fit.closeness(vector, candidate.ref.adapter_id, own), vector)
                fits, confidence = closeness.stands_for > 0 or bool(task), max(fit.probability(closeness.value), task)
            elif not len(own):
                fits = one.score >= self._defaults.score_threshold
            made.append(Judged(one, fits, confidence, nearest, task, None if task else closeness))
        return made

    async def placed(self, vector: Vector, candidates: Sequence[Candidate], reach: Reach) -> list[Candidate]:
        """Candidates that no search has found, with the cosines that their examples have; those without examples as they are."""
        examples = await self._examples_of(candidates, reach)
        made = []
        for one in candidates:
            own = examples[one.ref.adapter_id]
            cosine = float(centroids(own) @ vector) if len(own) else one.cosine
            made.append(one._replace(cosine=cosine, has_examples=len(own) > 0))
        return made

    def vague(self, vector: Vector, means: Vector | None, judged: Sequence[Judged], fit: PoolFit | None) -> float:
        """Log odds that a query is as lines that say nothing of any topic, of which these are the means of groups [groups, dimension],
        against the likeliest judged.
        """
        if means is None or not judged or judged[0].task:
            return -LEAST_ODDS  # a hint that fits says of what it is
        best = judged[0].scored.candidate
        if fit is not None and fit.ranks and best.ref.adapter_id in fit.known:
            return fit.ahead(fit.whole(vector), means, best.ref.adapter_id)
        return (float((unit_rows(means) @ vector).max()) - best.cosine) / self._defaults.temperature

    async def _examples_of(self, candidates: Sequence[Candidate], reach: Reach) -> dict[str, Vector]:
        """Vectors of examples [n, dimension] by adapter; n is 0 where it has none."""
        found: dict[str, Vector] = {}
        missing = []
        for candidate in candidates:
            adapter_id = candidate.ref.adapter_id
            known = self._examples.get(adapter_id) if candidate.has_examples else _NONE
            if known is None:
                missing.append(adapter_id)
            else:
                found[adapter_id] = known
        if missing:
            state = self._changes.state_of(reach.pools)
            read = await self._catalogue.example_vectors(missing)
            for adapter_id in missing:
                found[adapter_id] = vectors = read.get(adapter_id, _NONE)
                if state == self._changes.state_of(reach.pools):  # else these may be of before a change
                    self._examples.put(adapter_id, vectors, ENTRY_BYTES + vectors.nbytes)
        return found
