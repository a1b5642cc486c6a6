"""By meaning, and only within the nearest clusters: where a library has clear families."""

from __future__ import annotations

from services.router.routing.explanation import MAX_EXPLAINED
from services.router.routing.scoring import Hints
from services.router.routing.strategies.strategy import Strategy, Wanted


class Hierarchical(Strategy):
    """The nearest of a few clusters."""

    name = "hierarchical"

    def wanted(self, top_k: int, most: int, hints: Hints, *, explaining: bool) -> Wanted:
        """See `Strategy`."""
        return Wanted(MAX_EXPLAINED if explaining else top_k, in_clusters=True)
