"""`Catalogue` on a Qdrant server, through `AsyncQdrantClient`: several routers share one library."""

from __future__ import annotations

import dataclasses
import logging
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import numpy as np
import orjson
from qdrant_client import models

from services.router.catalogue.encoded_vectors import Encoded
from services.router.catalogue.port import DOCUMENT_KINDS, STAMP_ID, Conflict, Document, Entry, Vector, point_id
from services.router.catalogue.qdrant_changes import QdrantChanges
from services.router.catalogue.qdrant_connection import NO_VECTORS, QdrantConnection, equals, unavailable
from services.router.catalogue.qdrant_points import INDEXES, PAGE, Point, QdrantPoints
from services.router.catalogue.records import AdapterRecord, RecordSummary, Scope, labels_of, pool_of
from smoa.errors import InvalidArgument
from smoa.identifiers import check_ulid

T = TypeVar("T")
_log = logging.getLogger(__name__)
KEYWORDS: Final = ("type", "pool", "tenant", "base_model", "state", "tags", "name", "digest", "visibility", "labels", "cluster")
"""Payload fields of adapters with an index. A search filters on `pool` alone (and `labels`, when there are hints)."""
KEYWORD: Final = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD)
_THERE, _DELETED = "there", "deleted"
_UNREAD: Final = ("example_vectors",)
"""What of a point's payload no record is made of."""
_FOUND_BY: Final = ("adapter_id", "version", "digest", "tenant", "name", "specialization", "base_model", "state", "tags")
"""Fields of a record that a point has for themselves, to find it by, or to read them alone."""


def payload_of(record: AdapterRecord) -> dict[str, Any]:
    """Payload of an adapter's point. The record is one text in it: as a tree of values, the client took twice as long to write it."""
    whole = record.to_payload()
    examples, revision, last_writes = (whole.pop(name) for name in ("examples", "revision", "last_writes"))
    return {
        "type": "adapter",
        "pool": pool_of(record),
        **{name: whole[name] for name in _FOUND_BY},
        "labels": sorted(labels_of(record).all),
        "visibility": "shared" if record.shared else "private",
        "record": orjson.dumps(whole).decode(),
        "examples": orjson.dumps(examples).decode(),
        "revision": revision,
        "last_writes": last_writes,
    }


def record_of(payload: Mapping[str, Any]) -> AdapterRecord:
    """The adapter that a point's payload is of; without examples, if they were not read."""
    apart = {
        "examples": orjson.loads(payload.get("examples", "[]")),
        "revision": payload["revision"],
        "last_writes": payload["last_writes"],
    }
    return AdapterRecord.from_payload({**orjson.loads(payload["record"]), **apart})


