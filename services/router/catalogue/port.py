"""The port behind which records and documents are kept: the truth of a library. One contract test for all of its implementations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from ulid import ULID

from services.router.catalogue.records import AdapterRecord, RecordSummary, Scope
from smoa.identifiers import check_ulid

Vector = NDArray[np.float32]


class Conflict(Exception):
    """Somebody else has written what a write is based on: read it again, and begin again."""

    def __init__(self, lost: Iterable[str]) -> None:
        """`lost`: ids of what was not written."""
        self.lost = frozenset(lost)
        super().__init__(", ".join(sorted(self.lost)))


class Entry(NamedTuple):
    """An adapter as it is to be; example vectors are None where they stay as they were."""

    record: AdapterRecord
    vector: Vector
    example_vectors: Vector | None = None


class Document(NamedTuple):
    """A small thing that is no adapter: a composition, a ranker, a change that is planned. Each kind has ids of its own."""

    document_id: str
    tenant: str
    body: Mapping[str, Any]
    revision: int = 0
    """How often it was written; 0 of one that is not there yet."""
    last_writes: tuple[str, ...] = ()


DOCUMENT_KINDS: Final = ("composition", "ranker", "stamp", "planned_change", "freeze", "change_budget")
STAMP_ID: Final = "000000000000000000000STAMP"
"""Of the one stamp of a library (`stamp.py`)."""


class Catalogue(Protocol):
    """Adapters and small documents by id. Every write is durable when it returns."""

    async def check(self) -> None:
        """Do nothing, if it can be used.

        Raises:
            Unavailable: it cannot.
        """

    async def write(self, entries: Sequence[Entry], *, together: bool = True) -> None:
        """Write all or none, if nobody has written them since the revisions that their records name; 0 is of those not there yet.

        Without `together`, each may be written by itself: for many that have nothing to do with each other.

        Raises:
            Conflict: somebody has; it names those that were not written.
        """

    async def upsert(self, records: Sequence[tuple[AdapterRecord, Vector]], example_vectors: Mapping[str, Vector] | None = None) -> None:
        """Write records as they are, whatever is there: for making a catalogue again. Example vectors [n, dimension] by adapter id."""

    async def get(self, adapter_id: str) -> tuple[AdapterRecord, Vector] | None:
        """One adapter and its vector."""

    async def get_many(self, adapter_ids: Sequence[str]) -> dict[str, tuple[AdapterRecord, Vector]]:
        """Those of a few hundred adapters that are there, and their vectors."""

    async def summaries(self, adapter_ids: Sequence[str]) -> dict[str, RecordSummary]:
        """Owner, weights and state of those of the adapters that are there."""

    async def records(self, adapter_ids: Sequence[str]) -> dict[str, AdapterRecord]:
        """Those of a few adapters that are there, without their examples."""

    async def example_vectors(self, adapter_ids: Sequence[str]) -> dict[str, Vector]:
        """Example vectors [n, dimension] of those that have any."""

    async def described(self, pools: Sequence[str], most: int) -> list[str]:
        """Ids of adapters in these pools (`pool_of`) that have examples, at most so many; the first pool's first."""

    async def scroll(self, scope: Scope, after: str, limit: int, written_since_us: int = 0) -> list[AdapterRecord]:
        """Adapters of the scope with an id over `after`, by id; of a time, only those written since, by their writers' clocks."""

    async def write_document(self, kind: str, document: Document) -> None:
        """Write a document, if nobody has written it since its revision.

        Raises:
            Conflict: somebody has.
        """

    async def get_document(self, kind: str, document_id: str) -> Document | None:
        """One document."""

    async def list_documents(self, kind: str, tenant: str | None, after: str, limit: int, states: Sequence[str] = ()) -> list[Document]:
        """Documents of a tenant, or for None of all, with an id over `after`, by id; where states are given, those
        whose body has one of them as its `state`.
        """

    async def delete_document(self, kind: str, document: Document) -> None:
        """Remove a document, if nobody has written it since its revision; absent is fine. Its revisions go on, should it be made again.

        Raises:
            Conflict: somebody has.
        """

    async def close(self) -> None:
        """Release it."""


def point_id(ulid: str) -> str:
    """ULID to the UUID of the same 128 bits, in the same order.

    Raises:
        InvalidArgument: not a ULID.
    """
    check_ulid(ulid)
    return str(ULID.from_str(ulid).to_uuid())
