"""Two routers over one library on a Qdrant server: whatever they do at once, no acknowledged change is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from qdrant_client import AsyncQdrantClient, models

from services.router.catalogue import qdrant_changes
from services.router.catalogue.port import DOCUMENT_KINDS, Conflict, Entry, point_id
from services.router.catalogue.qdrant_catalogue import KEYWORDS, QdrantCatalogue
from services.router.catalogue.qdrant_connection import QdrantConnection
from services.router.catalogue.records import AdapterRecord, Scope
from services.router.catalogue.retrying import until_taken
from services.router.routing.canaries import FIRST_QUERIES
from services.router.search.qdrant_search import QdrantSearch
from smoa.adapter import new_adapter_id
from smoa.errors import FailedPrecondition
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.contract.test_library import DIMENSION, PUBLIC, record, vector
from tests.integration.router_support import KNEES, RouterWorld, adapter_file, running_router
from tests.qdrant_support import client_of, drop, fresh_prefix, settings_of

Open = Callable[[], Awaitable[QdrantCatalogue]]


@pytest.fixture
async def library(qdrant: tuple[str, int]) -> AsyncIterator[tuple[AsyncQdrantClient, str]]:
    """A client of the server, and a prefix of its own."""
    client, prefix = client_of(*qdrant), fresh_prefix()
    yield client, prefix
    await drop(client, prefix)
    await client.close()


@pytest.fixture
async def opened(qdrant: tuple[str, int], library: tuple[AsyncQdrantClient, str]) -> AsyncIterator[Open]:
    """Opens the library once more, with a client of its own."""
    catalogues: list[QdrantCatalogue] = []

    async def made() -> QdrantCatalogue:
        catalogues.append(QdrantCatalogue(QdrantConnection(client_of(*qdrant)), DIMENSION, library[1]))
        await catalogues[-1].prepare()
        return catalogues[-1]

    yield made
    for catalogue in catalogues:
        await catalogue.close()


@pytest.fixture
async def pair(qdrant: tuple[str, int], library: tuple[AsyncQdrantClient, str], tmp_path: Path) -> AsyncIterator[list[RouterWorld]]:
    """Two routers over one library."""
    settings = {**settings_of(*qdrant, library[1]), "store": str(tmp_path / "store")}
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running_router(tmp_path / name, **settings)) for name in "ab"]


async def _registered(world: RouterWorld, count: int) -> list[str]:
    digests = [await world.store.put(adapter_file(name=f"n{number}")) for number in range(count)]
    made = [await world.client.register(digest, [f"{text} {number}" for text in KNEES]) for number, digest in enumerate(digests)]
    return [adapter.adapter_id for adapter in made]


async def _update(world: RouterWorld, adapter_id: str, **changes: Any) -> None:
    request = registry_pb2.UpdateAdapterRequest(tenant="public", adapter_id=adapter_id, **changes)
    await world.client.registry.UpdateAdapter(request, timeout=60)


async def _read(catalogue: QdrantCatalogue, adapter_id: str) -> AdapterRecord:
    found = await catalogue.get(adapter_id)
    assert found is not None
    return found[0]


async def test_what_two_change_of_an_adapter_at_once_is_all_kept(pair: list[RouterWorld]) -> None:
    a, b = pair
    ids = await _registered(a, 60)
    tags = [_update(a, one, tags=["kept"], replace_tags=True) for one in ids]
    await asyncio.gather(*tags, *(_update(b, one, name=f"renamed-{one}") for one in ids))
    shown = [await world.client.get(one) for one in ids for world in pair]
    assert [(list(one.tags), one.name) for one in shown] == [(["kept"], f"renamed-{one.adapter_id}") for one in shown]


async def test_what_is_retired_by_one_and_pinned_by_the_other_is_both(pair: list[RouterWorld]) -> None:
    a, b = pair
    ids = await _registered(a, 30)
    await asyncio.gather(*(a.client.retire("public", one, "why") for one in ids), *(b.client.pin("public", one) for one in ids))
    shown = [await b.client.get(one) for one in ids]
    assert [(one.state, one.pinned) for one in shown] == [(common.ADAPTER_STATE_RETIRED, True)] * 30


async def test_every_increment_of_four_writers_is_counted(opened: Open) -> None:
    catalogues, made = [await opened() for _ in range(4)], record(parameter_count=0)
    await catalogues[0].write([Entry(made, vector(1))])

    async def increment(catalogue: QdrantCatalogue) -> None:
        there = await _read(catalogue, made.adapter_id)
        await catalogue.write([Entry(replace(there, parameter_count=there.parameter_count + 1), vector(1))])

    async def many(catalogue: QdrantCatalogue) -> None:
        for _ in range(25):
            await until_taken(lambda: increment(catalogue))

    await asyncio.gather(*(many(catalogue) for catalogue in catalogues))
    there = await _read(catalogues[0], made.adapter_id)
    assert (there.parameter_count, there.revision) == (100, 101)


async def test_changes_of_several_that_cross_are_done_one_after_the_other(opened: Open) -> None:
    """Each moves one unit from an adapter to another: whatever crosses, none is lost or made."""
    catalogues = [await opened() for _ in range(3)]
    ids = [record(parameter_count=10) for _ in range(4)]
    await catalogues[0].write([Entry(one, vector(n)) for n, one in enumerate(ids)])

    async def move(catalogue: QdrantCatalogue, source: int, target: int) -> None:
        first, second = [await _read(catalogue, ids[one].adapter_id) for one in (source, target)]
        changed = replace(first, parameter_count=first.parameter_count - 1), replace(second, parameter_count=second.parameter_count + 1)
        await catalogue.write([Entry(changed[0], vector(source)), Entry(changed[1], vector(target))])

    async def many(number: int) -> None:
        for turn in range(8):
            source, target = (number + turn) % 4, (number + 2 * turn + 1) % 4
            if source != target:
                await until_taken(lambda source=source, target=target: move(catalogues[number], source, target))  # type: ignore[misc]

    await asyncio.gather(*(many(number) for number in range(3)))
    assert sum([(await _read(catalogues[1], one.adapter_id)).parameter_count for one in ids]) == 40


class _Died(Exception):
    """As kill -9 of the router between two of its calls."""


CALLS = ("upsert", "set_payload", "retrieve", "delete")


@pytest.mark.parametrize("survives", range(14))
async def test_a_router_that_dies_in_a_change_leaves_all_or_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch, survives: int) -> None:
    """`survives`: calls to the server that the router makes before it dies."""
    monkeypatch.setattr(qdrant_changes, "CALLED_OFF_AFTER_S", 0.0)
    dying, other = await opened(), await opened()
    parents, child = [record(), record()], record()
    await other.write([Entry(one, vector(n)) for n, one in enumerate(parents)])
    retired = [replace(await _read(other, one.adapter_id), state="retired") for one in parents]
    left = [survives]

    def counted(name: str) -> Callable[..., Awaitable[Any]]:
        plain = getattr(dying.connection.client, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise _Died
            return await plain(*arguments, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(dying.connection.client, name, counted(name))
    done = True
    try:
        await dying.write([Entry(child, vector(3)), *(Entry(one, vector(n)) for n, one in enumerate(retired))])
    except _Died:
        done = False
    await other.check()
    there = await other.get(child.adapter_id)
    states = [(await _read(other, one.adapter_id)).state for one in parents]
    assert (there is None, states) in ((True, ["active", "active"]), (False, ["retired", "retired"]))
    assert not done or there is not None, "it was acknowledged"
    for one in parents:  # nobody is kept from changing them
        await until_taken(lambda one=one: _renamed(other, one.adapter_id))  # type: ignore[misc]
    assert len(await other.scroll(Scope(tenant="public", states=("active", "retired")), "", 10)) == (2 if there is None else 3)
    assert (await other.connection.client.count(f"{other.prefix}_changes")).count == 0


async def _renamed(catalogue: QdrantCatalogue, adapter_id: str) -> None:
    await catalogue.write([Entry(replace(await _read(catalogue, adapter_id), name="renamed"), vector(1))])


async def test_a_change_that_another_router_finished_first_is_done(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has committed it, and is slow to look whether it has."""
    slow, other = await opened(), await opened()
    child, parent = record(), record()
    await other.write([Entry(parent, vector(1))])
    there, payloads = await _read(slow, parent.adapter_id), slow._changes._changes.payloads

    async def late(point_ids: Any, fields: Any) -> Any:
        await other.check()
        return await payloads(point_ids, fields)

    monkeypatch.setattr(slow._changes._changes, "payloads", late)
    await slow.write([Entry(child, vector(2)), Entry(replace(there, state="retired"), vector(1))])
    assert (await _read(other, child.adapter_id)).revision == 1
    assert (await _read(other, parent.adapter_id)).state == "retired"


