"""A library that is routed over in this process: the router's own code, over its own index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.router_processes import BASE
from services.router.catalogue.compositions import Compositions
from services.router.catalogue.importing import Imported
from services.router.catalogue.records import AdapterRecord, Reach
from services.router.catalogue.registry import Registry
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue
from services.router.routing.cache import RoutingCache
from services.router.routing.query import Choice, RouteQuery, RoutingDefaults
from services.router.routing.router import Router
from services.router.routing.scoring import Hints
from services.router.routing.strategies.learned import Taught
from services.router.search.memory_search import MemorySearch
from smoa.adapter import new_adapter_id
from smoa.embedding.static import StaticEmbedder
from smoa.embedding.views import Views
from smoa.store import AdapterStore


@dataclass(frozen=True)
class Described:
    """An adapter of a library: what it is known by."""

    name: str
    examples: Sequence[str]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """A text, the places of the adapters that are right, and a tag that a caller might give."""

    text: str
    right: frozenset[int]
    tag: str = ""


@dataclass
class World:
    """A router over a library."""

    router: Router
    place_of: dict[str, int]
    embedder: Views = field(repr=False)

    async def choose(self, query: Query, strategy: str, top_k: int = 3, threshold: float | None = -1.0) -> Choice:
        """One decision. With a threshold of -1, there always is one."""
        hints = Hints(tags=(query.tag,)) if strategy in ("task", "hybrid+tag") else Hints()
        name = "hybrid" if strategy == "hybrid+tag" else strategy
        asked = RouteQuery(query=query.text, base_model=BASE, strategy=name, top_k=top_k, score_threshold=threshold, hints=hints)
        return (await self.router.route(asked)).choice

    def turned_out(self, choice: Choice, success: bool, user: bytes = b"") -> None:
        """What came of the first adapter of a learned choice; the outcome travels to the router at once."""
        taught = Taught(success, 1.0, choice.context, choice.expected[0], user)
        self.router.learned.observe("public", choice.ranked[0].adapter_id, taught)

    async def places(self, query: Query, strategy: str) -> list[int]:
        """Places of the adapters of a decision, best first."""
        return [self.place_of[item.ref.adapter_id] for item in (await self.choose(query, strategy)).chosen]


async def build(folder: Path, adapters: Sequence[Described], seed: int = 0) -> World:
    """Import a library, known by its examples alone. No caching, and no adapter dropped for a small weight: ranks are what is measured."""
    embedder = Views(StaticEmbedder())
    catalogue = SqliteCatalogue(folder / "index", embedder.dimension)
    search = MemorySearch(catalogue)
    defaults = RoutingDefaults(min_weight=0.0)
    router = Router(catalogue, search, embedder, RoutingCache(0), Compositions(catalogue), defaults, seed)
    registry = Registry(catalogue, AdapterStore(str(folder / "store")), embedder, lambda _: None)
    ids = [new_adapter_id() for _ in adapters]
    records = [
        AdapterRecord(
            adapter_id=adapter_id, version=1, digest=f"{place:064x}", tenant="public", name=one.name, kind="lora_xs", granularity="",
            specialization="task", base_model=BASE, rank=8, modules=("q_proj",), parameter_count=3840, file_bytes=9000, tags=one.tags,
            examples=tuple(one.examples),
        )
        for place, (adapter_id, one) in enumerate(zip(ids, adapters, strict=True))
    ]  # fmt: skip
    for start in range(0, len(records), 500):
        await registry.import_adapters("public", [Imported(record, None) for record in records[start : start + 500]], files_unchecked=True)
    await search.trained()
    router.judge.fits.want(Reach(tenant="public", base_model=BASE))
    await router.judge.fits.settled()
    return World(router, {adapter_id: place for place, adapter_id in enumerate(ids)}, embedder)
