"""`AdapterIndex` on a Qdrant server, through `AsyncQdrantClient`: several router replicas share one library."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import numpy as np
from qdrant_client import AsyncQdrantClient, models

from services.router.catalogue.encoded_vectors import Encoded
from services.router.catalogue.index import DOCUMENT_KINDS, Conflict, Document, Entry, Vector, point_id
from services.router.catalogue.qdrant_changes import QdrantChanges
from services.router.catalogue.qdrant_connection import NO_VECTORS, QdrantConnection, equals, unavailable
from services.router.catalogue.qdrant_points import INDEXES, Point, QdrantPoints, has_id
from services.router.catalogue.records import AdapterRecord, AdapterRef, Candidate, Reach, RecordSummary, Scope, labels_of, pool_of
from services.router.search.clusters import JOIN_COSINE, MAX_CLUSTERS

_SEARCH = models.SearchParams(hnsw_ef=128, quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0))
"""Recall@10 of 0.976 on a shard of 100,000; found by 8-bit codes in memory, scored again by the vectors on disk (docs/decisions/0008)."""
KEYWORDS: Final = (
    *("type", "pending", "pool", "tenant", "base_model", "state", "tags", "name", "digest", "visibility", "labels", "cluster", "leads"),
)
"""Payload fields of adapters with an index. A search filters on `pool` alone (and `labels`, when there are hints)."""


def payload_of(record: AdapterRecord) -> dict[str, Any]:
    """Payload of an adapter's point."""
    visibility = "shared" if record.shared else "private"
    return {"type": "adapter", "pool": pool_of(record), **record.to_payload(), "visibility": visibility, "labels": labels_of(record)}


