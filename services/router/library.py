"""What a router is built on: where its records are, what of them routing reads, and where it searches."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from services.router.catalogue.port import STAMP_ID, Catalogue
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue, locked
from services.router.catalogue.stamp import checked_stamp, stamped
from services.router.search.memory_search import BYTES_AN_ADAPTER, MemorySearch
from services.router.search.port import VectorIndex
from services.router.settings import RouterSettings
from smoa.embedding.choose import open_embedder
from smoa.embedding.views import Views
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
    stamped_id: str = ""

    @property
    def library_id(self) -> str:
        """Which library it is: a copy of nothing may become one of another."""
        return self.stamped_id if self.copy is None else self.copy.library_id

    async def whole(self) -> None:
        """Wait until routing knows all of it, at full speed."""
        if self.copy is not None:
            await self.copy.filled()
            await asyncio.to_thread(_delete_other_copies, self.copy.folder)
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


async def embedder_of(settings: RouterSettings) -> Views:
    """The embedder that the settings name; raises what `open_embedder` does."""
    return Views(await open_embedder(settings.embedder, settings.embedder_model, settings.embedder_key, settings.embedder_prompt))


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
    async with AsyncExitStack() as stack:
        catalogue = SqliteCatalogue(settings.data_folder / "index", dimension)
        stack.push_async_callback(catalogue.close)
        stamp = await stamped(catalogue, embedder, dimension)
        stack.pop_all()
    search = MemorySearch(catalogue, settings.label_cache_bytes)
    search.start()
    return Library(catalogue, catalogue, search, stamped_id=stamp.library_id)


async def open_catalogue(settings: RouterSettings, dimension: int) -> Catalogue:
    """The catalogue alone, which has no stamp if it is new; raises what `open_library` does."""
    if not settings.qdrant_url:
        return SqliteCatalogue(settings.data_folder / "index", dimension)
    catalogue = qdrant_catalogue(settings, dimension)
    await catalogue.prepare(**_options(settings))
    return catalogue


async def _readied(catalogue: QdrantCatalogue, settings: RouterSettings, embedder: str) -> str:
    """Make what is missing on the server; returns which library it holds."""
    await catalogue.prepare(**_options(settings))
    return (await stamped(catalogue, embedder, catalogue.dimension)).library_id


async def _over_qdrant(settings: RouterSettings, embedder: str, dimension: int) -> Library:
    from services.router.search.qdrant_search import QdrantSearch

    async with AsyncExitStack() as stack:
        source = qdrant_catalogue(settings, dimension)
        stack.push_async_callback(source.close)
        library = None if settings.search == "qdrant" else await _copied(source, settings, embedder, stack)
        if library is None:
            library_id = await _readied(source, settings, embedder)
            await asyncio.to_thread(_delete_other_copies, _copies(settings) / "none")  # they would be older every day
            search = QdrantSearch(source)
            await search.prepare(**_options(settings))
            library = Library(source, source, search, stamped_id=library_id)
        stack.pop_all()
    return library


async def _copied(source: QdrantCatalogue, settings: RouterSettings, embedder: str, stack: AsyncExitStack) -> Library | None:
    """The library as a copy, or None of one that is too large for memory. What was copied before is of use while the server does not hold
    it; else a library is begun where there is none.
    """
    from services.router.catalogue.catalogue_copy import CatalogueCopy

    async def ready() -> None:
        await _readied(source, settings, embedder)

    near = SqliteCatalogue(_copy_folder(settings), source.dimension)
    stack.push_async_callback(near.close)
    copy = CatalogueCopy(source, near, ready)
    known = await copy.recall()
    if (copied_stamp := await near.get_document("stamp", STAMP_ID)) is not None:
        checked_stamp(copied_stamp, embedder, source.dimension)
    try:
        if known:
            await copy.check_library()
        await copy.begin_with(await _readied(source, settings, embedder))
        if settings.search == "auto" and await source.count() * BYTES_AN_ADAPTER > settings.search_bytes:
            await near.close()
            return None
    except Unavailable:
        if not known:
            raise
    memory = MemorySearch(near, settings.label_cache_bytes)
    memory.start()
    return Library(source, near, memory, copy)


def _copies(settings: RouterSettings) -> Path:
    return settings.data_folder / "copy"


def _copy_folder(settings: RouterSettings) -> Path:
    """The folder of the copy of what the settings name: each place has its own."""
    of = hashlib.blake2b(f"{settings.qdrant_url} {settings.qdrant_prefix}".encode(), digest_size=6).hexdigest()
    return _copies(settings) / of


def _delete_other_copies(mine: Path) -> None:
    """Those of other places, once this one is whole; not one that another process has."""
    for other in mine.parent.glob("*/"):
        if other == mine:
            continue
        if (lock := locked(other)) is not None:
            with lock:
                shutil.rmtree(other)


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
