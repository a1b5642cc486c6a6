"""Memory search over a catalogue on a Qdrant server: the copy is as the server is, and routing goes on while that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from qdrant_client import AsyncQdrantClient, models

from services.router.catalogue.catalogue_copy import CatalogueCopy
from services.router.catalogue.port import Document, Entry, point_id
from services.router.catalogue.record_file import Take
from services.router.catalogue.records import AdapterRecord
from services.router.library import Library, open_library
from services.router.search.memory_search import MemorySearch
from services.router.search.qdrant_search import QdrantSearch
from services.router.settings import RouterSettings
from smoa.adapter import new_adapter_id
from smoa.errors import InvalidArgument, Unavailable
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.contract.test_library import DIMENSION, PUBLIC, record, vector
from tests.integration.router_support import KNEES, MONEY, RouterWorld, refused, running_router
from tests.integration.test_import import imported
from tests.kafka_support import until
from tests.library_support import copied_library, qdrant_library, sqlite
from tests.qdrant_support import HOME, QdrantServer, client_of, drop, fresh_prefix, settings_of

Open = Callable[[str], Awaitable[Library]]


@pytest.fixture
async def opened(qdrant: tuple[str, int], tmp_path: Path) -> AsyncIterator[tuple[Open, AsyncQdrantClient, str]]:
    """Opens copies of one library, each in a folder of its own and with a client of its own."""
    client, prefix, made = client_of(*qdrant), fresh_prefix(), list[Library]()

    async def library(folder: str) -> Library:
        made.append(await copied_library(client_of(*qdrant), tmp_path / folder, DIMENSION, prefix))
        return made[-1]

    yield library, client, prefix
    for one in made:
        await one.close()
    await drop(client, prefix)
    await client.close()


async def _near(library: Library, adapter_id: str) -> AdapterRecord | None:
    found = await library.near.get(adapter_id)
    return None if found is None else found[0]


def _copy_of(library: Library) -> CatalogueCopy:
    assert library.copy is not None
    return library.copy


async def test_what_one_router_writes_is_in_the_others_copy_soon_and_in_its_own_at_once(
    opened: tuple[Open, AsyncQdrantClient, str],
) -> None:
    one, other = await opened[0]("one"), await opened[0]("other")
    made = record(tags=("a",))
    await one.catalogue.write([Entry(made, vector(1), vector(1)[None])])
    assert [found.ref for found in await one.search.search(vector(1), PUBLIC, 5)] == [made.ref]
    assert made.adapter_id in await one.near.prototypes([made.adapter_id])

    async def there() -> bool:
        return [found.ref for found in await other.search.search(vector(1), PUBLIC, 5)] == [made.ref]

    await until("the other's copy", 10, there)
    mine, copied = await _near(one, made.adapter_id), await _near(other, made.adapter_id)
    assert mine is not None
    assert copied is not None
    assert replace(mine, last_writes=()) == replace(copied, last_writes=())
    assert made.adapter_id in await other.near.prototypes([made.adapter_id])
    written = await _near(other, made.adapter_id)
    assert written is not None
    await other.catalogue.write([Entry(replace(written, state="retired"), vector(1))])
    assert await other.search.search(vector(1), PUBLIC, 5) == []
    composition = Document(new_adapter_id(), "public", {"n": 1})
    await one.catalogue.write_document("composition", composition)

    async def retired_and_composed() -> bool:
        composed = await other.near.get_document("composition", composition.document_id)
        return composed is not None and await one.search.search(vector(1), PUBLIC, 5) == []

    await until("both", 10, retired_and_composed)
    composed = await other.catalogue.get_document("composition", composition.document_id)
    assert composed is not None
    await other.catalogue.delete_document("composition", composed)

    async def gone() -> bool:
        return await one.near.get_document("composition", composition.document_id) is None

    await until("the deletion", 10, gone)


async def test_a_change_of_several_is_copied_from_whoever_finished_it(opened: tuple[Open, AsyncQdrantClient, str]) -> None:
    one, other = await opened[0]("one"), await opened[0]("other")
    parents, child = [record(), record()], record()
    await one.catalogue.write([Entry(parent, vector(n)) for n, parent in enumerate(parents)])
    there = [await _near(one, parent.adapter_id) for parent in parents]
    await one.catalogue.write(
        [Entry(child, vector(5)), *(Entry(replace(parent, state="retired"), vector(n)) for n, parent in enumerate(there) if parent)]
    )

    async def merged() -> bool:
        return [found.ref for found in await other.search.search(vector(5), PUBLIC, 5)] == [child.ref]

    await until("the merge", 10, merged)
    copied = [await _near(other, one.adapter_id) for one in (child, *parents)]
    assert [one and one.state for one in copied] == ["active", "retired", "retired"]


async def test_a_router_that_starts_again_reads_what_changed(opened: tuple[Open, AsyncQdrantClient, str], tmp_path: Path) -> None:
    library = await opened[0]("one")
    made = [record(name=f"n{number}") for number in range(700)]
    await library.catalogue.write([Entry(one, vector(n)) for n, one in enumerate(made)], together=False)
    late = await opened[0]("late")
    assert _copy_of(late).copied == 700
    await late.close()
    await asyncio.sleep(0)
    there = await _near(library, made[3].adapter_id)
    assert there is not None
    await library.catalogue.write([Entry(replace(there, name="renamed"), vector(3))])
    again = await opened[0]("late")

    async def renamed() -> bool:
        found = await _near(again, made[3].adapter_id)
        return found is not None and found.name == "renamed"

    await until("what changed meanwhile", 10, renamed)
    assert _copy_of(again).copied == 1
    assert len(await again.search.search(vector(1), PUBLIC, 1000)) == 700


async def test_comparing_mends_what_no_look_would_find(opened: tuple[Open, AsyncQdrantClient, str]) -> None:
    """A writer whose clock is days behind, a snapshot that was restored: one adapter older than here, and one that never was."""
    make, client, prefix = opened
    library = await make("one")
    late, back, lost, same = (record(name=name) for name in ("late", "back", "lost", "same"))
    await library.catalogue.write([Entry(one, vector(n)) for n, one in enumerate((late, back, lost, same))])
    collection = f"{prefix}_adapters"
    await library.catalogue.upsert([(replace(late, revision=7, name="of another clock"), vector(0))])  # by a router that is not this one:
    await sqlite(library).put([Entry(late, vector(0))], Take.ALL)
    await client.set_payload(collection, {"written_at_us": 1}, [point_id(late.adapter_id)], wait=True)
    await client.set_payload(collection, {"revision": 0}, [point_id(back.adapter_id)], wait=True)
    await client.delete(collection, models.PointIdsList(points=[point_id(lost.adapter_id)]), wait=True)
    heard: list[str] = []
    _copy_of(library)._changed = lambda records: heard.extend(one.name for one in records)
    await _copy_of(library).compare()
    assert [(await _near(library, one.adapter_id) or late).name for one in (late, back, same)] == ["of another clock", "back", "same"]
    assert await library.near.get(lost.adapter_id) is None
    assert {found.ref.adapter_id for found in await library.search.search(vector(1), PUBLIC, 9)} == {
        late.adapter_id,
        back.adapter_id,
        same.adapter_id,
    }
    assert [(await _near(library, one.adapter_id) or late).revision for one in (late, back, same)] == [7, 0, 1]
    assert sorted(heard) == ["lost", "of another clock"]


async def test_another_library_of_the_same_name_is_copied_from_the_start(opened: tuple[Open, AsyncQdrantClient, str]) -> None:
    make, client, prefix = opened
    library, old = await make("one"), record(name="old")
    await library.catalogue.write([Entry(old, vector(1))])
    composition = Document(new_adapter_id(), "public", {"n": 1})
    await library.catalogue.write_document("composition", composition)
    await library.close()
    await drop(client, prefix)
    new = record(name="new")
    await (await make("two")).catalogue.write([Entry(new, vector(2))])
    again = await make("one")
    assert {found.ref for found in await again.search.search(vector(1), PUBLIC, 9)} == {new.ref}
    assert await again.near.get(old.adapter_id) is None
    assert await again.near.get_document("composition", composition.document_id) is None


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
        assert (await b.client.route(KNEES[0], base_model="base-a")).cached
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