class QdrantCatalogue:
    """Collections of one prefix: adapters, a collection for each kind of documents, changes under way. `prepare` it first."""

    def __init__(
        self,
        connection: QdrantConnection,
        dimension: int,
        prefix: str = "smoa",
        ordering: models.WriteOrdering = models.WriteOrdering.STRONG,
    ) -> None:
        """Vectors have so many numbers. With less than strong ordering of writes, a replicated cluster loses conditional ones."""
        self.connection, self.dimension, self.prefix = connection, dimension, prefix
        self.points = QdrantPoints(connection, f"{prefix}_adapters", ordering)
        self._change_points = QdrantPoints(connection, f"{prefix}_changes", ordering)
        self._changes = QdrantChanges(self.points, self._change_points)
        self._documents = {kind: QdrantPoints(connection, f"{prefix}_{kind}s", ordering) for kind in DOCUMENT_KINDS}
        self._follow: Callable[[Sequence[Entry], bool], Awaitable[None]] | None = None
        self._follow_document: Callable[[str, Document, bool], Awaitable[None]] | None = None
        self._clusters_of: Callable[[Sequence[tuple[AdapterRecord, Vector]]], Awaitable[Mapping[str, str]]] | None = None

    async def prepare(self, **options: Any) -> None:
        """Make the collections and their payload indexes, as far as they are not there.

        `options` are `create_collection`'s for all of them: replicas, shards, write consistency.

        Raises:
            FailedPrecondition: a collection of this name holds something else.
            Unavailable: the server is away.
        """
        connection, dimension, prefix = self.connection, self.dimension, self.prefix
        await connection.answer(connection.client.collection_exists(self.points.collection))  # it may be back
        pool = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True, enable_hnsw=True)
        fields = {field: KEYWORD.model_copy(update={"enable_hnsw": False}) for field in KEYWORDS} | {"pool": pool}
        self.points.limits = await connection.ensure_collection(
            self.points.collection,
            models.VectorParams(size=dimension, distance=models.Distance.COSINE, on_disk=True),
            {**INDEXES, **fields},
            # A graph for each pool and none over all of them: no search is wider than its pools.
            hnsw_config=models.HnswConfigDiff(m=0, payload_m=16),
            quantization_config=models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
            ),
            on_disk_payload=True,
            **options,
        )
        self._change_points.limits = await connection.ensure_collection(f"{prefix}_changes", NO_VECTORS, {"state": KEYWORD}, **options)
        for points in self._documents.values():
            points.limits = await connection.ensure_collection(
                points.collection, NO_VECTORS, {**INDEXES, "tenant": KEYWORD, "state": KEYWORD, "body.state": KEYWORD}, **options
            )
        await self._changes.resolve_all()

    def follow(
        self, adapters: Callable[[Sequence[Entry], bool], Awaitable[None]], documents: Callable[[str, Document, bool], Awaitable[None]]
    ) -> None:
        """Tell of all that this router has written, before each write returns, with the new revisions: adapters with all that is kept of
        them, and whether that was written whatever was there; documents with their kind, and whether they were deleted.
        """
        self._follow, self._follow_document = adapters, documents

    def cluster_by(self, clusters_of: Callable[[Sequence[tuple[AdapterRecord, Vector]]], Awaitable[Mapping[str, str]]]) -> None:
        """Ask for the cluster of each adapter that is written, by its id; one that is not named is in none."""
        self._clusters_of = clusters_of

    async def check(self) -> None:
        """See `Catalogue`. Ends changes of routers that have died, too."""
        if not await self.connection.answer(self.connection.client.collection_exists(self.points.collection)):
            raise unavailable(f"has no collection {self.points.collection!r} (restore it, or restart this router to make an empty one)")
        await self._changes.resolve_all()

    async def write(self, entries: Sequence[Entry], *, together: bool = True) -> None:
        """See `Catalogue`."""
        points = await self._points_of(entries, [entry for entry in entries if entry.record.revision])
        try:
            if together and len(points) > 1:
                await self._changes.write(points)
            else:
                await self.points.write(points)
        except Conflict as conflict:
            await self._changes.resolve_lost(sorted(conflict.lost))
            if not together:
                await self._tell([point for point in points if point.point_id not in conflict.lost], entries, 1)
            raise Conflict(e.record.adapter_id for e in entries if point_id(e.record.adapter_id) in conflict.lost) from None
        await self._tell(points, entries, 1)

    async def upsert(self, records: Sequence[tuple[AdapterRecord, Vector]], example_vectors: Mapping[str, Vector] | None = None) -> None:
        """See `Catalogue`."""
        given = example_vectors or {}
        entries = [Entry(record, vector, given.get(record.adapter_id)) for record, vector in records]
        points = await self._points_of(entries, entries)
        await self.points.upsert([models.PointStruct(id=p.point_id, vector=list(p.vector), payload=dict(p.payload)) for p in points])
        await self._tell(points, entries, 0)

    async def _tell(self, points: Sequence[Point], entries: Sequence[Entry], raised: int) -> None:
        if self._follow is None or not points:
            return
        known = {point_id(entry.record.adapter_id): entry for entry in entries}
        told = []
        for point in points:
            entry, packed = known[point.point_id], point.payload["example_vectors"]
            record = dataclasses.replace(entry.record, revision=entry.record.revision + raised)
            told.append(Entry(record, entry.vector, self._unpacked(packed) if packed else None))
        await self._follow(told, not raised)

    async def _points_of(self, entries: Sequence[Entry], there: Sequence[Entry]) -> list[Point]:
        """Points of adapters, of which some may be there, with example vectors that stay."""
        given = {e.record.adapter_id: _packed(e.example_vectors) for e in entries if e.example_vectors is not None}
        kept = await self._payloads([e.record.adapter_id for e in there if e.example_vectors is None], ["example_vectors"])
        given |= {adapter_id: payload["example_vectors"] for adapter_id, payload in kept.items() if payload.get("example_vectors")}
        clusters = await self._clusters_of([(entry.record, entry.vector) for entry in entries]) if self._clusters_of else {}
        return [
            Point(
                point_id(record.adapter_id),
                {
                    **payload_of(record),
                    "cluster": clusters.get(record.adapter_id, ""),
                    "example_vectors": given.get(record.adapter_id, ""),
                    "has_examples": record.adapter_id in given,
                    "pending": "",
                },
                record.revision,
                record.last_writes,
                vector.tolist(),
            )
            for record, vector, _ in entries
        ]

    async def _payloads(self, adapter_ids: Sequence[str], fields: list[str]) -> dict[str, dict[str, Any]]:
        """These fields of those of the adapters that are there."""
        payloads = await self.points.payloads([point_id(one) for one in adapter_ids], ["type", "adapter_id", *fields])
        return {payload["adapter_id"]: payload for payload in payloads.values() if payload["type"] == "adapter"}

    async def get(self, adapter_id: str) -> tuple[AdapterRecord, Vector] | None:
        """See `Catalogue`. One that a change has claimed is given as it was, while it may yet be called off."""
        return (await self.get_many([adapter_id])).get(adapter_id)

    async def get_many(self, adapter_ids: Sequence[str]) -> dict[str, tuple[AdapterRecord, Vector]]:
        """See `Catalogue`, and `get`."""
        points = await self.points.retrieve([point_id(one) for one in adapter_ids], with_vectors=True, without=_UNREAD)
        for at, change_id in [(at, change_id) for at, one in points.items() if (change_id := (one.payload or {}).get("pending"))]:
            with suppress(Conflict):
                await self._changes.resolve(change_id, [at])
                points |= await self.points.retrieve([at], with_vectors=True, without=_UNREAD)
        found = [(payload, one.vector) for one in points.values() if (payload := one.payload or {}).get("type") == "adapter"]
        return {payload["adapter_id"]: (record_of(payload), np.asarray(vector, np.float32)) for payload, vector in found}

    async def summaries(self, adapter_ids: Sequence[str]) -> dict[str, RecordSummary]:
        """See `Catalogue`."""
        payloads = await self._payloads(adapter_ids, [*RecordSummary._fields])
        return {adapter_id: RecordSummary(*(payload[field] for field in RecordSummary._fields)) for adapter_id, payload in payloads.items()}

    async def records(self, adapter_ids: Sequence[str]) -> dict[str, AdapterRecord]:
        """See `Catalogue`."""
        found = await self.points.payloads([point_id(one) for one in adapter_ids], without=["examples", "example_vectors"])
        return {payload["adapter_id"]: record_of(payload) for payload in found.values() if payload["type"] == "adapter"}

    async def example_vectors(self, adapter_ids: Sequence[str]) -> dict[str, Vector]:
        """See `Catalogue`."""
        packed = {one: payload.get("example_vectors") for one, payload in (await self._payloads(adapter_ids, ["example_vectors"])).items()}
        return {one: self._unpacked(data) for one, data in packed.items() if data}

    async def described(self, pools: Sequence[str], most: int) -> list[str]:
        """See `Catalogue`. Few of very many are not looked for to the end."""
        described = list[str]()
        for pool in pools:
            of_pool = models.Filter(must=[models.FieldCondition(key="pool", match=models.MatchValue(value=pool))])
            found = await self.points.scroll(of_pool, "", 4 * most, ["adapter_id", "has_examples"], bulk=True)
            payloads = [point.payload or {} for point in found]
            described += [payload["adapter_id"] for payload in payloads if payload.get("has_examples")]
        return described[:most]

    async def scroll(self, scope: Scope, after: str, limit: int, written_since_us: int = 0) -> list[AdapterRecord]:
        """See `Catalogue`."""
        must: list[Any] = [_filter(scope)] if not written_since_us else [_filter(scope), _since(written_since_us)]
        found = await self.points.scroll(models.Filter(must=must), point_id(after) if after else "", limit)
        return [record_of(point.payload or {}) for point in found]

    async def write_document(self, kind: str, document: Document) -> None:
        """See `Catalogue`."""
        await self._put_document(kind, document)

    async def delete_document(self, kind: str, document: Document) -> None:
        """See `Catalogue`."""
        if await self.get_document(kind, document.document_id) is not None:
            await self._put_document(kind, document._replace(body={}), deleted=True)

    async def _put_document(self, kind: str, document: Document, *, deleted: bool = False) -> None:
        at = point_id(document.document_id)
        payload = {"document_id": document.document_id, "tenant": document.tenant, "body": dict(document.body)}
        payload["state"] = _DELETED if deleted else _THERE
        point = Point(at, payload, document.revision, document.last_writes)
        try:
            await self._documents[kind].write([point])
        except Conflict:
            there = await self._documents[kind].get(at)
            if document.revision or there is None or not _is_deleted(there):
                raise Conflict([document.document_id]) from None
            before = _document(there.payload or {})  # it was there once: its revisions go on
            point = point._replace(revision=before.revision, last_writes=before.last_writes)
            await self._documents[kind].write([point])
        if self._follow_document is not None:
            await self._follow_document(kind, document._replace(revision=point.revision + 1), deleted)

    async def get_document(self, kind: str, document_id: str) -> Document | None:
        """See `Catalogue`."""
        found = await self._documents[kind].get(point_id(document_id))
        return None if found is None or _is_deleted(found) else _document(found.payload or {})

    async def list_documents(self, kind: str, tenant: str | None, after: str, limit: int, states: Sequence[str] = ()) -> list[Document]:
        """See `Catalogue`."""
        conditions: list[models.Condition] = [equals("state", _THERE)]
        if tenant is not None:
            conditions.append(equals("tenant", tenant))
        if states:
            conditions.append(models.FieldCondition(key="body.state", match=models.MatchAny(any=list(states))))
        wanted = models.Filter(must=conditions)
        found = await self._documents[kind].scroll(wanted, point_id(after) if after else "", limit)
        return [_document(point.payload or {}) for point in found]

    # For a copy

    async def stamp(self) -> Document | None:
        """The library's stamp, asked for also while other calls are refused.

        Raises:
            Unavailable: the server is away.
        """
        connection, points = self.connection, self._documents["stamp"]
        if not await connection.answer(connection.client.collection_exists(points.collection)):
            return None
        found = await connection.answer(connection.client.retrieve(points.collection, [point_id(STAMP_ID)]))
        return next(iter(_readable(found, lambda point: _document(point.payload or {}))), None)

    async def holds_any(self) -> bool:
        """Whether there is any adapter, asked also while other calls are refused."""
        where = models.Filter(must=[_IS_ADAPTER])
        call = self.connection.client.scroll(self.points.collection, scroll_filter=where, limit=1, with_payload=False)
        return bool((await self.connection.answer(call))[0])

    async def changed_adapters(self, since_us: int, page: int) -> AsyncIterator[dict[str, int]]:
        """Revisions of the adapters that have been written since a time, by the clocks of their writers: pages, by id."""
        where = models.Filter(must=[_IS_ADAPTER, _since(since_us)])
        async for points in self.points.pages(where, page, ["adapter_id", "revision"]):
            if read := _readable(points, _revision):
                yield dict(read)

    async def revisions(self, adapter_ids: Sequence[str]) -> dict[str, int]:
        """Revisions of those of the adapters that are there."""
        return {adapter_id: payload["revision"] for adapter_id, payload in (await self._payloads(adapter_ids, ["revision"])).items()}

    async def count(self) -> int:
        """How many adapters there are, about."""
        where = models.Filter(must=[_IS_ADAPTER])
        found = await self.connection.call(self.connection.client.count(self.points.collection, count_filter=where, exact=False))
        return found.count

    async def all_entries(self, after: str, page: int) -> AsyncIterator[list[Entry]]:
        """Adapters with all that is kept of them, of ids over `after`, by id, in pages."""
        where, last = models.Filter(must=[_IS_ADAPTER]), point_id(after) if after else ""
        async for points in self.points.pages(where, page, after=last, with_vectors=True):
            yield _readable(points, self._entry)

    async def entries(self, adapter_ids: Sequence[str]) -> list[Entry]:
        """Adapters with all that is kept of them, as far as they are there."""
        found = await self.points.retrieve([point_id(one) for one in adapter_ids], with_vectors=True)
        return _readable([point for point in found.values() if (point.payload or {}).get("type") == "adapter"], self._entry)

    async def changed_documents(self, kind: str, since_us: int) -> AsyncIterator[list[tuple[Document, bool]]]:
        """Documents that have been written since a time, and whether they were deleted."""
        async for points in self._documents[kind].pages(models.Filter(must=[_since(since_us)]), PAGE):
            yield _readable(points, lambda point: (_document(point.payload or {}), _is_deleted(point)))

    def _entry(self, point: models.Record) -> Entry:
        payload = point.payload or {}
        example_vectors = self._unpacked(payload["example_vectors"]) if payload.get("example_vectors") else None
        return Entry(record_of(payload), np.asarray(point.vector, np.float32), example_vectors)

    def _unpacked(self, example_vectors: str) -> Vector:
        return Encoded.from_bytes(b64decode(example_vectors), self.dimension).decoded()

    async def close(self) -> None:
        """See `Catalogue`."""
        await self.connection.close()


