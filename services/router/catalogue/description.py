"""What an adapter is known by: the vectors of its examples, and their centre."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from services.router.catalogue.port import Vector
from smoa.embedding.views import Views, centroids


async def described_by(views: Views, groups: Sequence[Sequence[str]]) -> list[tuple[Vector, Vector]]:
    """Centre [dimension] and vectors [n, dimension] of each group of examples, none of which is empty.

    Raises:
        InvalidArgument, Unavailable: see `Embedder`.
    """
    if not groups:
        return []
    vectors = await views.embed([example for group in groups for example in group])
    parts = np.split(vectors, np.cumsum([len(group) for group in groups])[:-1])
    return await asyncio.to_thread(lambda: [(centroids(part), part) for part in parts])
