"""By meaning and by hints: the default."""

from __future__ import annotations

from services.router.catalogue.records import Candidate
from services.router.routing.scoring import Hints, task_score
from services.router.routing.strategies.strategy import Strategy, Wanted

SEMANTIC_SHARE, TASK_SHARE = 0.6, 0.4


class Hybrid(Strategy):
    """0.6 cosine + 0.4 fit to the hints. Without hints there is nothing to fit, and it is the cosine alone."""

    name = "hybrid"

    def wanted(self, top_k: int, most: int, hints: Hints, *, explaining: bool) -> Wanted:
        """See `Strategy`. Where the cosine alone ranks, no more is needed than is asked for."""
        return Wanted(most if explaining or hints else top_k, labelled=bool(hints))

    def score(self, candidate: Candidate, hints: Hints) -> float:
        """See `Strategy`."""
        if not hints:
            return candidate.cosine
        assert candidate.labels is not None, "hints are scored on labels"
        return SEMANTIC_SHARE * candidate.cosine + TASK_SHARE * task_score(candidate.labels, hints)
