"""Which adapters are right for a user: their own successes, as a prior over the candidates of their next query. Pure.

A Dirichlet prior over a user's topics (as for a multinomial in Gelman et al., "Bayesian data analysis", 3.4), the same for all candidates,
worth `PRIOR` queries; old successes fade, as `posteriors.py` has it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

from smoa.bounded_cache import ENTRY_BYTES, BoundedCache

PRIOR: Final = 4.0
DISCOUNT: Final = 0.95
"""What a success leaves of the weight of those before it: about the last 20 count."""
KEPT: Final = 16
"""Adapters of a user that are remembered."""


def hash_of_user(tenant: str, user: str) -> bytes:
    """By which a user of a tenant is told from others: 8 bytes."""
    return hashlib.blake2b(f"{tenant}\0{user}".encode(), digest_size=8).digest()


class Habits:
    """Successes by user, for as many users as fit into a number of bytes."""

    def __init__(self, max_bytes: int = 16 * 2**20) -> None:
        self._seen: BoundedCache[bytes, dict[str, float]] = BoundedCache(max_bytes)

    def observe(self, user: bytes, adapter_id: str, success: bool, weight: float = 1.0) -> None:
        """Count an outcome; `weight` in [0, 1] is the adapter's share in it. What failed says nothing of the user's topics."""
        if not user or not success or not weight > 0:
            return
        seen = {one: count * DISCOUNT**weight for one, count in (self._seen.get(user) or {}).items()}
        seen[adapter_id] = seen.get(adapter_id, 0.0) + weight
        kept = dict(sorted(seen.items(), key=lambda one: -one[1])[:KEPT]) if len(seen) > KEPT else seen
        self._seen.put(user, kept, ENTRY_BYTES + 150 * len(kept))

    def log_odds(self, user: bytes, adapter_ids: Sequence[str]) -> list[float]:
        """Logarithm of how much likelier than any other each candidate is, for what the user asked before; 0 where nothing is known."""
        seen = self._seen.get(user) if user else None
        if not seen:
            return [0.0] * len(adapter_ids)
        each = PRIOR / len(adapter_ids)
        return [math.log1p(seen.get(one, 0.0) / each) for one in adapter_ids]
