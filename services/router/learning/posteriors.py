"""How well each adapter does of late: a Beta distribution over its probability of success, in which old outcomes fade. Pure.

Discounted Thompson sampling (Raj and Kalyani 2017): every outcome of an adapter takes a little weight from its earlier ones, so that the
distribution follows an adapter that becomes better or worse, and stays wide for one that was tried little.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from services.router.catalogue.statistics import Statistics
from smoa.bounded_cache import ENTRY_BYTES, BoundedCache

DISCOUNT: Final = 0.94
"""What an outcome leaves of the weight of those before it: about the last 16 count."""
PRIOR_SUCCESS, PRIOR_STRENGTH = 0.6, 2.0
"""Of an adapter that nobody has tried: a success as likely as that, worth so many outcomes."""
MAX_LIFETIME_STRENGTH: Final = 6.0
"""Most outcomes that an adapter's lifetime counts are worth."""


class Posterior(NamedTuple):
    """Beta(alpha, beta)."""

    alpha: float
    beta: float

    @property
    def mean(self) -> float:
        """Expected probability of success."""
        return self.alpha / (self.alpha + self.beta)


class Posteriors:
    """Outcomes as they come, for as many adapters as fit into a number of bytes; each tenant's own: none sways another's."""

    def __init__(self, max_bytes: int = 32 * 2**20) -> None:
        self._recent: BoundedCache[tuple[str, str], tuple[float, float]] = BoundedCache(max_bytes)

    def observe(self, tenant: str, adapter_id: str, success: bool, weight: float = 1.0) -> None:
        """Count an outcome; `weight` in [0, 1] is the adapter's share in it."""
        kept = DISCOUNT**weight
        good, bad = self._recent.get((tenant, adapter_id)) or (0.0, 0.0)
        new = (good * kept + weight * success, bad * kept + weight * (not success))
        self._recent.put((tenant, adapter_id), new, ENTRY_BYTES + 260)

    def of(self, tenant: str, adapter_id: str, lifetime: Statistics | None = None) -> Posterior:
        """What is believed of an adapter for a tenant; `lifetime` are its counts as the optimizer reported them."""
        good, bad = self._recent.get((tenant, adapter_id)) or (0.0, 0.0)
        strength, success = PRIOR_STRENGTH, PRIOR_SUCCESS
        if lifetime is not None and lifetime.outcomes:
            success = (lifetime.successes + PRIOR_STRENGTH * PRIOR_SUCCESS) / (lifetime.outcomes + PRIOR_STRENGTH)
            strength = min(PRIOR_STRENGTH + lifetime.outcomes, MAX_LIFETIME_STRENGTH)
        return Posterior(strength * success + good, strength * (1 - success) + bad)

    def evidence(self, tenant: str, adapter_id: str) -> float:
        """How many recent outcomes count."""
        return sum(self._recent.get((tenant, adapter_id)) or (0.0, 0.0))
