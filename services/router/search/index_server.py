"""`AdapterIndex` on a Qdrant server, through `AsyncQdrantClient`: several router replicas share one library."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import numpy as np
from grpc import StatusCode
from grpc.aio import AioRpcError
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from services.router.catalogue.encoded_vectors import Encoded
from services.router.catalogue.index import Vector, point_id
from services.router.catalogue.records import AdapterRecord, AdapterRef, Candidate, Kept, Reach, Scope, labels_of, pool_of
from services.router.catalogue.statistics import Statistics
from services.router.search.clusters import JOIN_COSINE, MAX_CLUSTERS
from smoa.errors import Unavailable

T = TypeVar("T")
WRITE_TIMEOUT_S = 30.0
"""A write of a thousand adapters waits until the server has it in its log, however busy it is with its index."""
_NO_ANSWER = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
_SEARCH = models.SearchParams(hnsw_ef=128, quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0))
"""Recall@10 of 0.976 on a shard of 100,000; found by 8-bit codes in memory, scored again by the vectors on disk (docs/decisions/0008)."""
KEYWORDS = ("type", "pool", "tenant", "base_model", "state", "tags", "name", "digest", "visibility", "labels", "cluster", "leads")
"""Payload fields with an index. A search filters on `pool` alone (and `labels`, when there are hints); the others are for listings."""


def payload_of(record: AdapterRecord) -> dict[str, Any]:
    """Payload of an adapter's point."""
    visibility = "shared" if record.shared else "private"
    return {"type": "adapter", "pool": pool_of(record), **record.to_payload(), "visibility": visibility, "labels": labels_of(record)}


