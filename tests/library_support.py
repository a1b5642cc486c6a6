"""Libraries of every kind, as a router is built on them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from qdrant_client import AsyncQdrantClient

from services.router.catalogue.catalogue_copy import CatalogueCopy
from services.router.catalogue.qdrant_catalogue import QdrantCatalogue
from services.router.catalogue.qdrant_connection import QdrantConnection
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue
from services.router.catalogue.stamp import stamped
from services.router.library import Library
from services.router.search.memory_search import MemorySearch
from services.router.search.qdrant_search import QdrantSearch
from smoa.embedding import surface
from smoa.embedding.static import StaticEmbedder
from smoa.errors import Unavailable

DIMENSION: Final = StaticEmbedder().dimension + surface.DIMENSION
"""Of the vectors that routers make by default."""


async def sqlite_library(folder: Path, dimension: int) -> Library:
    """In SQLite, searched in memory; loaded."""
    catalogue = SqliteCatalogue(folder, dimension)
    search = MemorySearch(catalogue)
    await search.load()
    return Library(catalogue, catalogue, search)


async def qdrant_library(client: AsyncQdrantClient, dimension: int, prefix: str = "smoa") -> Library:
    """On a server, and searched there."""
    catalogue = QdrantCatalogue(QdrantConnection(client), dimension, prefix)
    await catalogue.prepare()
    search = QdrantSearch(catalogue)
    await search.prepare()
    return Library(catalogue, catalogue, search)


async def copied_library(client: AsyncQdrantClient, folder: Path, dimension: int, prefix: str = "smoa") -> Library:
    """On a server, searched in memory, over a copy that is whole; of a server that holds its library no more, as it was."""
    catalogue = QdrantCatalogue(QdrantConnection(client), dimension, prefix)

    async def ready() -> None:
        await catalogue.prepare()

    near = SqliteCatalogue(folder, dimension)
    copy = CatalogueCopy(catalogue, near, ready)
    if await copy.recall():
        with suppress(Unavailable):
            await copy.check_library()
    else:
        await ready()
        await copy.begin_with((await stamped(catalogue, "of tests", dimension)).library_id)
    search = MemorySearch(near)
    await search.load()
    copy.start(lambda _: None)
    await copy.filled()
    return Library(catalogue, near, search, copy)


def memory(library: Library) -> MemorySearch:
    """Its search, which is one in memory."""
    assert isinstance(library.search, MemorySearch)
    return library.search


def sqlite(library: Library) -> SqliteCatalogue:
    """What routing reads of it, which is in SQLite."""
    assert isinstance(library.near, SqliteCatalogue)
    return library.near
