"""What an adapter is known by: the vectors of its examples, and their centre."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from services.router.catalogue.port import Vector
from smoa.embedding.views import Views, centroids

_AT_ONCE: Final = 32  # adapters whose examples are read in one go: a millisecond


class Source(Protocol):
    """What is read of a library."""

    async def example_vectors(self, adapter_ids: Sequence[str]) -> dict[str, Vector]:
        """See `Catalogue`."""


async def examples_of(source: Source, adapter_ids: Sequence[str]) -> dict[str, Vector]:
    """Vectors of examples [n, dimension] of those of many adapters that have any, others let in between."""
    found: dict[str, Vector] = {}
    for start in range(0, len(adapter_ids), _AT_ONCE):
        found |= await source.example_vectors(adapter_ids[start : start + _AT_ONCE])
        await asyncio.sleep(0)
    return found


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