class ServerIndex:
    """One collection, `adapters`. Make it with `ServerIndex.open`."""

    def __init__(self, client: AsyncQdrantClient, dimension: int, collection: str = "adapters", timeout_s: float = 5.0) -> None:
        self._client, self._dimension, self._collection, self._timeout_s = client, dimension, collection, timeout_s
        self._away = False

    @classmethod
    async def open(cls, client: AsyncQdrantClient, dimension: int, collection: str = "adapters") -> ServerIndex:
        """Create the collection and its payload indexes if they are not there."""
        index = cls(client, dimension, collection)
        if not await index._call(client.collection_exists(collection)):
            await index._call(
                client.create_collection(
                    collection,
                    vectors_config=models.VectorParams(size=dimension, distance=models.Distance.COSINE, on_disk=True),
                    hnsw_config=models.HnswConfigDiff(m=16, payload_m=16),
                    quantization_config=models.ScalarQuantization(
                        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
                    ),
                    on_disk_payload=True,
                )
            )
            for key in KEYWORDS:
                schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=key == "pool", enable_hnsw=key == "pool")
                await index._call(client.create_payload_index(collection, key, field_schema=schema))
        return index

    async def check(self) -> None:
        """See `AdapterIndex`."""
        if not await self._answer(self._client.collection_exists(self._collection)):
            raise _unavailable(f"has no collection {self._collection!r} (restore it, or restart this router to make an empty one)")

    async def _call(self, call: Coroutine[Any, Any, T], *, writes: bool = False) -> T:
        if self._away:  # until `check` finds it again: nobody should wait for a server that does not answer
            call.close()
            raise _unavailable("is away")
        return await self._answer(call, writes=writes)

    async def _answer(self, call: Awaitable[T], *, writes: bool = False) -> T:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S if writes else self._timeout_s):
                answer = await call
        except UnexpectedResponse as error:
            raise _unavailable(f"answered {error.status_code}") from error
        except (ResponseHandlingException, AioRpcError, httpx.HTTPError, OSError, TimeoutError) as error:
            if isinstance(error, AioRpcError) and error.code() not in _NO_ANSWER:
                raise _unavailable(f"answered {error.code().name}") from error
            if not writes:  # a slow write says nothing of reads; if the server is gone, the next read finds out
                self._away = True
            raise _unavailable(f"did not answer ({type(error).__name__})") from error
        self._away = False
        return answer

    @property
    def in_training(self) -> int:
        """The server's own affair."""
        return 0

    async def upsert(self, records: Sequence[tuple[AdapterRecord, Vector]], prototypes: Mapping[str, Vector] | None = None) -> None:
        """See `AdapterIndex`."""
        given = {adapter_id: b64encode(Encoded.of(vectors).to_bytes()).decode() for adapter_id, vectors in (prototypes or {}).items()}
        kept = await self._payloads([r.adapter_id for r, _ in records if r.adapter_id not in given], ["prototypes"])
        given |= {adapter_id: payload["prototypes"] for adapter_id, payload in kept.items() if payload.get("prototypes")}
        joined, leaders = await self._join(records)
        points = [
            models.PointStruct(
                id=point_id(r.adapter_id),
                vector=v.tolist(),
                payload={
                    **payload_of(r),
                    "cluster": joined.get(r.adapter_id, ""),
                    "prototypes": given.get(r.adapter_id, ""),
                    "has_prototypes": r.adapter_id in given,
                },
            )
            for r, v in records
        ]
        await self._call(self._client.upsert(self._collection, [*leaders, *points], wait=True), writes=True)

    async def put_statistics(self, adapter_id: str, statistics: Statistics) -> None:
        """See `AdapterIndex`."""
        there = models.Filter(must=[models.HasIdCondition(has_id=[point_id(adapter_id)])])  # an id alone would have to be there
        await self._call(self._client.set_payload(self._collection, {"statistics": statistics.to_payload()}, there, wait=True), writes=True)

    async def _join(self, records: Sequence[tuple[AdapterRecord, Vector]]) -> tuple[dict[str, str], list[models.PointStruct]]:
        """The cluster of each adapter that may be routed to, and the leaders of those that are new (see `clusters.py`)."""
        routed = [(r.adapter_id, pool_of(r), v) for r, v in records if pool_of(r)]
        if not routed:
            return {}, []
        queries = [models.QueryRequest(query=v.tolist(), filter=_leaders_of([pool]), limit=1) for _, pool, v in routed]
        answers = await self._call(self._client.query_batch_points(self._collection, queries))
        joined: dict[str, str] = {}
        new: list[tuple[str, str, Vector]] = []
        room: dict[str, int] = {}
        for (adapter_id, pool, vector), answer in zip(routed, answers, strict=True):
            near = [(point.score, str(point.id)) for point in answer.points]
            near += [(float(vector @ leader), cluster) for cluster, of, leader in new if of == pool]
            score, cluster = max(near, default=(-1.0, ""))
            if score < JOIN_COSINE:
                if pool not in room:
                    there = await self._call(self._client.count(self._collection, count_filter=_leaders_of([pool]), exact=True))
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
        if not adapter_ids:
            return {}
        wanted = models.PayloadSelectorInclude(include=["type", "adapter_id", *fields])
        points = await self._call(self._client.retrieve(self._collection, [point_id(one) for one in adapter_ids], with_payload=wanted))
        payloads = [point.payload or {} for point in points]
        return {payload["adapter_id"]: payload for payload in payloads if payload["type"] == "adapter"}

    async def get(self, adapter_id: str) -> tuple[AdapterRecord, Vector] | None:
        """See `AdapterIndex`."""
        found = await self._call(self._client.retrieve(self._collection, [point_id(adapter_id)], with_payload=True, with_vectors=True))
        if not found or not found[0].payload or found[0].payload["type"] != "adapter":
            return None
        return AdapterRecord.from_payload(found[0].payload), np.asarray(found[0].vector, np.float32)

    async def kept(self, adapter_ids: Sequence[str]) -> dict[str, Kept]:
        """See `AdapterIndex`."""
        payloads = await self._payloads(adapter_ids, [*Kept._fields])
        return {adapter_id: Kept(*(payload[field] for field in Kept._fields)) for adapter_id, payload in payloads.items()}

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
            leaders = await self._call(
                self._client.query_points(
                    self._collection, query=vector.tolist(), query_filter=_leaders_of(reach.pools), limit=clusters, with_payload=False
                )
            )
            near = [str(point.id) for point in leaders.points]
            wanted.append(models.FieldCondition(key="cluster", match=models.MatchAny(any=near)))
        answer = await self._call(
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
        return [AdapterRecord.from_payload(payload) for _, payload in await self._scroll(_filter(scope), after, limit)]

    async def put_document(self, document_id: str, kind: str, tenant: str, body: Mapping[str, Any]) -> None:
        """See `AdapterIndex`."""
        payload = {"type": kind, "tenant": tenant, "document_id": document_id, "body": dict(body)}
        vector = [1.0] + [0.0] * (self._dimension - 1)
        await self._call(
            self._client.upsert(self._collection, [models.PointStruct(id=point_id(document_id), vector=vector, payload=payload)])
        )

    async def get_document(self, document_id: str) -> tuple[str, str, Mapping[str, Any]] | None:
        """See `AdapterIndex`."""
        found = await self._call(self._client.retrieve(self._collection, [point_id(document_id)], with_payload=True))
        if not found or not found[0].payload or found[0].payload["type"] in ("adapter", "cluster"):
            return None
        payload = found[0].payload
        return payload["type"], payload["tenant"], payload["body"]

    async def list_documents(self, kind: str, tenant: str, after: str, limit: int) -> list[tuple[str, Mapping[str, Any]]]:
        """See `AdapterIndex`."""
        wanted = models.Filter(must=[_equals("type", kind), _equals("tenant", tenant)])
        return [(payload["document_id"], payload["body"]) for _, payload in await self._scroll(wanted, after, limit)]

    async def delete_document(self, document_id: str) -> None:
        """See `AdapterIndex`."""
        await self._call(self._client.delete(self._collection, models.PointIdsList(points=[point_id(document_id)]), wait=True))

    async def close(self) -> None:
        """See `AdapterIndex`."""
        await self._client.close()

    async def _scroll(self, wanted: models.Filter, after: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        # The offset is inclusive, so one more is asked for and the start is dropped.
        start = point_id(after) if after else None
        points, _ = await self._call(
            self._client.scroll(self._collection, scroll_filter=wanted, offset=start, limit=limit + (1 if start else 0), with_payload=True)
        )
        return [(str(p.id), p.payload or {}) for p in points if str(p.id) != start][:limit]


def _unavailable(how: str) -> Unavailable:
    return Unavailable(f"index: the Qdrant server {how}; check SMOA_QDRANT_URL")


def _equals(key: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


def _leaders_of(pools: Sequence[str]) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="leads", match=models.MatchAny(any=list(pools)))])


def _filter(scope: Scope) -> models.Filter:
    must: list[Any] = [_equals("type", "adapter"), models.FieldCondition(key="state", match=models.MatchAny(any=[*map(str, scope.states)]))]
    if scope.tenant is not None:
        own = _equals("tenant", scope.tenant)
        must.append(models.Filter(should=[own, _equals("visibility", "shared")]) if scope.include_shared else own)
    if scope.base_model is not None:
        must.append(_equals("base_model", scope.base_model))
    if scope.name is not None:
        must.append(_equals("name", scope.name))
    if scope.digest is not None:
        must.append(_equals("digest", scope.digest))
    must += [_equals("tags", tag) for tag in scope.all_tags]
    return models.Filter(must=must)
