"""Lines of conversations that say nothing of any topic, in English, and how a query is told to be such a line. Pure."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import faiss
import numpy as np

from services.router.catalogue.port import Vector

GROUPS: Final = 8


def vague_lines() -> list[str]:
    """As in `vague_lines.txt`: some without a word of their own, and some with one of any topic."""
    return files("services.router.learning").joinpath("vague_lines.txt").read_text().splitlines()


def means_of_groups(vectors: Vector) -> Vector:
    """Means [groups, dimension] of vectors [n, dimension], n at least `GROUPS`, grouped by k-means: such lines differ more than the
    examples of an adapter do.
    """
    faiss.omp_set_num_threads(1)  # of this thread: the other cores serve
    grouping = faiss.Kmeans(vectors.shape[1], GROUPS, niter=20, nredo=5, seed=0, min_points_per_centroid=1)
    grouping.train(vectors)
    groups = grouping.assign(vectors)[1]
    return np.stack([vectors[groups == group].mean(0) for group in np.unique(groups)])