async def test_a_placeholder_of_a_change_that_is_forgotten_keeps_nobody_away(opened: Open) -> None:
    catalogue, made = await opened(), record()
    left = {"type": "placeholder", "pending": "00000000-0000-0000-0000-000000000001", "revision": 0}
    point = models.PointStruct(id=point_id(made.adapter_id), vector=vector(1).tolist(), payload=left)
    await catalogue.connection.client.upsert(catalogue.points.collection, [point])
    await until_taken(lambda: catalogue.write([Entry(made, vector(1))], together=False))
    assert (await _read(catalogue, made.adapter_id)).revision == 1


async def test_trials_of_one_parent_that_two_routers_begin_at_once_are_not_both_taken(pair: list[RouterWorld]) -> None:
    a, b = pair
    parents = await _registered(a, 3)
    stored = [adapter_file(name=f"child{number}", parents=(parents[0], parents[1 + number])) for number in range(2)]
    digests = [await a.store.put(one) for one in stored]

    async def apply(world: RouterWorld, number: int) -> Any:
        request = registry_pb2.ApplyMergeRequest(
            tenant="public",
            merge_id=new_adapter_id(),
            child_digest=digests[number],
            parent_ids=[parents[0], parents[1 + number]],
            canary_share=0.1,
            reason="alike",
        )
        return await world.client.registry.ApplyMerge(request, timeout=60)

    done = await asyncio.gather(apply(a, 0), apply(b, 1), return_exceptions=True)
    refused = [one for one in done if isinstance(one, grpc.aio.AioRpcError)]
    assert [one.code() for one in refused] == [grpc.StatusCode.FAILED_PRECONDITION]
    assert "has a canary on trial already" in str(refused[0].details())


