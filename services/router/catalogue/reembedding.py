"""A library with the vectors of another embedder, made from its adapters' examples beside the one that serves.

Done again it does what has changed since, by revision: so the old one serves meanwhile, and little is left to do when it stops.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, Protocol

from services.router.catalogue.port import Catalogue, Document
from services.router.catalogue.prototypes import described_by
from services.router.catalogue.records import EVERY_STATE, AdapterRecord, Scope
from smoa.embedding.port import Embedder

_PAGE: Final = 64
_EVERYTHING: Final = Scope(tenant=None, states=EVERY_STATE)


class Source(Protocol):
    """What is read of the old library."""

    async def scroll(self, scope: Scope, after: str, limit: int) -> list[AdapterRecord]:
        """See `Catalogue`."""

    async def list_documents(self, kind: str, tenant: str, after: str, limit: int) -> list[Document]:
        """See `Catalogue`."""


class Reembedded(NamedTuple):
    """What has been done so far."""

    read: int = 0
    """Adapters of the old library."""
    written: int = 0
    """Those that were not in the new one, or were older there."""
    left_out: tuple[str, ...] = ()
    """Ids of those that have no examples: nobody can tell their vectors."""


async def reembed(source: Source, target: Catalogue, embedder: Embedder) -> AsyncIterator[Reembedded]:
    """Make `target` what `source` is, with the embedder's vectors; yields after each page."""
    done, last, tenants = Reembedded(), "", set[str]()
    while page := await source.scroll(_EVERYTHING, last, _PAGE):
        last = page[-1].adapter_id
        tenants |= {record.tenant for record in page}
        there = await target.records([record.adapter_id for record in page])
        bare = [record.adapter_id for record in page if not record.examples]
        newer = [record for record in page if record.examples and _revision(there, record) < record.revision]
        if newer:
            described = await described_by(embedder, [record.examples for record in newer])
            prototypes = {record.adapter_id: of for record, (_, of) in zip(newer, described, strict=True)}
            await target.upsert([(record, vector) for record, (vector, _) in zip(newer, described, strict=True)], prototypes)
        done = Reembedded(done.read + len(page), done.written + len(newer), (*done.left_out, *bare))
        yield done
    for tenant in sorted(tenants):
        await _copy_compositions(source, target, tenant)


async def _copy_compositions(source: Source, target: Catalogue, tenant: str) -> None:
    last = ""
    while page := await source.list_documents("composition", tenant, last, _PAGE):
        last = page[-1].document_id
        for one in page:
            there = await target.get_document("composition", one.document_id) or Document(one.document_id, tenant, {})
            if there.body != one.body:
                await target.write_document("composition", there._replace(body=one.body))


def _revision(there: dict[str, AdapterRecord], record: AdapterRecord) -> int:
    return there[record.adapter_id].revision if record.adapter_id in there else -1


def told(done: Reembedded, shown: int = 5) -> Sequence[str]:
    """What was done, in sentences."""
    lines = [f"{done.read:,} adapters; {done.written:,} were not in the new library, or older there"]
    if done.left_out:
        more = ", ..." if len(done.left_out) > shown else ""
        lines.append(
            f"{len(done.left_out):,} have no examples, so their vectors cannot be made, and are left out "
            f"({', '.join(done.left_out[:shown])}{more}); import them again with examples"
        )
    return lines
