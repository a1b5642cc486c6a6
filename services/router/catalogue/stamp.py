"""What a library says of itself: which one it is, what its vectors are made with, and which programs may use it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

from ulid import ULID

from services.router.catalogue.port import STAMP_ID, Catalogue, Conflict, Document
from smoa.errors import FailedPrecondition

SCHEMA: Final = 1
"""Of what this program writes. Fields that are added need no higher one: whoever does not know them keeps them."""
READS_FROM: Final = 1
"""The least schema of a program that can use what this one writes."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """Of a library. `reads_from` is the least schema of a program that can use it."""

    library_id: str
    embedder: str
    dimension: int
    schema: int = SCHEMA
    reads_from: int = READS_FROM


async def stamped(catalogue: Catalogue, embedder: str, dimension: int, library_id: str = "") -> Stamp:
    """The stamp of a library, which is given one if it has none.

    Args:
        catalogue: Where it is.
        embedder: What makes its vectors.
        dimension: How many numbers they have.
        library_id: Of one that is made again, whatever was begun in its place; a new one by default.

    Raises:
        FailedPrecondition: its vectors are of another embedder, or it needs a newer program.
    """
    while (found := await catalogue.get_document("stamp", STAMP_ID)) is None:
        made = Stamp(library_id=library_id or str(ULID()), embedder=embedder, dimension=dimension)
        with suppress(Conflict):  # another router was faster
            await catalogue.write_document("stamp", Document(STAMP_ID, "", asdict(made)))
    stamp = checked_stamp(found, embedder, dimension)
    if library_id and stamp.library_id != library_id:
        with suppress(Conflict):
            await catalogue.write_document("stamp", found._replace(body={**found.body, "library_id": library_id}))
        return await stamped(catalogue, embedder, dimension, library_id)
    if stamp.schema < SCHEMA:
        newer = {**found.body, "schema": SCHEMA, "reads_from": max(stamp.reads_from, READS_FROM)}
        with suppress(Conflict):  # another one of our version was faster
            await catalogue.write_document("stamp", found._replace(body=newer))
    return stamp


def checked_stamp(document: Document, embedder: str, dimension: int) -> Stamp:
    """The stamp that a document holds; raises what `stamped` does."""
    stamp = Stamp(**{name: value for name, value in document.body.items() if name in Stamp.__dataclass_fields__})
    if stamp.reads_from > SCHEMA:
        raise FailedPrecondition(
            f"index: the library was written by a newer router (schema {stamp.schema}, for programs from {stamp.reads_from} on; this one "
            f"has {SCHEMA}); upgrade this router"
        )
    if (stamp.embedder, stamp.dimension) != (embedder, dimension):
        raise FailedPrecondition(
            f"index: its vectors are of {stamp.embedder!r} with {stamp.dimension} numbers, this router has {embedder!r} with {dimension}; "
            "set the embedder that made them (SMOA_ROUTER_EMBEDDER), or make them anew with `smoa router reembed`"
        )
    return stamp