async def test_a_canarys_budget_is_one_for_all_routers_and_outlives_restarts(
    qdrant: tuple[str, int], library: tuple[AsyncQdrantClient, str], tmp_path: Path
) -> None:
    settings = {**settings_of(*qdrant, library[1]), "store": str(tmp_path / "store")}
    child_id, seen = "", 0
    for turn in range(3):
        async with AsyncExitStack() as stack:
            routers = [await stack.enter_async_context(running_router(tmp_path / name, **settings)) for name in "ab"]
            if not turn:
                digests = [await routers[0].store.put(adapter_file(name=name)) for name in "ab"]
                parents = [(await routers[0].client.register(digest, KNEES)).adapter_id for digest in digests]
                child = await routers[0].store.put(adapter_file(name="child", parents=tuple(parents)))
                child_id = (await routers[0].client.apply_merge("public", "m1", child, parents, "alike", 0.5)).adapter_id
            for number in range(100):
                decision = await routers[number % 2].client.route(KNEES[0], base_model="base-a")
                seen += child_id in [one.adapter_id for one in decision.adapters]
    assert 10 <= seen <= FIRST_QUERIES


async def test_a_young_change_of_another_router_is_waited_for(opened: Open) -> None:
    first, second = await opened(), await opened()
    made = record()
    await first.write([Entry(made, vector(1))])
    await first.points.set_payload({"pending": "00000000-0000-0000-0000-000000000001"}, models.Filter())
    young: dict[str, Any] = {"state": "preparing", "points": []}
    point = models.PointStruct(id="00000000-0000-0000-0000-000000000001", vector=[1.0], payload=young)
    await first.connection.client.upsert(f"{first.prefix}_changes", [point])
    there = await _read(second, made.adapter_id)
    assert there.name == "n"
    with pytest.raises(Conflict):
        await second.write([Entry(replace(there, name="late"), vector(1))])


