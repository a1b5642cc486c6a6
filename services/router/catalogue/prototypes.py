"""What an adapter's examples are boiled down to: their centroid, and a few prototypes, by spherical k-means."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import numpy as np

from services.router.catalogue.port import Vector
from smoa.embedding.port import Embedder, normalised

PROTOTYPES: Final = 16
_ROUNDS: Final = 8


async def described_by(embedder: Embedder, groups: Sequence[Sequence[str]]) -> list[tuple[Vector, Vector]]:
    """Centroid [dimension] and prototypes [n, dimension] of each group of examples, none of which is empty.

    Raises:
        InvalidArgument, Unavailable: see `Embedder`.
    """
    if not groups:
        return []
    vectors = await embedder.embed([example for group in groups for example in group])
    parts = np.split(vectors, np.cumsum([len(group) for group in groups])[:-1])
    return await asyncio.to_thread(lambda: [(normalised(part.mean(0)), prototypes_of(part)) for part in parts])


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
