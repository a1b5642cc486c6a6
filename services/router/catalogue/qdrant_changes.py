"""Changes of several points of a Qdrant collection, all or none.

Two-phase commit with a record of the change (as Percolator does it, Peng and Dabek, OSDI 2010), which any router can finish:

1. The change is written down, with all that it will write.
2. Each of its points is claimed, by compare-and-set: nobody else writes a claimed point. A point that is to be made is claimed by a
   placeholder.
3. The change is committed, by compare-and-set. From here on it will be done, whoever does it.
4. The points are written, and the change is forgotten.

Who meets a claimed point looks at its change: one that is committed is finished; one that has not been committed for a while is called off.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from qdrant_client import models
from ulid import ULID

from services.router.catalogue.port import Conflict
from services.router.catalogue.qdrant_connection import NO_VECTOR, equals
from services.router.catalogue.qdrant_points import Point, QdrantPoints, has_id

CALLED_OFF_AFTER_S: Final = 10.0
"""A change that is not committed so long after another router first saw it is called off by that one: its own has died, or begins again."""
PLACEHOLDER: Final = "placeholder"
"""`type` of a point that is claimed and not yet there."""
_PREPARING, _COMMITTED, _CALLED_OFF = "preparing", "committed", "called off"


class QdrantChanges:
    """Changes of one collection's points, kept in another one."""

    def __init__(self, points: QdrantPoints, changes: QdrantPoints) -> None:
        self._points, self._changes = points, changes
        self._own: set[str] = set()
        self._first_seen_s: dict[str, float] = {}

    async def write(self, points: Sequence[Point]) -> None:
        """Write all or none.

        Raises:
            Conflict: naming points that somebody else has written since, or is about to; none is written.
            Unavailable: the server is away; all of them may be written, or will be.
        """
        change_id = str(ULID().to_uuid())
        written = [point.written(change_id) for point in points]
        body = {
            "state": _PREPARING,
            "points": [{"id": point.id, "vector": point.vector, "payload": point.payload} for point in written],
        }
        record = models.PointStruct(id=change_id, vector=list(NO_VECTOR), payload=body)
        self._own.add(change_id)
        try:
            await self._changes.upsert([record], update_mode=models.UpdateMode.INSERT_ONLY)
            for point, after in zip(points, written, strict=True):
                await self._claim(change_id, point, after)
            claimed = await self._points.payloads([point.point_id for point in points], ["pending"])
            lost = [point.point_id for point in points if claimed.get(point.point_id, {}).get("pending") != change_id]
            if not lost and await self._moved(change_id, _COMMITTED):
                await self._finish(change_id, body)
            elif lost or not await self._is_done(change_id, points):  # another may have finished it before we looked
                await self._call_off(change_id, body)
                raise Conflict(lost or [point.point_id for point in points])
        finally:
            self._own.discard(change_id)

    async def resolve(self, change_id: str, claimed_ids: Sequence[str] = ()) -> None:
        """Make an end of a change that was found to have claimed these points.

        Raises:
            Conflict: it is young, and may be committed yet.
        """
        found = await self._changes.get(change_id)
        if found is None:  # called off before its router claimed them
            await self._release(change_id, claimed_ids)
            return
        body = found.payload or {}
        if body["state"] == _PREPARING:
            if not self._is_abandoned(change_id):
                raise Conflict(claimed_ids)
            if not await self._moved(change_id, _CALLED_OFF):
                return  # its router has committed it, or called it off: whoever comes next sees which
            body = {**body, "state": _CALLED_OFF}
        if body["state"] == _COMMITTED:
            await self._finish(change_id, body)
        else:
            await self._call_off(change_id, body)

    async def resolve_lost(self, point_ids: Sequence[str]) -> None:
        """Make an end of the changes that have claimed these points, as far as they are not under way."""
        for point_id, payload in (await self._points.payloads(point_ids, ["pending"])).items():
            if change_id := payload.get("pending"):
                with suppress(Conflict):
                    await self.resolve(change_id, [point_id])

    async def resolve_all(self) -> None:
        """Make an end of changes whose routers have died."""
        changes = await self._changes.scroll(models.Filter(), "", 100)
        self._first_seen_s = {str(one.id): at for one in changes if (at := self._first_seen_s.get(str(one.id))) is not None}
        for change in changes:
            change_id = str(change.id)
            if change_id not in self._own and ((change.payload or {})["state"] != _PREPARING or self._is_abandoned(change_id)):
                await self.resolve(change_id)

    def _is_abandoned(self, change_id: str) -> bool:
        """Whether a change that is not committed has been so for long, by our own clock: those of two machines may differ."""
        now_s = time.monotonic()
        return change_id not in self._own and now_s - self._first_seen_s.setdefault(change_id, now_s) >= CALLED_OFF_AFTER_S

    async def _is_done(self, change_id: str, points: Sequence[Point]) -> bool:
        there = await self._points.payloads([point.point_id for point in points], ["last_writes"])
        return any(change_id in payload.get("last_writes", ()) for payload in there.values())

    async def _claim(self, change_id: str, point: Point, after: models.PointStruct) -> None:
        if point.revision:
            free = has_id(point.point_id, equals("revision", point.revision), equals("pending", ""))
            await self._points.set_payload({"pending": change_id}, free)
            return
        payload = {"type": PLACEHOLDER, "pending": change_id, "revision": 0}
        placeholder = models.PointStruct(id=point.point_id, vector=after.vector, payload=payload)
        await self._points.upsert([placeholder], update_mode=models.UpdateMode.INSERT_ONLY)

    async def _moved(self, change_id: str, state: str) -> bool:
        """Whether the change, which was preparing, is in this state by our doing."""
        mark = str(ULID())
        await self._changes.set_payload({"state": state, "by": mark}, has_id(change_id, equals("state", _PREPARING)))
        return (await self._changes.payloads([change_id], ["by"])).get(change_id, {}).get("by") == mark

    async def _finish(self, change_id: str, body: Mapping[str, Any]) -> None:
        points = [models.PointStruct(**point) for point in body["points"]]
        claimed = models.Filter(must=[equals("pending", change_id)])
        await self._points.upsert(points, update_filter=claimed, update_mode=models.UpdateMode.UPDATE_ONLY)
        await self._changes.delete(has_id(change_id))

    async def _call_off(self, change_id: str, body: Mapping[str, Any]) -> None:
        await self._moved(change_id, _CALLED_OFF)
        await self._release(change_id, [point["id"] for point in body["points"]])
        await self._changes.delete(has_id(change_id))

    async def _release(self, change_id: str, point_ids: Sequence[str]) -> None:
        for point_id in point_ids:
            await self._points.delete(has_id(point_id, equals("pending", change_id), equals("type", PLACEHOLDER)))
            await self._points.set_payload({"pending": ""}, has_id(point_id, equals("pending", change_id)))
