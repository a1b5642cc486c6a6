"""From how close on queries are answered: what a pool's examples leave open is found from outcomes. Pure.

Examples say how close queries are if they are like them. They may be, or vary more, and nothing in the examples says which; so a pool's
threshold (`pool_fit.py`) leaves out few, of those that nobody is for as of the others. Queries that were answered rightly say more. Under
their own conformal threshold lies at most the share of such queries that may be lost. Up to there, the threshold rises as far as it leaves
out more queries that were answered wrongly than rightly (Chow 1970, "On optimum recognition error and reject tradeoff"): where nobody asks
for what is in no scope, nothing is lost.

A query that is left unanswered has no outcome, so those that were answered would seem closer and closer. Of queries between the pool's
threshold and the one that was found, one in `SAMPLED` is therefore answered all the same, and stands for so many (Horvitz and Thompson
1952; in a conformal threshold: Tibshirani et al. 2019, "Conformal prediction under covariate shift"). Which ones hangs on the query and the
hour alone, so that replicas agree.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final, NamedTuple

import numpy as np

from services.router.catalogue.port import Vector
from smoa.bounded_cache import ENTRY_BYTES, BoundedCache

SAMPLED: Final = 8
KEPT: Final = 2_048
"""Queries of a tenant that are remembered."""
_AGAIN: Final = 16
"""The threshold is found again after one in so many of them."""


class Closeness(NamedTuple):
    """How close a query is to the likeliest adapter."""

    value: float
    """In standard deviations of how close the adapter's own examples are."""
    stands_for: int
    """So many queries as close are known by its outcome: 0, if it is left unanswered."""


class Bar(NamedTuple):
    """What queries of a tenant have to pass, as closeness in standard deviations."""

    every: float
    """From there on, every query is answered."""
    some: float
    """From there on, one in `SAMPLED`: the pool's own threshold."""
    hour: int = 0
    """Since the epoch."""

    def of(self, value: float, query: Vector) -> Closeness:
        """How close a query with this vector is, and how many it stands for."""
        if value >= self.every or value < self.some:
            return Closeness(value, int(value >= self.every))
        drawn = hashlib.blake2b(query.tobytes() + self.hour.to_bytes(8, "little"), digest_size=4).digest()
        return Closeness(value, SAMPLED if int.from_bytes(drawn, "little") % SAMPLED == 0 else 0)


class Thresholds:
    """Found for as many tenants as fit into a number of bytes, each from its own queries."""

    def __init__(self, in_scope_loss: float, max_bytes: int = 16 * 2**20) -> None:
        self._in_scope_loss = in_scope_loss
        self._seen: BoundedCache[tuple[str, str], _Seen] = BoundedCache(max_bytes)

    def observe(self, tenant: str, base_model: str, closeness: float, stands_for: float, *, right: bool) -> None:
        """Take in a query that was answered, rightly or not. Numbers that no router sends say nothing."""
        if not math.isfinite(closeness) or not 1 <= stands_for <= SAMPLED:
            return
        key = (tenant, base_model)
        seen = self._seen.get(key) or _Seen()
        seen.add(closeness, stands_for if right else -stands_for)
        self._seen.put(key, seen, ENTRY_BYTES + 500 + seen.queries.nbytes)

    def of(self, tenant: str, base_model: str, least: float, now_s: float) -> Bar:
        """For queries of a tenant in pools whose own threshold is `least`."""
        seen = self._seen.get((tenant, base_model))
        every = least if seen is None else seen.threshold(least, self._in_scope_loss)
        return Bar(every, least, int(now_s // 3600))


class _Seen:
    """A tenant's queries."""

    def __init__(self) -> None:
        self.queries: Vector = np.empty((0, 2), np.float32)
        """[n, 2], the newest last: closeness, and how many it stands for, below 0 of one that was answered wrongly."""
        self._found: tuple[float, float] | None = None
        """A pool's threshold, and the one that was found for it."""
        self._since = 0
        """Queries since then."""

    def add(self, closeness: float, stands_for: float) -> None:
        """And one more."""
        self.queries = np.concatenate([self.queries, np.array([[closeness, stands_for]], np.float32)])[-KEPT:]
        self._since += 1

    def threshold(self, least: float, in_scope_loss: float) -> float:
        """Instead of `least`."""
        if self._found is None or self._found[0] != least or self._since * _AGAIN >= len(self.queries):
            self._found, self._since = (least, found_threshold(self.queries, least, in_scope_loss)), 0
        return self._found[1]


def found_threshold(queries: Vector, least: float, in_scope_loss: float) -> float:
    """What queries [n, 2] (see `_Seen`) make of a threshold `least`: that, or more."""
    closeness, places = np.unique(queries[:, 0], return_inverse=True)
    rightly, wrongly = (np.bincount(places, np.maximum(sign * queries[:, 1], 0)) for sign in (1, -1))
    # With the next query, which may stand for as many as any, and one more that is farther than all: few hardly show what there is.
    most = max(1.0, float(queries[:, 1].max(initial=1.0)))
    lost = np.cumsum(rightly) - rightly + most + 1
    allowed = (closeness >= least) & (lost <= in_scope_loss * (rightly.sum() + most) + 1e-9)
    more = np.where(closeness >= least, wrongly - rightly, 0)
    gained = np.where(allowed, np.cumsum(more) - more, 0)  # by leaving out those before each
    return float(closeness[gained.argmax()]) if gained.max(initial=0) > 0 else least
