"""Where in the space of queries an adapter is right, and where it is wrong: linear corrections that outcomes teach. Pure.

A query's context is a random projection of its vector to `CONTEXT` numbers (Johnson and Lindenstrauss 1984); in eight bits it travels with
the decision, and comes back with the outcomes. What hybrid expected of an adapter there is the prior. What an outcome was above or below it
is a sample of a linear function of x, the direction in which the context is seen from its pool's centre, whose weights are normal around
zero: a linear bandit's model (Li et al. 2010, "A contextual-bandit approach to personalized news article recommendation"), here of
residuals, and in its dual form (Rasmussen and Williams 2006, "Gaussian processes for machine learning", eq. 2.25): an adapter's last
outcomes are its memory, in 100 bytes each, where 64 weights and their covariance would take 16 KB from the first outcome on. Old outcomes
fade (as in Russac et al. 2019, "Weighted linear bandits for non-stationary environments").
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.router.catalogue.port import Vector
from smoa.bounded_cache import ENTRY_BYTES, BoundedCache
from smoa.embedding.port import unit_rows

Numbers = NDArray[np.float64]
CONTEXT: Final = 64
"""Numbers of a context; its bytes, too."""
KEPT: Final = 96
"""Outcomes of an adapter that are remembered."""
DISCOUNT: Final = 0.98
"""What an outcome leaves of the weight of those before it."""
_NOISES: Final = (0.3, 0.1, 1.0, 3.0, 10.0, 30.0)
"""Variance of an outcome, where that of a correction is 1: the first is taken until there are enough outcomes to choose by."""
_CHOSEN_FROM, _CHOSEN_EACH = 8, 4
"""Outcomes from which on the variance is chosen, and after how many it is chosen again."""
_UNIT: Final = np.float32(32)
"""Standard deviation of a context's numbers: few are over 127, four times that."""
_BYTES: Final = CONTEXT + 36
_LEAST_WEIGHT: Final = 1e-3


class Correction(NamedTuple):
    """To the probability of success that hybrid expects of an adapter."""

    mean: float = 0.0
    spread: float = 1.0
    """From 1, where nothing is known of such queries, to 0."""


NOTHING_LEARNED: Final = Correction()


def context_of(vector: Vector) -> bytes:
    """Context of a query with this unit vector, [dimension]. It does not depend on the pool, whose centre moves as adapters come and go."""
    return bytes(np.rint(np.clip(projected(vector), -127, 127)).astype(np.int8).tobytes())


def projected(vector: Vector) -> Vector:
    """[dimension] to [`CONTEXT`], in the units of contexts; of a unit vector, mostly within three times `_UNIT`."""
    made: Vector = vector @ _projection(len(vector))
    return made


@cache
def _projection(dimension: int) -> Vector:
    """[dimension, `CONTEXT`], normal numbers. `RandomState`, for its numbers are the same in every version of numpy."""
    made: Vector = _UNIT * np.random.RandomState(64).standard_normal((dimension, CONTEXT)).astype(np.float32)
    return made


class Contexts:
    """Outcomes by context, for as many adapters as fit into a number of bytes; each tenant's own: none sways another's."""

    def __init__(self, max_bytes: int = 32 * 2**20) -> None:
        self._seen: BoundedCache[tuple[str, str], _Seen] = BoundedCache(max_bytes)

    def observe(self, tenant: str, adapter_id: str, context: bytes, residual: float, weight: float = 1.0) -> None:
        """Take in what an outcome was above what was expected, in [-1, 1]; `weight` in [0, 1] is the adapter's share in it. One without a
        context, or with another one than `context_of` makes, teaches nothing here.
        """
        if len(context) != CONTEXT or not any(context) or not -1 <= residual <= 1 or not weight > _LEAST_WEIGHT:
            return
        key = (tenant, adapter_id)
        seen = (self._seen.get(key) or _NONE).with_one(context, residual, min(weight, 1.0))
        self._seen.put(key, seen, ENTRY_BYTES + 400 + _BYTES * len(seen.residuals))

    def correction(self, tenant: str, adapter_id: str, context: bytes, centre: Vector) -> Correction:
        """What is known of an adapter for queries there, as seen from a pool's centre, `projected`."""
        seen = self._seen.get((tenant, adapter_id))
        if seen is None or not any(context):
            return NOTHING_LEARNED
        return seen.correction(np.frombuffer(context, np.int8), centre)


class _Seen:
    """An adapter's last outcomes, the newest last. Never changed."""

    def __init__(self, contexts: NDArray[np.int8], residuals: Vector, weights: Vector, count: int = 0, noise: float = _NOISES[0]) -> None:
        self._contexts, self.residuals, self._weights, self._count, self._noise = contexts, residuals, weights, count, noise
        self._dual: tuple[Vector, Vector] | None = None
        """Weights of the outcomes, and the centre from which they were found."""

    def with_one(self, context: bytes, residual: float, weight: float) -> _Seen:
        """And one more."""
        row = np.frombuffer(context, np.int8)[None]
        return _Seen(
            np.concatenate([self._contexts, row])[-KEPT:],
            np.append(self.residuals, np.float32(residual))[-KEPT:],
            np.append(self._weights * DISCOUNT**weight, np.float32(weight))[-KEPT:],
            self._count + 1,
            self._noise,
        )

    def correction(self, context: NDArray[np.int8], centre: Vector) -> Correction:
        """At a context. The spread is that of outcomes which all lie along it, as far as they do."""
        units = unit_rows(self._contexts - centre)
        if self._dual is None or not np.array_equal(self._dual[1], centre):
            self._dual = self._learned(units), centre
        cosines = units @ unit_rows((context - centre)[None])[0]
        known = float((cosines * cosines) @ self._weights) / self._noise
        return Correction(float(cosines @ self._dual[0]), 1 / math.sqrt(1 + known))

    def _learned(self, units: Vector) -> Vector:
        """Weights of the outcomes. The noise is that under which they are most likely, whatever their scale (Rasmussen and Williams, eq.
        5.8): outcomes that follow no line in space correct nothing.
        """
        products = (units @ units.T).astype(np.float64)
        if self._count >= _CHOSEN_FROM and self._count % _CHOSEN_EACH == 0:
            self._noise = max(_NOISES, key=lambda noise: _likelihood(products, self._weights, self.residuals, noise))
        return np.linalg.solve(_covariance(products, self._weights, self._noise), self.residuals).astype(np.float32)


def _covariance(products: Numbers, weights: Vector, noise: float) -> Numbers:
    made: Numbers = products + np.diag(noise / weights)
    return made


def _likelihood(products: Numbers, weights: Vector, residuals: Vector, noise: float) -> float:
    """Logarithm, up to a constant, at the scale that is best for it."""
    covariance = _covariance(products, weights, noise)
    squares = float(residuals @ np.linalg.solve(covariance, residuals)) / len(residuals)
    return -0.5 * (len(residuals) * math.log(max(squares, 1e-12)) + float(np.linalg.slogdet(covariance)[1]))


_NONE: Final = _Seen(np.empty((0, CONTEXT), np.int8), np.empty(0, np.float32), np.empty(0, np.float32))
