"""By meaning, and only within the nearest clusters: where a library has clear families."""

from __future__ import annotations

from services.router.routing.scoring import Hints
from services.router.routing.strategies.strategy import Strategy, Wanted


class Hierarchical(Strategy):
    """The nearest of a few clusters."""

    name = "hierarchical"

    def wanted(self, top_k: int, most: int, hints: Hints, *, closely: bool) -> Wanted:
        """See `Strategy`."""
        return Wanted(most if closely else top_k, in_clusters=True)
