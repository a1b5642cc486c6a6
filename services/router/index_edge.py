"""`AdapterIndex` on the Qdrant engine in this process (`qdrant-edge-py`). Its calls block, so they run on one worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    HnswIndexConfig,
    KeywordIndexParams,
    MatchAny,
    MatchValue,
    PayloadSchemaType,
    Point,
    Query,
    QueryRequest,
    ScrollRequest,
    UpdateOperation,
)

from services.router.index import KEYWORDS, Vector, payload_of, point_id
from services.router.library import AdapterRecord, Candidate, Scope

T = TypeVar("T")


class EdgeIndex:
    """One shard in a folder; one process owns it. Updates survive `kill -9` (the engine's write-ahead log)."""

    def __init__(self, folder: Path, dimension: int) -> None:
        self._dimension = dimension
        folder.mkdir(parents=True, exist_ok=True)
        config = EdgeConfig(
            vectors=EdgeVectorParams(size=dimension, distance=Distance.Cosine),
            hnsw_config=HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000),
        )
        if any(folder.iterdir()):
            self._shard = EdgeShard.load(str(folder), config)
        else:
            self._shard = EdgeShard.create(str(folder), config)
            for key in KEYWORDS:
                tenant = KeywordIndexParams(is_tenant=True) if key == "tenant" else PayloadSchemaType.Keyword
                self._shard.update(UpdateOperation.create_field_index(key, tenant))
        self._thread = ThreadPoolExecutor(1, "edge-index")

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def upsert(self, records: Sequence[tuple[AdapterRecord, Vector]]) -> None:
        """See `AdapterIndex`."""
        points = [Point(point_id(r.adapter_id), vector.tolist(), payload_of(r)) for r, vector in records]
        await self._call(lambda: self._shard.update(UpdateOperation.upsert_points(points)))

    async def get(self, adapter_id: str) -> tuple[AdapterRecord, Vector] | None:
        """See `AdapterIndex`."""
        found = await self._call(lambda: self._shard.retrieve([point_id(adapter_id)], with_payload=True, with_vector=True))
        if not found or not found[0].payload or found[0].payload["type"] != "adapter":
            return None
        return AdapterRecord.from_payload(found[0].payload), np.asarray(cast(list[float], found[0].vector), np.float32)

    async def search(self, vector: Vector, scope: Scope, limit: int) -> list[Candidate]:
        """See `AdapterIndex`."""
        request = QueryRequest(limit, query=Query.Nearest(vector.tolist()), with_payload=True, filter=_filter(scope))
        found = await self._call(lambda: self._shard.query(request))
        return [Candidate(AdapterRecord.from_payload(point.payload or {}), point.score) for point in found]

    async def scroll(self, scope: Scope, after: str, limit: int) -> list[AdapterRecord]:
        """See `AdapterIndex`."""
        points = await self._scroll(_filter(scope), after, limit)
        return [AdapterRecord.from_payload(payload) for _, payload in points]

    async def put_document(self, document_id: str, kind: str, tenant: str, body: Mapping[str, Any]) -> None:
        """See `AdapterIndex`."""
        # Cosine needs a non-zero vector; searches filter on type, so a document's never matters.
        vector = [1.0] + [0.0] * (self._dimension - 1)
        payload = {"type": kind, "tenant": tenant, "document_id": document_id, "body": dict(body)}
        point = Point(point_id(document_id), vector, payload)
        await self._call(lambda: self._shard.update(UpdateOperation.upsert_points([point])))

    async def get_document(self, document_id: str) -> tuple[str, str, Mapping[str, Any]] | None:
        """See `AdapterIndex`."""
        found = await self._call(lambda: self._shard.retrieve([point_id(document_id)], with_payload=True, with_vector=False))
        if not found or not found[0].payload or found[0].payload["type"] == "adapter":
            return None
        payload = found[0].payload
        return payload["type"], payload["tenant"], payload["body"]

    async def list_documents(self, kind: str, tenant: str, after: str, limit: int) -> list[tuple[str, Mapping[str, Any]]]:
        """See `AdapterIndex`."""
        wanted = Filter(must=[_equals("type", kind), _equals("tenant", tenant)])
        return [(payload["document_id"], payload["body"]) for _, payload in await self._scroll(wanted, after, limit)]

    async def delete_document(self, document_id: str) -> None:
        """See `AdapterIndex`."""
        await self._call(lambda: self._shard.update(UpdateOperation.delete_points([point_id(document_id)])))

    async def close(self) -> None:
        """See `AdapterIndex`."""
        await self._call(self._shard.close)
        self._thread.shutdown()

    async def _scroll(self, wanted: Filter, after: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        # The offset is inclusive, so one more is asked for and the start is dropped.
        start = point_id(after) if after else None
        request = ScrollRequest(offset=start, limit=limit + (1 if start else 0), filter=wanted, with_payload=True)
        points, _ = await self._call(lambda: self._shard.scroll(request))
        return [(str(p.id), p.payload or {}) for p in points if str(p.id) != start][:limit]


def _equals(key: str, value: str) -> FieldCondition:
    return FieldCondition(key, match=MatchValue(value))


def _filter(scope: Scope) -> Filter:
    must: list[Any] = [_equals("type", "adapter"), FieldCondition("state", match=MatchAny([*map(str, scope.states)]))]
    if scope.tenant is not None:
        own = _equals("tenant", scope.tenant)
        shared = _equals("visibility", "shared")
        must.append(Filter(should=[own, shared]) if scope.include_shared else own)
    if scope.base_model is not None:
        must.append(_equals("base_model", scope.base_model))
    if scope.name is not None:
        must.append(_equals("name", scope.name))
    if scope.digest is not None:
        must.append(_equals("digest", scope.digest))
    must += [_equals("tags", tag) for tag in scope.all_tags]
    if scope.any_tags:
        must.append(FieldCondition("labels", match=MatchAny(list(scope.any_tags))))
    return Filter(must=must)
