"""Points of a Qdrant collection, written by compare-and-set.

Qdrant has no transactions, and its answer does not say whether a conditional write was taken. So every point carries its revision and the
ids of its last writes: a write names the revision that it is based on, and afterwards the point is read. If it has the write's id, it was
taken, whoever wrote since; else somebody was faster.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from qdrant_client import models
from ulid import ULID

from services.router.catalogue.changes import now_us
from services.router.catalogue.port import Conflict
from services.router.catalogue.qdrant_connection import NO_VECTOR, Limits, QdrantConnection, equals

LAST_WRITES: Final = 16
"""Ids of writes that a point keeps: more than could follow one before its writer has looked."""
INDEXES: Final = {
    "revision": models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER),
    "pending": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD),
    "written_at_us": models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER),
}
"""Payload fields that conditional writes and copies filter on: a server in strict mode refuses a filter on a field without an index."""
PAGE: Final = 64
"""Points that a listing reads at once: they are parsed on the loop, ten a millisecond."""


class Point(NamedTuple):
    """A point as it is to be, and what it is based on."""

    point_id: str
    payload: Mapping[str, Any]
    revision: int = 0
    """Of what is replaced; 0: there must be none."""
    last_writes: Sequence[str] = ()
    """Of what is replaced."""
    vector: Sequence[float] = NO_VECTOR

    def written(self, write_id: str) -> models.PointStruct:
        """The point after the write of this id."""
        payload = {
            **self.payload,
            "revision": self.revision + 1,
            "last_writes": [*self.last_writes, write_id][-LAST_WRITES:],
            "pending": "",
        }
        return models.PointStruct(id=self.point_id, vector=list(self.vector), payload=payload)


class QdrantPoints:
    """One collection."""

    def __init__(self, connection: QdrantConnection, collection: str, ordering: models.WriteOrdering) -> None:
        self.connection, self.collection, self.ordering = connection, collection, ordering
        self.limits = Limits()

    async def write(self, points: Sequence[Point]) -> None:
        """Write each by itself.

        Raises:
            Conflict: naming points that somebody else has written since, or is about to; the others are written.
            Unavailable: the server is away; they may be written.
        """
        write_id, lost = str(ULID()), list[str]()
        for start in range(0, len(points), self.limits.write):
            batch = points[start : start + self.limits.write]
            if new := [point.written(write_id) for point in batch if not point.revision]:
                await self.upsert(new, update_mode=models.UpdateMode.INSERT_ONLY)
            if old := [point for point in batch if point.revision]:
                unchanged = models.Filter(should=[_is_at(point.point_id, point.revision) for point in old])
                await self.upsert(
                    [point.written(write_id) for point in old], update_filter=unchanged, update_mode=models.UpdateMode.UPDATE_ONLY
                )
            there = await self.payloads([point.point_id for point in batch], ["last_writes"])
            lost += [point.point_id for point in batch if write_id not in there.get(point.point_id, {}).get("last_writes", ())]
        if lost:
            raise Conflict(lost)

    async def upsert(self, points: Sequence[models.PointStruct], **conditions: Any) -> None:
        """Write points, whatever is there, or under Qdrant's own conditions; with the time, by which copies find what is new."""
        written_at_us = now_us()
        for point in points:
            point.payload = {**(point.payload or {}), "written_at_us": written_at_us}
        for start in range(0, len(points), self.limits.write):
            batch = list(points[start : start + self.limits.write])
            call = self.connection.client.upsert(self.collection, batch, wait=True, ordering=self.ordering, **conditions)
            await self.connection.call(call, slow=True)

    async def set_payload(self, payload: Mapping[str, Any], where: models.Filter) -> None:
        """Change fields of the points that match."""
        call = self.connection.client.set_payload(self.collection, dict(payload), where, wait=True, ordering=self.ordering)
        await self.connection.call(call, slow=True)

    async def delete(self, where: models.Filter) -> None:
        """Remove the points that match."""
        call = self.connection.client.delete(self.collection, models.FilterSelector(filter=where), wait=True, ordering=self.ordering)
        await self.connection.call(call, slow=True)

    async def payloads(
        self, point_ids: Sequence[str], fields: Sequence[str] = (), without: Sequence[str] = ()
    ) -> dict[str, dict[str, Any]]:
        """These fields of those of the points that are there, by their ids; or all but those `without` which."""
        if not point_ids:
            return {}
        wanted: Any = models.PayloadSelectorInclude(include=list(fields))
        if without:
            wanted = models.PayloadSelectorExclude(exclude=list(without))
        found = await self.connection.call(self.connection.client.retrieve(self.collection, list(point_ids), with_payload=wanted))
        return {str(point.id): point.payload or {} for point in found}

    async def get(self, point_id: str) -> models.Record | None:
        """A point with all its payload."""
        return (await self.retrieve([point_id])).get(point_id)

    async def retrieve(
        self, point_ids: Sequence[str], *, with_vectors: bool = False, without: Sequence[str] = ()
    ) -> dict[str, models.Record]:
        """Those of the points that are there, by id, with all of their payloads but these fields. They come in pages, as in `scroll`."""
        found: dict[str, models.Record] = {}
        wanted = models.PayloadSelectorExclude(exclude=list(without)) if without else True
        for start in range(0, len(point_ids), PAGE):
            page = list(point_ids[start : start + PAGE])
            call = self.connection.client.retrieve(self.collection, page, with_payload=wanted, with_vectors=with_vectors)
            found |= {str(point.id): point for point in await self.connection.call(call)}
            await asyncio.sleep(0)
        return found

    async def scroll(
        self,
        where: models.Filter,
        after: str,
        limit: int,
        fields: Sequence[str] | None = None,
        *,
        with_vectors: bool = False,
        bulk: bool = False,
    ) -> list[models.Record]:
        """Points with an id over `after`, by id, with these fields of their payloads, or all; a `bulk` of them may take its time. They come
        in pages, between which others get their turn.
        """
        found: list[models.Record] = []
        while len(found) < limit:
            # The offset is inclusive, so one more is asked for and the start is dropped.
            asked = min(limit - len(found), limit if bulk else PAGE, self.limits.read - 1)
            call = self.connection.client.scroll(
                self.collection,
                scroll_filter=where,
                offset=after or None,
                limit=asked + bool(after),
                with_payload=True if fields is None else models.PayloadSelectorInclude(include=list(fields)),
                with_vectors=with_vectors,
            )
            points, _ = await self.connection.call(call, slow=bulk)
            page = [point for point in points if str(point.id) != after][:asked]
            found += page
            if len(page) < asked:
                break
            after = str(page[-1].id)
            await asyncio.sleep(0)  # an answer that is there at once would let nobody in between
        return found

    async def pages(
        self, where: models.Filter, size: int, fields: Sequence[str] | None = None, *, after: str = "", with_vectors: bool = False
    ) -> AsyncIterator[list[models.Record]]:
        """All points that match, of ids over `after`, by id."""
        last = after
        while page := await self.scroll(where, last, size, fields, with_vectors=with_vectors, bulk=True):
            yield page
            if len(page) < size:
                return
            last = str(page[-1].id)
            await asyncio.sleep(0)


def _is_at(point_id: str, revision: int) -> models.Filter:
    return models.Filter(must=[models.HasIdCondition(has_id=[point_id]), equals("revision", revision), equals("pending", "")])


def has_id(point_id: str, *conditions: models.FieldCondition) -> models.Filter:
    """The filter of one point, if it meets the conditions."""
    return models.Filter(must=[models.HasIdCondition(has_id=[point_id]), *conditions])
