"""Does a query belong to an adapter at all? Its nearest examples tell that better than their mean does. Pure.

The fit of a query is its cosine with the centroid plus that
with the nearest prototype: the distance to near training points is what tells unknown inputs apart (Sun et al. 2022, "Out-of-distribution
detection with deep nearest neighbors"), and the centroid steadies it. A logistic curve makes a confidence of it. What was measured:
docs/decisions/0009.
"""

from __future__ import annotations

import math

from services.router.catalogue.port import Vector

FIT_HALFWAY, FIT_STEEPNESS = 0.505, 16.0
"""Where the confidence is one half, and how fast it grows there; read off the example library and queries that none of it serves."""
COSINE_HALFWAY, COSINE_STEEPNESS = 0.15, 25.0
"""The same for an adapter that came with a vector and no examples."""


def nearest_prototype(query: Vector, prototypes: Vector) -> float:
    """Cosine of a unit vector with the nearest of [n, dimension]; n > 0."""
    return float((prototypes @ query).max())


def confidence(cosine: float, prototype_cosine: float | None) -> float:
    """Probability that a query is in an adapter's scope, by its cosines with centroid and nearest prototype (None: it has none)."""
    if prototype_cosine is None:
        return _logistic(COSINE_STEEPNESS * (cosine - COSINE_HALFWAY))
    return _logistic(FIT_STEEPNESS * (cosine + prototype_cosine - FIT_HALFWAY))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
