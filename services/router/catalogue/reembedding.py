"""A library with the vectors of another embedder, made from its adapters' examples beside the one that serves.

Done again it does what has changed since, by revision: so the old one serves meanwhile, and little is left to do when it stops.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from services.router.catalogue.changes import now_us
from services.router.catalogue.description import described_by
from services.router.catalogue.pagination import Adapters, Documents, every_document, pages_of_adapters
from services.router.catalogue.port import STAMP_ID, Catalogue, Conflict, Document, Entry
from services.router.catalogue.records import EVERY_STATE, AdapterRecord, Scope
from services.router.catalogue.stamp import stamped
from smoa.embedding.views import Views

_PAGE: Final = 64
_NOTE: Final = "reembedded"
"""In a record: [revision in the old library, revision that it got here]; in the stamp: when that was done last, in microseconds."""
_EVERYTHING: Final = Scope(tenant=None, states=EVERY_STATE)


class Source(Adapters, Documents, Protocol):
    """What is read of the old library."""


class Reembedded(NamedTuple):
    """What has been done so far."""

    read: int = 0
    """Adapters of the old library."""
    written: int = 0
    """Those that were not in the new one, or have changed since they were made there."""
    left_out: tuple[str, ...] = ()
    """Ids of those that have no examples: nobody can tell their vectors."""
    kept: tuple[str, ...] = ()
    """Ids of those that have changed in both: the new library's stay."""


async def reembed(source: Source, target: Catalogue, embedder: Views, *, alone: bool) -> AsyncIterator[Reembedded]:
    """Make `target` what `source` is, with the embedder's vectors; yields after each page.

    Each record notes of which revision it was made, and which one that gave it: what somebody has written since stays. `alone`: nobody
    has, so that compositions are made the same, too; else those that have come since the last time are added.
    """
    began_us, done = now_us(), Reembedded()
    async for page in pages_of_adapters(source, _EVERYTHING, _PAGE):
        there = await target.records([record.adapter_id for record in page])
        bare = tuple(record.adapter_id for record in page if not record.examples and record.adapter_id not in there)
        changed = [record for record in page if record.adapter_id not in bare and _made_of(there.get(record.adapter_id)) != record.revision]
        touched = {one for one, made in there.items() if made.unknown.get(_NOTE, [0, -1])[1] != made.revision}
        written = await _write(target, embedder, [one for one in changed if one.adapter_id not in touched], there)
        kept = tuple(one.adapter_id for one in changed if one.adapter_id not in written)
        done = Reembedded(done.read + len(page), done.written + len(written), (*done.left_out, *bare), (*done.kept, *kept))
        yield done
    before = await target.get_document("stamp", STAMP_ID)
    since_us = 0 if alone or before is None else int(before.body.get(_NOTE, 0))
    for kind in ("composition", "planned_change", "freeze"):
        await _copy_documents(kind, source, target, since_us, alone)
    await stamped(target, embedder.name, embedder.dimension)
    stamp = await target.get_document("stamp", STAMP_ID)
    assert stamp is not None, "it has just been given one"
    await target.write_document("stamp", stamp._replace(body={**stamp.body, _NOTE: began_us}))


def _made_of(record: AdapterRecord | None) -> int:
    """The revision in the old library that a record was made of; -1 of none."""
    return -1 if record is None else int(record.unknown.get(_NOTE, [-1])[0])


async def _write(
    target: Catalogue, embedder: Views, records: Sequence[AdapterRecord], there: Mapping[str, AdapterRecord]
) -> frozenset[str]:
    """Write records with their new vectors, unless somebody has written them since; returns the ids of those that were."""
    described = [record for record in records if record.examples]
    made = dict(zip((one.adapter_id for one in described), await described_by(embedder, [one.examples for one in described]), strict=True))
    entries = []
    for record in records:
        before = there.get(record.adapter_id)
        revision, last_writes = (before.revision, before.last_writes) if before else (0, ())
        note = {**record.unknown, _NOTE: [record.revision, revision + 1]}
        kept = replace(record, revision=revision, last_writes=last_writes, unknown=note)
        if record.adapter_id in made:
            entries.append(Entry(kept, *made[record.adapter_id]))
        elif (known := await target.get(record.adapter_id)) is not None:  # its examples are gone, as of one that was purged
            entries.append(Entry(kept, known[1]))
    lost: frozenset[str] = frozenset()
    try:
        if entries:
            await target.write(entries, together=False)
    except Conflict as conflict:
        lost = conflict.lost
    return frozenset(entry.record.adapter_id for entry in entries) - lost


async def _copy_documents(kind: str, source: Source, target: Catalogue, since_us: int, alone: bool) -> None:
    wanted = {one.document_id: one async for one in every_document(source, kind)}
    if alone:
        for one in [one async for one in every_document(target, kind) if one.document_id not in wanted]:
            await target.delete_document(kind, one)
    for document_id, one in wanted.items():
        there = await target.get_document(kind, document_id)
        if (there is None and int(one.body.get("created_at_us", 0)) >= since_us) or (alone and there and there.body != one.body):
            await target.write_document(kind, (there or Document(document_id, one.tenant, {}))._replace(body=one.body))


def told(done: Reembedded, shown: int = 5) -> Sequence[str]:
    """What was done, in sentences."""
    lines = [f"{done.read:,} adapters; {done.written:,} were not in the new library, or older there"]
    if done.left_out:
        more = ", ..." if len(done.left_out) > shown else ""
        lines.append(
            f"{len(done.left_out):,} have no examples, so their vectors cannot be made, and are left out "
            f"({', '.join(done.left_out[:shown])}{more}); import them again with examples"
        )
    if done.kept:
        lines.append(f"{len(done.kept):,} have changed in both libraries; the new one's stay ({', '.join(done.kept[:shown])})")
    return lines
