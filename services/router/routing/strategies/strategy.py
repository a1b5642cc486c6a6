"""What a strategy is: what it looks at, how it scores that, and how scores become a choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from services.router.catalogue.port import Vector
from services.router.catalogue.records import Candidate
from services.router.learning.pool_fit import PoolFit
from services.router.routing.explanation import Judged
from services.router.routing.query import Choice, RouteQuery, RoutingDefaults
from services.router.routing.scoring import Chosen, Hints, Scored, weigh


class Wanted(NamedTuple):
    """What a strategy looks at."""

    nearest: int
    """So many of the nearest adapters."""
    labelled: int = 0
    """And so many of the nearest with a label that a hint names."""
    in_clusters: bool = False
    """Only within the nearest clusters."""


def labelled_of(few: int, most: int, hints: Hints) -> int:
    """How many with a hinted label to look at: those that have one of several fit the hints more or less, and the nearest may fit least."""
    labels = sum(map(len, hints.labels))
    return most if labels > 1 else few if labels else 0


class Strategy:
    """By the cosine alone, unless a subclass says otherwise."""

    name: ClassVar[str]
    repeats: ClassVar[bool] = True
    """Whether equal queries have one answer, which may be kept."""

    def check(self, hints: Hints) -> None:
        """Raise InvalidArgument for hints with which it can choose nothing."""

    def wanted(self, top_k: int, most: int, hints: Hints, *, closely: bool) -> Wanted:
        """What to look at for `top_k` adapters: `most` of them where what is found is looked at more closely, and may change places."""
        return Wanted(most if closely else top_k)

    def score(self, candidate: Candidate, hints: Hints) -> float:
        """Score of a candidate, higher is better."""
        return candidate.cosine

    def log_odds(self, score: float, likely: float, candidate: Candidate, hints: Hints) -> float:
        """The order of candidates, and their weights: how likely each is by the pool's fit, whatever it scored by its cosine."""
        return likely

    def rank(self, candidates: Sequence[Candidate], hints: Hints, temperature: float, likely: Sequence[float] | None) -> list[Scored]:
        """Likeliest first; equals by cosine, then by id.

        Args:
            candidates: In any order.
            hints: The caller's.
            temperature: Of scores, where nothing else says how likely they are.
            likely: Of each candidate, the logarithm of how likely it is by the pool's fit, up to a constant.
        """
        scored = []
        for place, candidate in enumerate(candidates):
            score = self.score(candidate, hints)
            log_odds = score / temperature if likely is None else self.log_odds(score, likely[place], candidate, hints)
            scored.append(Scored(score, candidate, log_odds))
        return sorted(scored, key=lambda one: (-one.log_odds, -one.candidate.cosine, one.candidate.ref.adapter_id))

    def widest(self, top_k: int) -> int:
        """How many of the best scored are looked at closely."""
        return top_k

    def min_weight(self, defaults: RoutingDefaults) -> float:
        """The least weight of an adapter in a choice, as a share of the largest."""
        return defaults.min_weight

    def weigh(self, ranked: Sequence[Scored], top_k: int, defaults: RoutingDefaults) -> list[Chosen]:
        """Weights of the adapters in whose scope the query is."""
        return weigh(ranked, [one.log_odds for one in ranked], self.min_weight(defaults))

    async def choose(
        self, query: RouteQuery, vector: Vector, fit: PoolFit | None, judged: Sequence[Judged], defaults: RoutingDefaults, *, explore: bool
    ) -> Choice:
        """The choice among the adapters in whose scope the query is, best scored first; the query is complete, and `vector` [dimension] its
        own; `fit` is its pool's.
        """
        assert query.top_k is not None
        chosen = self.weigh([one.scored for one in judged], query.top_k, defaults)
        return Choice(tuple(chosen), confidence=judged[0].confidence if judged else 0.0)