async def test_four_routers_that_start_at_once_on_an_empty_server_all_serve(opened: Open) -> None:
    for turn in range(1, 4):
        catalogues = await asyncio.gather(*(opened() for _ in range(4)))
        for catalogue in catalogues:
            await catalogue.write([Entry(record(), vector(1))])
            await catalogue.check()
        for catalogue in catalogues:
            assert len(await catalogue.scroll(Scope(tenant="public"), "", 100)) == 4 * turn


async def test_one_that_finds_the_collection_made_by_another_goes_on(opened: Open, library: tuple[AsyncQdrantClient, str]) -> None:
    """The order of calls that a race has: both find nothing, one creates, the other is told that it is there."""
    await opened()
    client, prefix = library
    asked: list[str] = []
    exists = client.collection_exists

    async def not_yet(name: str) -> bool:
        asked.append(name)
        heard = name == f"{prefix}_adapters"  # asked once before, to hear whether the server is there
        return asked.count(name) > 1 + heard and await exists(name)

    client.collection_exists = not_yet  # type: ignore[method-assign,assignment]
    catalogue = QdrantCatalogue(QdrantConnection(client), DIMENSION, prefix)
    await catalogue.prepare()
    collections = 2 + len(DOCUMENT_KINDS)
    assert len(set(asked)) == collections
    assert len(asked) == 2 * collections + 1
    await catalogue.write([Entry(record(), vector(1))])


async def test_what_a_crash_left_out_of_the_collection_is_made(opened: Open, library: tuple[AsyncQdrantClient, str]) -> None:
    client, prefix = library
    await opened()
    for field in ("pool", "revision"):
        await client.delete_payload_index(f"{prefix}_adapters", field)
    catalogue = await opened()
    there = (await client.get_collection(f"{prefix}_adapters")).payload_schema
    assert set(there) >= {*KEYWORDS, "revision"}
    await catalogue.write([Entry(record(), vector(1))])
    search = QdrantSearch(catalogue)
    await search.prepare()
    assert len(await search.search(vector(1), PUBLIC, 5)) == 1


@pytest.mark.parametrize(
    ("vectors", "found"),
    [
        (models.VectorParams(size=384, distance=models.Distance.COSINE), "vectors of 384 numbers by Cosine"),
        ({"text": models.VectorParams(size=16, distance=models.Distance.COSINE)}, r"named vectors \(text\)"),
    ],
)
async def test_a_collection_of_another_kind_is_refused_at_the_start(
    opened: Open, library: tuple[AsyncQdrantClient, str], vectors: Any, found: str
) -> None:
    client, prefix = library
    await client.create_collection(f"{prefix}_adapters", vectors)
    message = (
        rf"^index: the Qdrant collection '{prefix}_adapters' holds {found}, this router needs vectors of 16 numbers by Cosine; "
        "set SMOA_QDRANT_PREFIX to another prefix, or delete that collection if nobody needs it$"
    )
    with pytest.raises(FailedPrecondition, match=message):
        await opened()
