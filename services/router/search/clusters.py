"""Coarse clusters of a pool, for the hierarchical strategy. Pure.

Leader clustering (Hartigan 1975, "Clustering algorithms", chapter 3): an adapter joins the cluster whose leader is nearest, or, if none is
near, leads a new one. A leader never moves, so nothing is ever rebuilt, and several processes may add at once. A cluster without adapters
is not looked into, and its leader takes the next that are near.

A pool has clusters from `CLUSTERED_FROM` adapters on, for a smaller one is looked through as a whole: what was in it before is in no
cluster, and always looked at.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.router.catalogue.port import Vector

JOIN_COSINE: Final = 0.7
"""Of both views: a cosine of a half in what texts are about, where they look much alike, as most do."""
MAX_CLUSTERS: Final = 256
CLUSTERED_FROM: Final = 2_000
NO_CLUSTER: Final = -1
Ids = NDArray[np.int16]


class Clusters:
    """Leaders and how many adapters each has."""

    def __init__(self, dimension: int) -> None:
        self._leaders: Vector = np.empty((0, dimension), np.float32)
        self._counts = np.zeros(MAX_CLUSTERS, np.int64)

    def __len__(self) -> int:
        return int((self._counts > 0).sum())

    def join(self, vectors: Vector) -> Ids:
        """Clusters [n] of unit vectors [n, dimension], which are counted in."""
        joined = np.zeros(len(vectors), np.int16)
        waiting = np.arange(len(vectors))
        while len(waiting):
            if len(self._leaders):
                cosines = vectors[waiting] @ self._leaders.T
                near = (cosines.max(1) >= JOIN_COSINE) | (len(self._leaders) == MAX_CLUSTERS)
                joined[waiting] = cosines.argmax(1)
                waiting = waiting[~near]
            if len(waiting):
                self._leaders = np.concatenate([self._leaders, vectors[waiting[:1]]])
        self._counts += np.bincount(joined, minlength=MAX_CLUSTERS)
        return joined

    def leave(self, cluster: int) -> None:
        """Count one adapter of a cluster out."""
        self._counts[cluster] -= 1

    def nearest(self, query: Vector, count: int) -> Ids:
        """The best few clusters that have adapters."""
        cosines = np.where(self._counts[: len(self._leaders)] > 0, self._leaders @ query, -np.inf)
        best = np.argsort(-cosines, kind="stable")[:count]
        return best[np.isfinite(cosines[best])].astype(np.int16)
