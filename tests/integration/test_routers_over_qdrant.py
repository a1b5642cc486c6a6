"""Routers over a Qdrant server: which search they take, what they do while it is away or has lost its library, what others changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.router.catalogue.port import Document, Entry
from services.router.commands import router_group
from services.router.learning.ranker import builtin
from services.router.library import Library, open_library
from services.router.lifecycle_consumer import RANKER_ID
from services.router.search.memory_search import MemorySearch
from services.router.search.qdrant_search import QdrantSearch
from services.router.settings import RouterSettings
from smoa.errors import FailedPrecondition, InvalidArgument, Unavailable
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.contract.test_library import DIMENSION, PUBLIC, record, vector
from tests.integration.router_support import KNEES, MONEY, RouterWorld, refused, running_router
from tests.integration.test_catalogue_copy import _copy_of
from tests.integration.test_import import imported
from tests.kafka_support import until
from tests.library_support import DIMENSION as BOTH_VIEWS
from tests.library_support import qdrant_library
from tests.qdrant_support import HOME, QdrantServer, client_of, drop, fresh_prefix, settings_of


async def test_a_copy_is_of_one_place_one_embedder_and_one_way_to_search(own_server: QdrantServer, tmp_path: Path) -> None:
    """What was copied is not served for what the settings name now, when the server cannot be asked."""
    url = (own_server.url, own_server.grpc_port)
    plain = RouterSettings(data_folder=tmp_path / "router", **settings_of(*url, "here"))
    first = await open_library(plain, "of tests", DIMENSION)
    assert first.copy is not None
    first.copy.start(lambda _: None)
    await first.catalogue.write([Entry(record(), vector(n)) for n in range(10)], together=False)
    await first.whole()
    await first.close()
    own_server.kill()
    again = await open_library(plain, "of tests", DIMENSION)
    await again.whole()
    assert len(await again.search.search(vector(1), PUBLIC, 99)) == 10
    await again.close()
    with pytest.raises(
        FailedPrecondition, match=r"^index: its vectors are of 'of tests' with 16 numbers, this router has 'another' with 16"
    ):
        await open_library(plain, "another", DIMENSION)
    own_server.start()

    async def asked() -> bool:  # auto: it does not fit any more; a server that is slow to answer is away, and the copy serves
        library = await open_library(replace(plain, search_bytes=1), "of tests", DIMENSION)
        await library.close()
        return library.copy is None

    await until("the server being asked", 30, asked)
    own_server.kill()
    with pytest.raises(Unavailable, match=r"^index: the Qdrant server did not answer"):
        await open_library(plain, "of tests", DIMENSION)


async def test_a_copy_is_there_until_another_place_has_one(own_server: QdrantServer, tmp_path: Path) -> None:
    """A wrong address costs nothing; and what is searched on the server is written to as ever."""
    plain = RouterSettings(data_folder=tmp_path / "router", **settings_of(own_server.url, own_server.grpc_port, "here"))
    there = replace(plain, qdrant_prefix="there")

    async def started(settings: RouterSettings) -> Library:
        library = await open_library(settings, "of tests", DIMENSION)
        _copy_of(library).start(lambda _: None)
        await library.whole()
        return library

    first = await started(plain)
    await first.catalogue.write([Entry(made := record(), vector(1))])
    await first.close()
    own_server.kill()
    with pytest.raises(Unavailable):
        await open_library(there, "of tests", DIMENSION)
    again = await open_library(plain, "of tests", DIMENSION)
    assert isinstance(again.search, MemorySearch)
    await again.search.loaded()
    assert [found.ref for found in await again.search.search(vector(1), PUBLIC, 9)] == [made.ref]
    await again.close()
    own_server.start()
    large = await open_library(replace(there, search_bytes=1), "of tests", DIMENSION)
    await large.close()
    folders = tmp_path / "router" / "copy"
    assert len(list(folders.iterdir())) == 2
    await (await started(there)).close()
    assert len(list(folders.iterdir())) == 1
    filled = await open_library(there, "of tests", DIMENSION)
    await filled.catalogue.write([Entry(record(), vector(n)) for n in range(9)], together=False)
    await filled.close()
    library = await open_library(replace(there, search_bytes=1), "of tests", DIMENSION)
    assert isinstance(library.search, QdrantSearch)
    await library.catalogue.write([Entry(late := record(), vector(1))])
    assert late.ref in [found.ref for found in await library.search.search(vector(1), PUBLIC, 9)]
    await library.close()
    assert list(folders.iterdir()) == []


async def test_the_search_that_fits_is_taken(qdrant: tuple[str, int], tmp_path: Path) -> None:
    client, prefix = client_of(*qdrant), fresh_prefix()
    plain = RouterSettings(data_folder=tmp_path / "router", **settings_of(*qdrant, prefix))
    filled = await qdrant_library(client, DIMENSION, prefix)
    await filled.catalogue.write([Entry(record(), vector(n)) for n in range(10)], together=False)
    kinds: list[type] = []
    for search, most in (("auto", 4000), ("auto", 5000), ("qdrant", 5000), ("memory", 1)):
        library = await open_library(replace(plain, search=search, search_bytes=most), "of tests", DIMENSION)
        kinds.append(type(library.search))
        await library.close()
    assert kinds == [QdrantSearch, MemorySearch, QdrantSearch, MemorySearch]
    for changes, message in (
        ({"search": "fast"}, r"^SMOA_ROUTER_SEARCH: 'fast' is unknown; use one of auto, memory, qdrant$"),
        ({"search": "qdrant", "qdrant_url": ""}, r"^SMOA_ROUTER_SEARCH: is qdrant, and no server is named; set SMOA_QDRANT_URL"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            await open_library(replace(plain, **changes), "of tests", DIMENSION)  # type: ignore[arg-type]
    await drop(client, prefix)
    await filled.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[QdrantServer]:
    """One that a test may kill."""
    if not HOME:
        pytest.skip("SMOA_TEST_QDRANT_HOME is not set: it names the folder whose `serve` starts a server")
    server = QdrantServer(tmp_path / "qdrant")
    server.start()
    yield server
    server.stop()


async def _is_ready(world: RouterWorld) -> bool:
    async with grpc.aio.insecure_channel(world.address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_routing_goes_on_while_the_server_is_away_also_after_a_restart(own_server: QdrantServer, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "qdrant_url": own_server.url,
        "qdrant_grpc_port": own_server.grpc_port,
        "store": str(tmp_path / "store"),
        "check_interval_s": 0.05,
    }
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(running_router(tmp_path / "a", **settings))
        knees, money = await world.register(KNEES), await world.register(MONEY, tenant="acme")
        child = registry_pb2.CompositionChild(adapter_id=knees.adapter_id)
        tree = registry_pb2.CompositionNode(strategy=common.COMPOSITION_STRATEGY_PARALLEL, children=[child])
        await world.client.compose("alone", tree)
        own_server.kill()
        decision = await world.client.route(KNEES[0], base_model="base-a")
        assert [one.adapter_id for one in decision.adapters] == [knees.adapter_id]
        decision = await world.client.route(MONEY[0], base_model="base-a", tenant="acme")
        assert [one.adapter_id for one in decision.adapters] == [money.adapter_id]
        composed = await world.client.route(KNEES[0], base_model="base-a", composition="alone")
        assert [one.adapter_id for one in composed.adapters] == [knees.adapter_id]
        code, message, _ = await refused(world.client.retire("public", knees.adapter_id, "by the test"))
        assert code == "UNAVAILABLE"
        assert message.startswith("index: the Qdrant server")
        assert await _is_ready(world)
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(running_router(tmp_path / "a", **settings))
        assert await _is_ready(world), "it knows the library from before"
        decision = await world.client.route(KNEES[1], base_model="base-a")
        assert [one.adapter_id for one in decision.adapters] == [knees.adapter_id]
        with pytest.raises(Unavailable, match=r"^index: the Qdrant server did not answer"):
            await stack.enter_async_context(running_router(tmp_path / "b", **settings))
        own_server.start()

        async def taken() -> bool:
            try:
                await world.client.retire("public", knees.adapter_id, "by the test")
            except grpc.aio.AioRpcError as error:
                return error.code() != grpc.StatusCode.UNAVAILABLE  # what else it is, is seen below
            return True

        await until("writes being taken again", 20, taken)
        assert not (await world.client.route(KNEES[1], base_model="base-a")).adapters
        other = await stack.enter_async_context(running_router(tmp_path / "b", **settings))
        assert not (await other.client.route(KNEES[1], base_model="base-a")).adapters


async def test_a_cached_answer_of_what_another_router_changed_is_dropped_without_any_message(
    qdrant: tuple[str, int], tmp_path: Path
) -> None:
    """There is no Kafka here at all; and an import, of which no topic tells, shows too."""
    prefix = fresh_prefix()
    settings: dict[str, Any] = {**settings_of(*qdrant, prefix), "store": str(tmp_path / "store")}
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(running_router(tmp_path / name, **settings)) for name in "ab"]
        knees = await a.register(KNEES)

        async def answer() -> list[str]:
            return [one.adapter_id for one in (await b.client.route(KNEES[0], base_model="base-a")).adapters]

        async def arrived() -> bool:
            return await answer() == [knees.adapter_id]

        await until("what was registered", 10, arrived)

        async def cached() -> bool:  # a fit that comes meanwhile drops it once
            return (await b.client.route(KNEES[0], base_model="base-a")).cached

        await until("an answer in the cache", 10, cached)
        examples = [KNEES[0], *(f"{KNEES[0]} {number}" for number in range(4))]
        better = imported(7, name="better")
        entry = registry_pb2.ImportedAdapter(adapter=better.adapter, examples=examples)
        async for _ in a.client.import_adapters([[entry]], files_unchecked=True):
            pass

        async def taken_in() -> bool:
            return better.adapter.adapter_id in await answer()

        await until("what was imported", 10, taken_in)
    client = client_of(*qdrant)
    await drop(client, prefix)
    await client.close()


async def test_a_router_with_no_copy_yet_decides_with_the_ranker_that_the_library_keeps(qdrant: tuple[str, int], tmp_path: Path) -> None:
    prefix = fresh_prefix()
    settings: dict[str, Any] = {**settings_of(*qdrant, prefix), "store": str(tmp_path / "store")}
    client = client_of(*qdrant)
    library = await qdrant_library(client, BOTH_VIEWS, prefix)
    artefact = replace(builtin(), version="by hand").to_bytes().decode()
    await library.catalogue.write_document("ranker", Document(RANKER_ID, "", {"artefact": artefact}))
    async with running_router(tmp_path, **settings) as world:
        await world.register(KNEES)
        decision = await world.client.route(KNEES[0], base_model="base-a", strategy=common.ROUTING_STRATEGY_LEARNED)
        assert decision.ranker == "by hand"
    await drop(client, prefix)
    await library.close()


async def test_a_library_that_is_made_again_from_the_store_is_the_same_one(qdrant: tuple[str, int], tmp_path: Path) -> None:
    """A router with a copy goes on by it meanwhile, and by the server afterwards."""
    client, prefix = client_of(*qdrant), fresh_prefix()
    settings: dict[str, Any] = {**settings_of(*qdrant, prefix), "store": str(tmp_path / "store")}
    async with running_router(tmp_path, **settings) as world:
        knees = await world.register(KNEES)
        await drop(client, prefix)

        async def refused_now() -> bool:
            try:
                await world.client.retire("public", knees.adapter_id, "by the test")
            except grpc.aio.AioRpcError as error:
                return error.code() == grpc.StatusCode.UNAVAILABLE and "holds no library" in str(error.details())
            return False

        await until("writes being refused", 10, refused_now)
        assert [one.adapter_id for one in (await world.client.route(KNEES[0], base_model="base-a")).adapters] == [knees.adapter_id]
        environment = {"SMOA_QDRANT_PREFIX": prefix, "SMOA_QDRANT_GRPC_PORT": str(qdrant[1])}
        arguments = ["rebuild", "--qdrant", qdrant[0], "--store", str(tmp_path / "store"), "--json"]
        done = await asyncio.to_thread(CliRunner(env=environment).invoke, router_group, arguments, catch_exceptions=False)
        assert json.loads(done.stdout)["writes"] >= 1

        async def taken() -> bool:
            try:
                return (await world.client.pin("public", knees.adapter_id)).pinned
            except grpc.aio.AioRpcError as error:
                return error.code() != grpc.StatusCode.UNAVAILABLE

        await until("writes being taken again", 10, taken)
        assert [one.adapter_id for one in (await world.client.route(KNEES[0], base_model="base-a")).adapters] == [knees.adapter_id]
    await drop(client, prefix)
    await client.close()