def _readable(points: Sequence[models.Record], read: Callable[[models.Record], T]) -> list[T]:
    """What was read of points, but for those that no router wrote so: a copy must not stop for one of them."""
    found = []
    for point in points:
        try:
            found.append(read(point))
        except (KeyError, TypeError, ValueError, InvalidArgument) as error:
            _log.error(
                "point %s of the Qdrant server cannot be read (%r), and is left out; delete it there, or restore it", point.id, error
            )
    return found


def _revision(point: models.Record) -> tuple[str, int]:
    payload = point.payload or {}
    check_ulid(payload["adapter_id"])
    return payload["adapter_id"], int(payload["revision"])


def _packed(example_vectors: Vector) -> str:
    return b64encode(Encoded.of(example_vectors).to_bytes()).decode()


def _document(payload: Mapping[str, Any]) -> Document:
    return Document(payload["document_id"], payload["tenant"], payload["body"], payload["revision"], tuple(payload["last_writes"]))


def _is_deleted(point: models.Record) -> bool:
    return bool((point.payload or {})["state"] == _DELETED)


_IS_ADAPTER: Final = equals("type", "adapter")


def _since(us: int) -> models.FieldCondition:
    return models.FieldCondition(key="written_at_us", range=models.Range(gte=us))


def _filter(scope: Scope) -> models.Filter:
    must: list[Any] = [_IS_ADAPTER, models.FieldCondition(key="state", match=models.MatchAny(any=[*map(str, scope.states)]))]
    if scope.tenant is not None:
        own = equals("tenant", scope.tenant)
        must.append(models.Filter(should=[own, equals("visibility", "shared")]) if scope.include_shared else own)
    if scope.base_model is not None:
        must.append(equals("base_model", scope.base_model))
    if scope.name is not None:
        must.append(equals("name", scope.name))
    if scope.digest is not None:
        must.append(equals("digest", scope.digest))
    must += [equals("tags", tag) for tag in scope.all_tags]
    return models.Filter(must=must)
