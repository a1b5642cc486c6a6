"""Routing one query: check it, look in the cache, embed, search, choose."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from dataclasses import dataclass, field

from ulid import ULID

from services.router.cache import ENTRY_BYTES, BoundedCache, CacheKey, RoutingCache
from services.router.compositions import Compositions, Stage
from services.router.embedding import StaticEmbedder
from services.router.flight import SingleFlight
from services.router.index import AdapterIndex, Vector
from services.router.library import DEFAULT_TENANT, Candidate, Reach, Scope, checked_tenant
from services.router.scoring import Chosen, Hints, check_strategy, choose
from smoa.errors import InvalidArgument, NotFound

MAX_QUERY_CHARACTERS = 8192
MAX_TOP_K = 16
_CHOSEN_BYTES = 600  # of an adapter of a cached decision, about


@dataclass(frozen=True, kw_only=True)
class RouteQuery:
    """A question to the router; `None` means the server's default."""

    query: str
    base_model: str
    tenant: str = DEFAULT_TENANT
    strategy: str = "hybrid"
    top_k: int | None = None
    score_threshold: float | None = None
    hints: Hints = field(default_factory=Hints)
    composition: str = ""
    """Name of a composition to carry out instead of choosing."""


@dataclass(frozen=True)
class RoutedQuery:
    """The answer. The same choice from the cache has a new id."""

    decision_id: str
    query: RouteQuery
    chosen: tuple[Chosen, ...]
    cached: bool
    handler_us: int
    decided_at_us: int
    stages: tuple[Stage, ...] = ()
    """Of a composition: how to carry it out. `chosen` then holds every adapter of it."""


@dataclass(frozen=True, kw_only=True)
class RoutingDefaults:
    """What `RouteQuery` leaves open. The threshold and temperature were read off the example library (docs/decisions/0003)."""

    top_k: int = 3
    score_threshold: float = 0.15
    temperature: float = 0.01
    min_weight: float = 0.1
    candidates: int = 32
    embedding_cache_bytes: int = 16 * 2**20


