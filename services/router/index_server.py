"""`AdapterIndex` on a Qdrant server, through `AsyncQdrantClient`: several router replicas share one library."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import httpx
import numpy as np
from grpc.aio import AioRpcError
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from services.router.index import Vector, point_id
from services.router.library import AdapterRecord, AdapterRef, Candidate, Reach, Scope, labels_of, pool_of
from smoa.errors import Unavailable

T = TypeVar("T")
KEYWORDS = ("type", "pool", "tenant", "base_model", "state", "tags", "name", "digest", "visibility", "labels")
"""Payload fields with an index. A search filters on `pool` alone (and `labels`, when there are hints); the others are for listings."""


def payload_of(record: AdapterRecord) -> dict[str, Any]:
    """Payload of an adapter's point."""
    visibility = "shared" if record.shared else "private"
    return {"type": "adapter", "pool": pool_of(record), **record.to_payload(), "visibility": visibility, "labels": labels_of(record)}


class ServerIndex:
    """One collection, `adapters`. Make it with `ServerIndex.open`."""

    def __init__(self, client: AsyncQdrantClient, dimension: int, collection: str = "adapters") -> None:
        self._client, self._dimension, self._collection = client, dimension, collection

    @classmethod
    async def open(cls, client: AsyncQdrantClient, dimension: int, collection: str = "adapters") -> ServerIndex:
        """Create the collection and its payload indexes if they are not there."""
        index = cls(client, dimension, collection)
        if not await index._call(client.collection_exists(collection)):
            await index._call(
                client.create_collection(
                    collection,
                    vectors_config=models.VectorParams(size=dimension, distance=models.Distance.COSINE),
                    hnsw_config=models.HnswConfigDiff(m=16, payload_m=16),
                )
            )
            for key in KEYWORDS:
                schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=key == "pool", enable_hnsw=key == "pool")
                await index._call(client.create_payload_index(collection, key, field_schema=schema))
        return index

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except (ResponseHandlingException, UnexpectedResponse, AioRpcError, httpx.HTTPError, OSError) as error:
            raise Unavailable(f"index: the Qdrant server did not answer ({type(error).__name__}); check SMOA_QDRANT_URL") from error

    @property
    def in_training(self) -> int:
        """The server's own affair."""
        return 0

    async def upsert(self, records: Sequence[tuple[AdapterRecord, Vector]]) -> None:
        """See `AdapterIndex`."""
        points = [models.PointStruct(id=point_id(r.adapter_id), vector=v.tolist(), payload=payload_of(r)) for r, v in records]
        await self._call(self._client.upsert(self._collection, points, wait=True))

    async def get(self, adapter_id: str) -> tuple[AdapterRecord, Vector] | None:
        """See `AdapterIndex`."""
        found = await self._call(self._client.retrieve(self._collection, [point_id(adapter_id)], with_payload=True, with_vectors=True))
        if not found or not found[0].payload or found[0].payload["type"] != "adapter":
            return None
        return AdapterRecord.from_payload(found[0].payload), np.asarray(found[0].vector, np.float32)

    async def owners(self, adapter_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """See `AdapterIndex`."""
        wanted = models.PayloadSelectorInclude(include=["type", "adapter_id", "tenant", "digest"])
        points = await self._call(self._client.retrieve(self._collection, [point_id(one) for one in adapter_ids], with_payload=wanted))
        payloads = [point.payload or {} for point in points]
        return {payload["adapter_id"]: (payload["tenant"], payload["digest"]) for payload in payloads if payload["type"] == "adapter"}

    async def search(self, vector: Vector, reach: Reach, limit: int, *, with_records: bool = False) -> list[Candidate]:
        """See `AdapterIndex`."""
        wanted: list[Any] = [models.FieldCondition(key="pool", match=models.MatchAny(any=list(reach.pools)))]
        if reach.any_labels:
            wanted.append(models.FieldCondition(key="labels", match=models.MatchAny(any=list(reach.any_labels))))
        answer = await self._call(
            self._client.query_points(
                self._collection,
                query=vector.tolist(),
                query_filter=models.Filter(must=wanted),
                limit=limit,
                with_payload=models.PayloadSelectorExclude(exclude=["examples"])
                if with_records
                else models.PayloadSelectorInclude(include=["adapter_id", "version", "digest"]),
            )
        )
        found = []
        for point in answer.points:
            payload = point.payload or {}
            record = AdapterRecord.from_payload({**payload, "examples": ()}) if with_records else None
            found.append(Candidate(AdapterRef(payload["adapter_id"], payload["version"], payload["digest"]), point.score, record))
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
        if not found or not found[0].payload or found[0].payload["type"] == "adapter":
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


def _equals(key: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


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
