"""`VectorIndex` on the Qdrant server that keeps the catalogue: for libraries over what memory is allowed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import numpy as np
from qdrant_client import models

from services.router.catalogue.port import Vector
from services.router.catalogue.qdrant_catalogue import KEYWORD, QdrantCatalogue
from services.router.catalogue.qdrant_connection import Limits
from services.router.catalogue.qdrant_points import QdrantPoints
from services.router.catalogue.records import AdapterRecord, AdapterRef, Candidate, Labels, Reach, pool_of
from services.router.search import clusters as leading
from smoa.errors import SmoaError

_REF: Final = ("adapter_id", "version", "digest", "has_examples")
_AGAIN_S: Final = 30.0
"""How old what is known of a pool's size and leaders may be: other routers add to them, too."""


@dataclass
class _Leaders:
    """Of a pool's clusters: their ids, and vectors [n, dimension]."""

    read_at_s: float
    is_large: bool = False
    """Whether the pool is large enough to gain by clusters."""
    ids: list[str] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)


def search_parameters(limits: Limits) -> models.SearchParams:
    """Found by 8-bit codes in memory, scored again by the vectors on disk: recall@10 of 0.976 of 100,000 (docs/decisions/0008)."""
    quantization = models.QuantizationSearchParams(rescore=True, oversampling=limits.oversampling)
    return models.SearchParams(hnsw_ef=limits.hnsw_ef, quantization=quantization)


class QdrantSearch:
    """Searches the catalogue's own collection; leaders of clusters (see `clusters.py`) have a collection of theirs. `prepare` it first."""

    def __init__(self, catalogue: QdrantCatalogue) -> None:
        self._connection, self._client = catalogue.connection, catalogue.connection.client
        self._points, self._dimension = catalogue.points, catalogue.dimension
        self._leader_points = QdrantPoints(catalogue.connection, f"{catalogue.prefix}_clusters", catalogue.points.ordering)
        self._leaders: dict[str, _Leaders] = {}
        catalogue.cluster_by(self._join)

    async def prepare(self, **options: Any) -> None:
        """Make the collection of clusters, as far as it is not there; `options` are `create_collection`'s."""
        vectors = models.VectorParams(size=self._dimension, distance=models.Distance.COSINE)
        self._leader_points.limits = await self._connection.ensure_collection(
            self._leader_points.collection, vectors, {"pool": KEYWORD}, **options
        )

    @property
    def in_training(self) -> int:
        """The server's own affair."""
        return 0

    async def search(self, vector: Vector, reach: Reach, limit: int, *, hinted: Sequence[str] = (), clusters: int = 0) -> list[Candidate]:
        """See `VectorIndex`."""
        wanted: list[Any] = [models.FieldCondition(key="pool", match=models.MatchAny(any=list(reach.pools)))]
        if reach.any_labels:
            wanted.append(models.FieldCondition(key="labels", match=models.MatchAny(any=list(reach.any_labels))))
        if clusters and (near := await self._nearest_leaders(vector, reach, clusters)):
            wanted.append(models.FieldCondition(key="cluster", match=models.MatchAny(any=["", *near])))
        answer = await self._connection.call(
            self._client.query_points(
                self._points.collection,
                query=vector.tolist(),
                query_filter=models.Filter(must=wanted),
                search_params=search_parameters(self._points.limits),
                limit=limit,
                with_payload=models.PayloadSelectorInclude(include=[*_REF, *(Labels._fields if hinted else ())]),
            )
        )
        found = []
        for point in answer.points:
            payload = point.payload or {}
            labels = Labels(payload["name"], tuple(payload["tags"]), payload["specialization"]) if hinted else None
            ref = AdapterRef(payload["adapter_id"], payload["version"], payload["digest"])
            found.append(Candidate(ref, point.score, labels, payload["has_examples"]))
        return found

    async def close(self) -> None:
        """See `VectorIndex`."""

    async def _nearest_leaders(self, vector: Vector, reach: Reach, count: int) -> list[str]:
        found = await self._connection.call(
            self._client.query_points(
                self._leader_points.collection,
                query=vector.tolist(),
                query_filter=_of(reach.pools),
                limit=count,
                with_payload=False,
            )
        )
        return [str(point.id) for point in found.points]

    async def _join(self, records: Sequence[tuple[AdapterRecord, Vector]]) -> Mapping[str, str]:
        """The cluster of each adapter in a pool that has clusters; one that is near to none leads a new one."""
        joined: dict[str, str] = {}
        made: list[models.PointStruct] = []
        for record, vector in records:
            if not (pool := pool_of(record)) or (leaders := await self._leaders_of(pool)) is None:
                continue
            cosines = np.stack(leaders.vectors) @ vector if leaders.vectors else np.full(1, -1.0)
            if cosines.max() < leading.JOIN_COSINE and len(leaders.ids) < leading.MAX_CLUSTERS:
                leaders.ids.append(str(uuid4()))
                leaders.vectors.append(vector)
                made.append(models.PointStruct(id=leaders.ids[-1], vector=vector.tolist(), payload={"pool": pool}))
                joined[record.adapter_id] = leaders.ids[-1]
            else:
                joined[record.adapter_id] = leaders.ids[int(cosines.argmax())]
        if made:
            try:
                await self._leader_points.upsert(made)
            except SmoaError:
                self._leaders.clear()  # those that are not there lead nobody: read again
                raise
        return joined

    async def _leaders_of(self, pool: str) -> _Leaders | None:
        """The leaders of a pool, or None of one that is too small to gain by clusters."""
        now_s = time.monotonic()
        known = self._leaders.get(pool)
        if known is None or now_s - known.read_at_s > _AGAIN_S:
            if len(self._leaders) >= 10_000:
                self._leaders.clear()
            known = _Leaders(now_s)
            there = await self._connection.call(self._client.count(self._points.collection, count_filter=_of([pool]), exact=False))
            if there.count >= leading.CLUSTERED_FROM:
                found = await self._leader_points.scroll(_of([pool]), "", leading.MAX_CLUSTERS, with_vectors=True)
                known.ids = [str(point.id) for point in found]
                known.vectors = [np.asarray(point.vector, np.float32) for point in found]
                known.is_large = True
            self._leaders[pool] = known
        return known if known.is_large else None


def _of(pools: Sequence[str]) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="pool", match=models.MatchAny(any=list(pools)))])
