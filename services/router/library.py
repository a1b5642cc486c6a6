"""What a router is built on: where its records are, what of them routing reads, and where it searches."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from services.router.catalogue.port import Catalogue
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue
from services.router.catalogue.stamp import stamped
from services.router.search.memory_search import BYTES_AN_ADAPTER, MemorySearch
from services.router.search.port import VectorIndex
from services.router.settings import RouterSettings
from smoa.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:  # a router without a server needs no client
    from services.router.catalogue.catalogue_copy import CatalogueCopy
    from services.router.catalogue.qdrant_catalogue import QdrantCatalogue

SEARCHES: Final = ("auto", "memory", "qdrant")


class Library(NamedTuple):
    """Its parts. `near` is the catalogue itself, or the copy of it in this router's data folder."""

    catalogue: Catalogue
    near: Catalogue
    search: VectorIndex
    copy: CatalogueCopy | None = None

    async def whole(self) -> None:
        """Wait until routing knows all of it, at full speed."""
        if self.copy is not None:
            await self.copy.filled()
        if isinstance(self.search, MemorySearch):
            await self.search.loaded()

    async def close(self) -> None:
        """Release it, from the top down."""
        if self.copy is not None:
            await self.copy.close()
        await self.search.close()
        await self.catalogue.close()
        if self.near is not self.catalogue:
            await self.near.close()


async def open_library(settings: RouterSettings, embedder: str, dimension: int) -> Library:
    """The library that the settings name, made if it is not there. It loads on, and says when it is `whole`; a copy is to be started.

    Args:
        settings: The router's.
        embedder: What makes its vectors.
        dimension: How many numbers they have.

    Raises:
        InvalidArgument: an unknown value of a setting.
        FailedPrecondition: another process has the folder, the server's collections are another program's, or the library is not for this
            router (see `stamped`).
        Unavailable: the server is away, and nothing of it was copied before.
    """
    if settings.search not in SEARCHES:
        raise InvalidArgument("SMOA_ROUTER_SEARCH", f"{settings.search!r} is unknown", f"use one of {', '.join(SEARCHES)}")
    if settings.qdrant_url:
        return await _over_qdrant(settings, embedder, dimension)
    if settings.search == "qdrant":
        raise InvalidArgument("SMOA_ROUTER_SEARCH", "is qdrant, and no server is named", "set SMOA_QDRANT_URL, or leave it out")
    catalogue = SqliteCatalogue(settings.data_folder / "index", dimension)
    await stamped(catalogue, embedder, dimension)
    search = MemorySearch(catalogue, settings.label_cache_bytes)
    search.start()
    return Library(catalogue, catalogue, search)


async def open_catalogue(settings: RouterSettings, embedder: str, dimension: int) -> Catalogue:
    """The catalogue alone; raises what `open_library` does."""
    if not settings.qdrant_url:
        sqlite = SqliteCatalogue(settings.data_folder / "index", dimension)
        await stamped(sqlite, embedder, dimension)
        return sqlite
    catalogue = qdrant_catalogue(settings, dimension)
    await _readied(catalogue, settings, embedder)
    return catalogue


async def _readied(catalogue: QdrantCatalogue, settings: RouterSettings, embedder: str) -> str:
    """Make what is missing on the server; returns which library it holds."""
    await catalogue.prepare(**_options(settings))
    return (await stamped(catalogue, embedder, catalogue.dimension)).library_id


async def _over_qdrant(settings: RouterSettings, embedder: str, dimension: int) -> Library:
    from services.router.catalogue.catalogue_copy import CatalogueCopy
    from services.router.search.qdrant_search import QdrantSearch

    source = qdrant_catalogue(settings, dimension)
    folder = settings.data_folder / "copy"

    def meet() -> Coroutine[Any, Any, str]:
        return _readied(source, settings, embedder)

    in_memory, library_id = settings.search == "memory", None
    try:
        library_id = await meet()
        in_memory = in_memory or (settings.search == "auto" and await source.count() * BYTES_AN_ADAPTER <= settings.search_bytes)
    except Unavailable:
        if settings.search == "qdrant" or not folder.exists():
            raise
        in_memory = True
    if not in_memory:
        search = QdrantSearch(source)
        await search.prepare(**_options(settings))
        return Library(source, source, search)
    near = SqliteCatalogue(folder, dimension)
    copy = CatalogueCopy(source, near, meet)
    await copy.recall(library_id)
    memory = MemorySearch(near, settings.label_cache_bytes)
    memory.start()
    return Library(source, near, memory, copy)


def qdrant_catalogue(settings: RouterSettings, dimension: int) -> QdrantCatalogue:
    """The catalogue on the server that the settings name.

    Raises:
        InvalidArgument: an unknown write ordering.
    """
    from qdrant_client import AsyncQdrantClient
    from qdrant_client.models import WriteOrdering

    from services.router.catalogue.qdrant_catalogue import QdrantCatalogue
    from services.router.catalogue.qdrant_connection import SLOW_TIMEOUT_S, QdrantConnection

    orderings = {"strong": WriteOrdering.STRONG, "medium": WriteOrdering.MEDIUM}
    if settings.qdrant_write_ordering not in orderings:
        raise InvalidArgument(
            "SMOA_QDRANT_WRITE_ORDERING", f"{settings.qdrant_write_ordering!r} is unknown", f"use one of {', '.join(orderings)}"
        )
    client = AsyncQdrantClient(
        settings.qdrant_url,
        prefer_grpc=True,
        grpc_port=settings.qdrant_grpc_port,
        api_key=settings.qdrant_api_key or None,
        timeout=int(SLOW_TIMEOUT_S),
        check_compatibility=False,  # by REST, on a thread of its own, and only to warn
    )
    return QdrantCatalogue(QdrantConnection(client), dimension, settings.qdrant_prefix, orderings[settings.qdrant_write_ordering])


def _options(settings: RouterSettings) -> dict[str, int]:
    return {
        "replication_factor": settings.qdrant_replicas,
        "write_consistency_factor": settings.qdrant_write_consistency,
        "shard_number": settings.qdrant_shards,
    }
