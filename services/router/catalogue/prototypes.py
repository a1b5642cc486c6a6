"""What an adapter's examples are boiled down to: a few prototypes, by spherical k-means. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np

from services.router.catalogue.port import Vector

PROTOTYPES: Final = 16
_ROUNDS: Final = 8


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
