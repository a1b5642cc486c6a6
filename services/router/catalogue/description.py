"""What an adapter is known by: the vectors of its examples, and their centre."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np

from services.router.catalogue.port import Vector
from services.router.catalogue.records import AdapterRecord, Scope
from smoa.embedding.views import Views, centroids

_PAGE: Final = 512
_AT_ONCE: Final = 32  # adapters whose examples are read in one go: a millisecond


class Source(Protocol):
    """What is read of a library."""

    async def scroll(self, scope: Scope, after: str, limit: int) -> list[AdapterRecord]:
        """See `Catalogue`."""

    async def example_vectors(self, adapter_ids: Sequence[str]) -> dict[str, Vector]:
        """See `Catalogue`."""


class Described(NamedTuple):
    """Adapters of a scope, and the vectors of examples [n, dimension] of those that have any."""

    records: list[AdapterRecord]
    examples: dict[str, Vector]
    is_all: bool


async def read_described(source: Source, scope: Scope, most: int) -> Described:
    """The first adapters of a scope by id, until `most` of them have examples, or four times as many were looked at."""
    records, examples = list[AdapterRecord](), dict[str, Vector]()
    while len(examples) <= most and len(records) < 4 * most:
        page = await source.scroll(scope, records[-1].adapter_id if records else "", _PAGE)
        for start in range(0, len(page), _AT_ONCE):
            examples |= await source.example_vectors([one.adapter_id for one in page[start : start + _AT_ONCE]])
            await asyncio.sleep(0)
        records += page
        if len(page) < _PAGE:
            return Described(records, dict(list(examples.items())[:most]), is_all=len(examples) <= most)
    return Described(records, dict(list(examples.items())[:most]), is_all=False)


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
