"""By meaning and by hints: the default."""

from __future__ import annotations

from typing import Final

from services.router.catalogue.records import Candidate
from services.router.routing.scoring import Hints, task_score
from services.router.routing.strategies.strategy import Strategy, Wanted, labelled_of

SEMANTIC_SHARE, TASK_SHARE = 0.6, 0.4
HINTED: Final = 12.0
"""Log odds that a full fit to the hints adds to how likely an adapter is: more than examples can say against it."""


class Hybrid(Strategy):
    """0.6 cosine + 0.4 fit to the hints. Without hints there is nothing to fit, and it is the cosine alone."""

    name = "hybrid"

    def wanted(self, top_k: int, most: int, hints: Hints, *, closely: bool) -> Wanted:
        """See `Strategy`. Where the score alone ranks, as many are enough as are asked for: the nearest of those that fit alike."""
        few = most if closely else top_k
        return Wanted(few, labelled_of(few, most, hints))

    def score(self, candidate: Candidate, hints: Hints) -> float:
        """See `Strategy`."""
        if not hints:
            return candidate.cosine
        return SEMANTIC_SHARE * candidate.cosine + TASK_SHARE * task_score(candidate.labels, hints)

    def log_odds(self, score: float, likely: float, candidate: Candidate, hints: Hints) -> float:
        """See `Strategy`."""
        return likely + HINTED * task_score(candidate.labels, hints)