class Router:
    """Routes queries over an index. Knows tenants by their adapters: `public` always exists."""

    def __init__(
        self,
        index: AdapterIndex,
        embedder: StaticEmbedder,
        cache: RoutingCache[tuple[Chosen, ...]],
        compositions: Compositions,
        defaults: RoutingDefaults | None = None,
    ) -> None:
        self._index, self._embedder, self.cache = index, embedder, cache
        self._compositions = compositions
        self._defaults = defaults or RoutingDefaults()
        self._known_tenants = {DEFAULT_TENANT}
        self._flights: SingleFlight[CacheKey, tuple[Chosen, ...]] = SingleFlight()
        self.embeddings: BoundedCache[str, Vector] = BoundedCache(self._defaults.embedding_cache_bytes)

    @property
    def joined(self) -> int:
        """Queries that waited for the same one under way."""
        return self._flights.joined

    async def route(self, query: RouteQuery) -> RoutedQuery:
        """Decide.

        Raises:
            InvalidArgument: the query, top_k, threshold or tenant is out of bounds.
            NotFound: no adapter was ever registered for the tenant, or no composition of the name.
            FailedPrecondition: the composition cannot run on this base model (see `Compositions.resolve`).
            Unimplemented: a strategy of a later version.
        """
        started = time.perf_counter_ns()
        query = self._complete(query)
        await self._check_tenant_exists(query.tenant)
        stages: tuple[Stage, ...] = ()
        cached = False
        if query.composition:
            stages = await self._compositions.resolve(query.tenant, query.composition, query.base_model)
            every = {record.ref: weight for stage in stages for record, weight in stage.adapters}
            chosen = tuple(Chosen(ref, score=0.0, weight=weight) for ref, weight in every.items())
        else:
            chosen, cached = await self._chosen(query)
        handler_us = (time.perf_counter_ns() - started) // 1000
        return RoutedQuery(str(ULID()), query, chosen, cached, handler_us, time.time_ns() // 1000, stages)

    async def _chosen(self, query: RouteQuery) -> tuple[tuple[Chosen, ...], bool]:
        """The choice, and whether it came from the cache."""
        key = self._key(query)
        if (chosen := self.cache.get(key)) is not None:
            return chosen, True
        return await self._flights.run(key, lambda: self._decide_and_keep(key, query)), False

    async def _decide_and_keep(self, key: CacheKey, query: RouteQuery) -> tuple[Chosen, ...]:
        generation = self.cache.generation
        chosen = tuple(await self._decide(query))
        if generation == self.cache.generation:  # else the library changed meanwhile, and this answer may be of before
            size = ENTRY_BYTES + _CHOSEN_BYTES * len(chosen)
            self.cache.put(key, chosen, [item.ref.adapter_id for item in chosen], size)
        return chosen

    def _complete(self, query: RouteQuery) -> RouteQuery:
        top_k = self._defaults.top_k if query.top_k is None else query.top_k
        threshold = self._defaults.score_threshold if query.score_threshold is None else query.score_threshold
        if not query.query.strip() and not query.composition:
            raise InvalidArgument("query", "is empty", "send the text to route")
        if len(query.query) > MAX_QUERY_CHARACTERS:
            raise InvalidArgument("query", f"has {len(query.query):,} characters, over {MAX_QUERY_CHARACTERS:,}", "send its first part")
        if not 1 <= top_k <= MAX_TOP_K:
            raise InvalidArgument("top_k", f"{top_k} is outside 1..{MAX_TOP_K}", "ask for a few adapters, 3 by default")
        if not math.isfinite(threshold) or not -1 <= threshold <= 1:
            raise InvalidArgument("score_threshold", f"{threshold} is outside -1..1", "leave it out for the default")
        if not query.base_model:
            raise InvalidArgument("base_model", "is empty", "send the fingerprint that the executor's GetStatus shows")
        return dataclasses.replace(query, tenant=checked_tenant(query.tenant), top_k=top_k, score_threshold=threshold)

    async def _check_tenant_exists(self, tenant: str) -> None:
        if tenant in self._known_tenants:
            return
        if not await self._index.scroll(Scope(tenant=tenant, include_shared=False, states=("active", "retired", "purged")), "", 1):
            raise NotFound("tenant", tenant, "register an adapter for it first, or check the name")
        if len(self._known_tenants) >= 1_000_000:
            self._known_tenants = {DEFAULT_TENANT}
        self._known_tenants.add(tenant)

    def _key(self, query: RouteQuery) -> CacheKey:
        text = "\x00".join((query.query, str(query.score_threshold), *query.hints.labels, query.hints.task_id))
        assert query.top_k is not None
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return CacheKey(query.tenant, query.base_model, query.strategy, digest, query.top_k)

    def _embed(self, text: str) -> Vector:
        vector = self.embeddings.get(text)
        if vector is None:
            vector = self._embedder.embed(text)
            self.embeddings.put(text, vector, ENTRY_BYTES + vector.nbytes + 4 * len(text))
        return vector

    async def _decide(self, query: RouteQuery) -> list[Chosen]:
        assert query.top_k is not None
        assert query.score_threshold is not None
        check_strategy(query.strategy, query.hints)
        reach = Reach(tenant=query.tenant, base_model=query.base_model)
        vector = self._embed(query.query)
        found: dict[str, Candidate] = {}
        hinted = query.hints and query.strategy != "semantic"
        if query.strategy != "task":
            # Where the cosine alone ranks, no more is needed than is asked for.
            limit = self._defaults.candidates if hinted else query.top_k
            found |= {c.ref.adapter_id: c for c in await self._index.search(vector, reach, limit, with_records=bool(hinted))}
        if hinted:
            labelled = dataclasses.replace(reach, any_labels=query.hints.labels)
            candidates = await self._index.search(vector, labelled, self._defaults.candidates, with_records=True)
            found |= {c.ref.adapter_id: c for c in candidates}
        return choose(
            query.strategy,
            list(found.values()),
            query.hints,
            query.top_k,
            query.score_threshold,
            self._defaults.temperature,
            self._defaults.min_weight,
        )