class ServerIndex:
    """Collections of one prefix: adapters, a collection for each kind of documents, changes under way. Make it with `ServerIndex.open`."""

    def __init__(self, connection: QdrantConnection, dimension: int, prefix: str, ordering: models.WriteOrdering) -> None:
        self._connection, self._client, self._dimension = connection, connection.client, dimension
        self._points = QdrantPoints(connection, f"{prefix}_adapters", ordering)
        self._changes = QdrantChanges(self._points, QdrantPoints(connection, f"{prefix}_changes", ordering))
        self._documents = {kind: QdrantPoints(connection, f"{prefix}_{kind}s", ordering) for kind in DOCUMENT_KINDS}
        self._collection, self._change_collection = self._points.collection, f"{prefix}_changes"

    @classmethod
    async def open(
        cls,
        client: AsyncQdrantClient,
        dimension: int,
        prefix: str = "smoa",
        *,
        ordering: models.WriteOrdering = models.WriteOrdering.STRONG,
        **options: Any,
    ) -> ServerIndex:
        """Make the collections and their payload indexes, as far as they are not there.

        `options` are `create_collection`'s for all of them: replicas, shards, write consistency. `ordering` is that of writes: with less
        than strong ones, a replicated cluster loses conditional writes.

        Raises:
            FailedPrecondition: a collection of this name holds something else.
            Unavailable: the server is away.
        """
        index = cls(QdrantConnection(client), dimension, prefix, ordering)
        connection = index._connection
        fields = {
            field: models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=field == "pool", enable_hnsw=field == "pool")
            for field in KEYWORDS
        }
        await connection.ensure_collection(
            index._collection,
            models.VectorParams(size=dimension, distance=models.Distance.COSINE, on_disk=True),
            {**INDEXES, **fields},
            hnsw_config=models.HnswConfigDiff(m=16, payload_m=16),
            quantization_config=models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
            ),
            on_disk_payload=True,
            **options,
        )
        keyword = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD)
        await connection.ensure_collection(index._change_collection, NO_VECTORS, {"state": keyword}, **options)
        for points in index._documents.values():
            await connection.ensure_collection(points.collection, NO_VECTORS, {**INDEXES, "tenant": keyword}, **options)
        await index._changes.resolve_all()
        return index

    async def check(self) -> None:
        """See `AdapterIndex`. Ends changes of routers that have died, too."""
        if not await self._connection.answer(self._client.collection_exists(self._collection)):
            raise unavailable(f"has no collection {self._collection!r} (restore it, or restart this router to make an empty one)")
        await self._changes.resolve_all()

    @property
    def in_training(self) -> int:
        """The server's own affair."""
        return 0

    async def write(self, entries: Sequence[Entry], *, together: bool = True) -> None:
        """See `AdapterIndex`."""
        points, leaders = await self._points_of(entries)
        if leaders:
            await self._points.upsert(leaders)
        try:
            if together and len(points) > 1:
                await self._changes.write(points)
            else:
                await self._points.write(points)
        except Conflict as conflict:
            await self._changes.resolve_lost(sorted(conflict.lost))
            raise Conflict(e.record.adapter_id for e in entries if point_id(e.record.adapter_id) in conflict.lost) from None

    async def upsert(self, records: Sequence[tuple[AdapterRecord, Vector]], prototypes: Mapping[str, Vector] | None = None) -> None:
        """See `AdapterIndex`."""
        given = prototypes or {}
        points, leaders = await self._points_of([Entry(r, v, given.get(r.adapter_id)) for r, v in records])
        as_they_are = [models.PointStruct(id=p.point_id, vector=list(p.vector), payload=dict(p.payload)) for p in points]
        await self._points.upsert([*leaders, *as_they_are])

    async def _points_of(self, entries: Sequence[Entry]) -> tuple[list[Point], list[models.PointStruct]]:
        """Points of adapters, and of the clusters that they are the first in."""
        given = {e.record.adapter_id: _packed(e.prototypes) for e in entries if e.prototypes is not None}
        kept = await self._payloads([e.record.adapter_id for e in entries if e.prototypes is None], ["prototypes"])
        given |= {adapter_id: payload["prototypes"] for adapter_id, payload in kept.items() if payload.get("prototypes")}
        joined, leaders = await self._join([(entry.record, entry.vector) for entry in entries])
        points = [
            Point(
                point_id(record.adapter_id),
                {
                    **payload_of(record),
                    "cluster": joined.get(record.adapter_id, ""),
                    "prototypes": given.get(record.adapter_id, ""),
                    "has_prototypes": record.adapter_id in given,
                    "pending": "",
                },
                record.revision,
                record.last_writes,
                vector.tolist(),
            )
            for record, vector, _ in entries
        ]
        return points, leaders

    async def _join(self, records: Sequence[tuple[AdapterRecord, Vector]]) -> tuple[dict[str, str], list[models.PointStruct]]:
        """The cluster of each adapter that may be routed to, and the leaders of those that are new (see `clusters.py`)."""
        routed = [(r.adapter_id, pool_of(r), v) for r, v in records if pool_of(r)]
        if not routed:
            return {}, []
        queries = [models.QueryRequest(query=v.tolist(), filter=_leaders_of([pool]), limit=1) for _, pool, v in routed]
        answers = await self._connection.call(self._client.query_batch_points(self._collection, queries))
        joined: dict[str, str] = {}
        new: list[tuple[str, str, Vector]] = []
        room: dict[str, int] = {}
        for (adapter_id, pool, vector), answer in zip(routed, answers, strict=True):
            near = [(point.score, str(point.id)) for point in answer.points]
            near += [(float(vector @ leader), cluster) for cluster, of, leader in new if of == pool]
            score, cluster = max(near, default=(-1.0, ""))
            if score < JOIN_COSINE:
                if pool not in room:
                    there = await self._connection.call(self._client.count(self._collection, count_filter=_leaders_of([pool]), exact=True))
                    room[pool] = MAX_CLUSTERS - there.count
                if room[pool] > 0:
                    room[pool] -= 1
                    cluster = str(uuid4())
                    new.append((cluster, pool, vector))
            joined[adapter_id] = cluster
        leaders = [
            models.PointStruct(id=cluster, vector=leader.tolist(), payload={"type": "cluster", "leads": of}) for cluster, of, leader in new
        ]
        return joined, leaders

    async def _payloads(self, adapter_ids: Sequence[str], fields: list[str]) -> dict[str, dict[str, Any]]:
        """These fields of those of the adapters that are there."""
        payloads = await self._points.payloads([point_id(one) for one in adapter_ids], ["type", "adapter_id", *fields])
        return {payload["adapter_id"]: payload for payload in payloads.values() if payload["type"] == "adapter"}

    async def get(self, adapter_id: str) -> tuple[AdapterRecord, Vector] | None:
        """See `AdapterIndex`. One that a change has claimed is given as it was, while it may yet be called off."""
        point = await self._points.get(point_id(adapter_id), with_vector=True)
        if point is not None and (change_id := (point.payload or {}).get("pending")):
            with suppress(Conflict):
                await self._changes.resolve(change_id, [str(point.id)])
                point = await self._points.get(point_id(adapter_id), with_vector=True)
        if point is None or not point.payload or point.payload["type"] != "adapter":
            return None
        return AdapterRecord.from_payload(point.payload), np.asarray(point.vector, np.float32)

    async def summaries(self, adapter_ids: Sequence[str]) -> dict[str, RecordSummary]:
        """See `AdapterIndex`."""
        payloads = await self._payloads(adapter_ids, [*RecordSummary._fields])
        return {adapter_id: RecordSummary(*(payload[field] for field in RecordSummary._fields)) for adapter_id, payload in payloads.items()}

    async def prototypes(self, adapter_ids: Sequence[str]) -> dict[str, Vector]:
        """See `AdapterIndex`."""
        packed = {one: payload.get("prototypes") for one, payload in (await self._payloads(adapter_ids, ["prototypes"])).items()}
        return {one: Encoded.from_bytes(b64decode(data), self._dimension).decoded() for one, data in packed.items() if data}

    async def search(self, vector: Vector, reach: Reach, limit: int, *, with_records: bool = False, clusters: int = 0) -> list[Candidate]:
        """See `AdapterIndex`."""
        wanted: list[Any] = [models.FieldCondition(key="pool", match=models.MatchAny(any=list(reach.pools)))]
        if reach.any_labels:
            wanted.append(models.FieldCondition(key="labels", match=models.MatchAny(any=list(reach.any_labels))))
        if clusters:
            leaders = await self._connection.call(
                self._client.query_points(
                    self._collection, query=vector.tolist(), query_filter=_leaders_of(reach.pools), limit=clusters, with_payload=False
                )
            )
            near = [str(point.id) for point in leaders.points]
            wanted.append(models.FieldCondition(key="cluster", match=models.MatchAny(any=near)))
        answer = await self._connection.call(
            self._client.query_points(
                self._collection,
                query=vector.tolist(),
                query_filter=models.Filter(must=wanted),
                search_params=_SEARCH,
                limit=limit,
                with_payload=models.PayloadSelectorExclude(exclude=["examples", "prototypes"])
                if with_records
                else models.PayloadSelectorInclude(include=["adapter_id", "version", "digest", "has_prototypes"]),
            )
        )
        found = []
        for point in answer.points:
            payload = point.payload or {}
            record = AdapterRecord.from_payload({**payload, "examples": ()}) if with_records else None
            ref = AdapterRef(payload["adapter_id"], payload["version"], payload["digest"])
            found.append(Candidate(ref, point.score, record, payload["has_prototypes"]))
        return found

    async def scroll(self, scope: Scope, after: str, limit: int) -> list[AdapterRecord]:
        """See `AdapterIndex`."""
        found = await self._points.scroll(_filter(scope), point_id(after) if after else "", limit)
        return [AdapterRecord.from_payload(point.payload or {}) for point in found]

    async def write_document(self, kind: str, document: Document) -> None:
        """See `AdapterIndex`."""
        payload = {"document_id": document.document_id, "tenant": document.tenant, "body": dict(document.body)}
        point = Point(point_id(document.document_id), payload, document.revision, document.last_writes)
        await self._documents[kind].write([point])

    async def get_document(self, kind: str, document_id: str) -> Document | None:
        """See `AdapterIndex`."""
        found = await self._documents[kind].get(point_id(document_id))
        return None if found is None else _document(found.payload or {})

    async def list_documents(self, kind: str, tenant: str, after: str, limit: int) -> list[Document]:
        """See `AdapterIndex`."""
        wanted = models.Filter(must=[equals("tenant", tenant)])
        found = await self._documents[kind].scroll(wanted, point_id(after) if after else "", limit)
        return [_document(point.payload or {}) for point in found]

    async def delete_document(self, kind: str, document: Document) -> None:
        """See `AdapterIndex`."""
        points, at = self._documents[kind], point_id(document.document_id)
        await points.delete(has_id(at, equals("revision", document.revision)))
        if await points.get(at) is not None:
            raise Conflict([document.document_id])

    async def close(self) -> None:
        """See `AdapterIndex`."""
        await self._connection.close()


def _packed(prototypes: Vector) -> str:
    return b64encode(Encoded.of(prototypes).to_bytes()).decode()


def _document(payload: Mapping[str, Any]) -> Document:
    return Document(payload["document_id"], payload["tenant"], payload["body"], payload["revision"], tuple(payload["last_writes"]))


def _leaders_of(pools: Sequence[str]) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="leads", match=models.MatchAny(any=list(pools)))])


def _filter(scope: Scope) -> models.Filter:
    must: list[Any] = [equals("type", "adapter"), models.FieldCondition(key="state", match=models.MatchAny(any=[*map(str, scope.states)]))]
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
