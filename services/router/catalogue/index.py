"""The port behind which adapters are stored and searched. Two implementations, one contract test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ulid import ULID

from services.router.catalogue.records import AdapterRecord, Candidate, Kept, Reach, Scope
from services.router.catalogue.statistics import Statistics
from smoa.identifiers import check_ulid

Vector = NDArray[np.float32]


class AdapterIndex(Protocol):
    """Adapters by id and by nearness, and small documents by id. Every write is durable when it returns."""

    @property
    def in_training(self) -> int:
        """Parts of the index that are being made faster; it serves meanwhile."""

    async def check(self) -> None:
        """Do nothing, if the index can be used.

        Raises:
            Unavailable: it cannot.
        """

    async def upsert(self, records: Sequence[tuple[AdapterRecord, Vector]], prototypes: Mapping[str, Vector] | None = None) -> None:
        """Write all or none, in one step; prototypes [n, dimension] by adapter id, those of the others stay."""

    async def put_statistics(self, adapter_id: str, statistics: Statistics) -> None:
        """Write an adapter's counts and nothing else of it: they come all the time, and must not undo what another router writes."""

    async def get(self, adapter_id: str) -> tuple[AdapterRecord, Vector] | None:
        """One adapter and its vector."""

    async def kept(self, adapter_ids: Sequence[str]) -> dict[str, Kept]:
        """Owner, weights and state of those of the adapters that are there."""

    async def search(self, vector: Vector, reach: Reach, limit: int, *, with_records: bool = False, clusters: int = 0) -> list[Candidate]:
        """Nearest adapters by cosine within the reach, best first; with their records where those are asked for.

        With `clusters`, only adapters in so many coarse clusters, those nearest to the vector, are looked at.
        """

    async def prototypes(self, adapter_ids: Sequence[str]) -> dict[str, Vector]:
        """Prototypes [n, dimension] of those that have any."""

    async def scroll(self, scope: Scope, after: str, limit: int) -> list[AdapterRecord]:
        """Adapters of the scope with an id over `after`, by id."""

    async def put_document(self, document_id: str, kind: str, tenant: str, body: Mapping[str, Any]) -> None:
        """Write a document that is no adapter (a composition)."""

    async def get_document(self, document_id: str) -> tuple[str, str, Mapping[str, Any]] | None:
        """(kind, tenant, body) of a document."""

    async def list_documents(self, kind: str, tenant: str, after: str, limit: int) -> list[tuple[str, Mapping[str, Any]]]:
        """(id, body) of a tenant's documents with an id over `after`, by id."""

    async def delete_document(self, document_id: str) -> None:
        """Remove a document; absent is fine."""

    async def close(self) -> None:
        """Release it."""


def point_id(ulid: str) -> str:
    """ULID to the UUID of the same 128 bits, in the same order.

    Raises:
        InvalidArgument: not a ULID.
    """
    check_ulid(ulid)
    return str(ULID.from_str(ulid).to_uuid())
