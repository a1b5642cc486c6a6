"""Many adapters at once, softly weighted: where several know a part each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.router.routing.query import RoutingDefaults
from services.router.routing.scoring import MAX_MIXED, Chosen, Hints, Scored, effective, softmax, without_slivers
from services.router.routing.strategies.hybrid import Hybrid
from services.router.routing.strategies.strategy import Wanted

MIN_MIXED: Final = 0.05
"""Least weight in a mixture, as a share of the largest."""
_HALVINGS: Final = 30


class Mixture(Hybrid):
    """Scored as hybrid does; up to `MAX_MIXED` adapters, of which no more than `top_k` in effect."""

    name = "mixture"

    def wanted(self, top_k: int, most: int, hints: Hints, *, closely: bool) -> Wanted:
        """See `Strategy`."""
        return super().wanted(top_k, most, hints, closely=True)

    def widest(self, top_k: int) -> int:
        """See `Strategy`."""
        return MAX_MIXED

    def min_weight(self, defaults: RoutingDefaults) -> float:
        """See `Strategy`."""
        return MIN_MIXED

    def weigh(self, ranked: Sequence[Scored], top_k: int, defaults: RoutingDefaults) -> list[Chosen]:
        """See `Strategy`."""
        return mix(ranked, top_k, defaults.mixture_temperature / defaults.temperature)


def mix(ranked: Sequence[Scored], top_k: int, temperature: float) -> list[Chosen]:
    """Soft weights over up to `MAX_MIXED` adapters. They are no more than `top_k` in effect: 1 / sum(w^2), the inverse participation ratio.

    The temperature is lowered until that holds; among equals, which no temperature tells apart, the first `top_k` stay.
    """
    kept = ranked[:MAX_MIXED]
    values = [one.log_odds for one in kept]
    weights = softmax(values, temperature)
    low, high = 0.0, 1.0  # of the temperature: the first holds the cap, the second does not
    if effective(weights) > top_k:
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if effective(softmax(values, temperature * middle)) <= top_k else (low, middle)
        weights = softmax(values, temperature * low) if low else [1 / top_k] * top_k
    return without_slivers(kept[: len(weights)], weights, MIN_MIXED)
