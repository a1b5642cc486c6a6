"""Does a query belong to an adapter at all? Its nearest examples tell that better than their mean does. Pure.

An adapter's examples are boiled down to a few prototypes (spherical k-means). The fit of a query is its cosine with the centroid plus that
with the nearest prototype: the distance to near training points is what tells unknown inputs apart (Sun et al. 2022, "Out-of-distribution
detection with deep nearest neighbors"), and the centroid steadies it. A logistic curve makes a confidence of it. What was measured:
docs/decisions/0009.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from services.router.index import Vector

PROTOTYPES: Final = 16
_ROUNDS: Final = 8
FIT_HALFWAY, FIT_STEEPNESS = 0.505, 16.0
"""Where the confidence is one half, and how fast it grows there; read off the example library and queries that none of it serves."""
COSINE_HALFWAY, COSINE_STEEPNESS = 0.15, 25.0
"""The same for an adapter that came with a vector and no examples."""


def prototypes_of(examples: Vector) -> Vector:
    """At most `PROTOTYPES` unit vectors that stand for unit vectors [n, dimension]; the same for the same input."""
    if len(examples) <= PROTOTYPES:
        return examples
    chosen = [int((examples @ examples.mean(0)).argmax())]
    while len(chosen) < PROTOTYPES:  # each next one is the farthest from those there are
        chosen.append(int((examples @ examples[chosen].T).max(1).argmin()))
    centres: Vector = examples[chosen].copy()
    for _ in range(_ROUNDS):
        nearest = (examples @ centres.T).argmax(1)
        for place in range(PROTOTYPES):
            if len(group := examples[nearest == place]):
                total = group.sum(0)
                centres[place] = total / max(float(np.linalg.norm(total)), 1e-9)
    return centres


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
