"""An index that cannot be reached: refused at once, not ready, cached answers go on, and all is well when it is back."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from qdrant_client import AsyncQdrantClient

from services.router.app import build
from services.router.catalogue.qdrant_catalogue import QdrantCatalogue
from services.router.catalogue.qdrant_connection import QdrantConnection
from services.router.catalogue.records import Reach
from services.router.library import Library
from services.router.search.qdrant_search import QdrantSearch
from services.router.settings import RouterSettings
from smoa.client import SmoaClient
from smoa.errors import Unavailable
from smoa.rpc import LIVE
from smoa.store import AdapterStore
from tests.contract.test_library import vector
from tests.integration.router_support import KNEES, adapter_file, refused
from tests.kafka_support import until
from tests.library_support import DIMENSION, qdrant_library, sqlite_library

REACH = Reach(tenant="public", base_model="base-a")


class Leaving:
    """A part of a library that is away when a switch says so."""

    def __init__(self, part: Any, switch: list[bool]) -> None:
        self._part, self._switch = part, switch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if not self._switch[0] or name in ("close", "in_training"):
            return found

        async def gone(*_: object, **__: object) -> None:
            raise Unavailable("index: the Qdrant server is away; check SMOA_QDRANT_URL")

        return gone


async def test_without_its_index_a_router_gives_cached_answers_and_is_not_ready_until_it_is_back(tmp_path: Path) -> None:
    away, whole = [False], await sqlite_library(tmp_path / "index", DIMENSION)
    catalogue: Any = Leaving(whole.catalogue, away)
    search: Any = Leaving(whole.search, away)
    library = Library(catalogue, catalogue, search)
    async with AsyncExitStack() as stack:
        settings = RouterSettings(
            address="127.0.0.1:0",
            drain_s=0,
            data_folder=tmp_path,
            store=str(tmp_path / "store"),
            kafka_bootstrap="127.0.0.1:1",
            check_interval_s=0.05,
        )
        server = await build(settings, stack, library)
        await server.ready()
        client = await stack.enter_async_context(SmoaClient(router=f"127.0.0.1:{server.port}"))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        health = health_pb2_grpc.HealthStub(channel)

        async def ready() -> bool:
            alive = await health.Check(health_pb2.HealthCheckRequest(service=LIVE), timeout=5)
            assert alive.status == health_pb2.HealthCheckResponse.SERVING, "it would be restarted for nothing"
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        async def not_ready() -> bool:
            return not await ready()

        await client.register(await AdapterStore(settings.store).put(adapter_file()), KNEES)
        asked = await client.route(KNEES[0], base_model="base-a")
        assert asked.adapters
        assert await ready()

        away[0] = True
        await until("readiness going off", 10, not_ready)
        cached = await client.route(KNEES[0], base_model="base-a")
        assert cached.cached
        assert cached.adapters == asked.adapters
        code, message, _ = await refused(client.route("another question", base_model="base-a"))
        assert (code, message) == ("UNAVAILABLE", "index: the Qdrant server is away; check SMOA_QDRANT_URL")

        away[0] = False
        await until("readiness coming back", 10, ready)
        assert (await client.route(KNEES[1], base_model="base-a")).adapters


@pytest.mark.parametrize("prefer_grpc", [False, True])
async def test_a_server_that_is_not_there_is_said_to_be_at_once(prefer_grpc: bool) -> None:
    client = AsyncQdrantClient("http://127.0.0.1:1", prefer_grpc=prefer_grpc, grpc_port=1, check_compatibility=False)
    catalogue = QdrantCatalogue(QdrantConnection(client), 16)
    index = QdrantSearch(catalogue)
    with pytest.raises(Unavailable, match=r"^index: the Qdrant server did not answer"):
        await index.search(vector(1), REACH, 3)
    with pytest.raises(Unavailable, match=r"^index: the Qdrant server is away"):
        await index.search(vector(1), REACH, 3)
    with pytest.raises(Unavailable):
        await catalogue.check()
    await catalogue.close()


async def test_a_server_that_hangs_is_waited_for_once() -> None:
    held: list[asyncio.StreamWriter] = []

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    hanging = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = hanging.sockets[0].getsockname()[1]
    connection = QdrantConnection(AsyncQdrantClient(f"http://127.0.0.1:{port}", check_compatibility=False), timeout_s=0.3)
    catalogue = QdrantCatalogue(connection, 16)
    index = QdrantSearch(catalogue)
    with pytest.raises(Unavailable, match="did not answer"):
        await index.search(vector(1), REACH, 3)
    started = time.monotonic()
    for _ in range(20):
        with pytest.raises(Unavailable, match="is away"):
            await index.search(vector(1), REACH, 3)
    assert time.monotonic() - started < 0.3
    await catalogue.close()
    for writer in held:
        writer.close()
    hanging.close()


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
async def test_a_server_without_the_collection_is_not_ready() -> None:
    client = AsyncQdrantClient(":memory:")
    catalogue = (await qdrant_library(client, 16)).catalogue
    await catalogue.check()
    await client.delete_collection("smoa_adapters")
    with pytest.raises(Unavailable, match=r"^index: the Qdrant server has no collection 'smoa_adapters' \(restore it, or restart"):
        await catalogue.check()
    await catalogue.close()


@pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
@pytest.mark.parametrize(("code", "away"), [(grpc.StatusCode.INVALID_ARGUMENT, False), (grpc.StatusCode.UNAVAILABLE, True)])
async def test_only_a_server_that_does_not_answer_is_away(monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode, away: bool) -> None:
    client = AsyncQdrantClient(":memory:")
    library = await qdrant_library(client, 16)
    catalogue, index = library.catalogue, library.search

    async def refuse(*_: object, **__: object) -> None:
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())

    with monkeypatch.context() as patched:
        patched.setattr(client, "query_points", refuse)
        with pytest.raises(Unavailable):
            await index.search(vector(1), REACH, 3)
    if away:
        with pytest.raises(Unavailable, match="is away"):
            await index.search(vector(1), REACH, 3)
    else:
        assert await index.search(vector(1), REACH, 3) == []
    await catalogue.close()
