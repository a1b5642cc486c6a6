"""A lost index is made again from the store: the same library, the same answers."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from click.testing import CliRunner
from qdrant_client import AsyncQdrantClient

from services.router.catalogue.port import Entry
from services.router.catalogue.registration_log import RegistrationLog, rebuild
from services.router.commands import router_group
from smoa.embedding.static import StaticEmbedder
from smoa.embedding.views import Views
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.stack import LOCK, Stack
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.contract.test_library import DIMENSION, record, vector
from tests.integration.router_support import KNEES, MONEY, adapter_file, running_router
from tests.library_support import DIMENSION as BOTH_VIEWS
from tests.library_support import qdrant_library, sqlite_library
from tests.reports_support import report_one

EVERY = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_RETIRED, common.ADAPTER_STATE_PURGED)


async def test_what_was_registered_renamed_retired_and_imported_is_there_again(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        knees = await world.register(KNEES)
        money = await world.register(MONEY)
        await world.client.retire("public", money.adapter_id, "by the test")
        renamed = registry_pb2.UpdateAdapterRequest(adapter_id=knees.adapter_id, name="renamed", examples=[f"{one} badly" for one in KNEES])
        await world.client.registry.UpdateAdapter(renamed, timeout=5)
        statistics = registry_pb2.AdapterStatistics(uses=5)
        await report_one(world.client, "public", knees.adapter_id, statistics)
        before = {one.adapter_id: one async for one in world.client.list_all(states=EVERY)}
        asked = await world.client.route(KNEES[0], base_model="base-a")
    shutil.rmtree(tmp_path / "router" / "index")
    arguments = ["rebuild", "--store", str(tmp_path / "store"), "--data", str(tmp_path / "router")]
    result = await asyncio.to_thread(CliRunner().invoke, router_group, arguments, catch_exceptions=False)
    assert "4 writes are in the index again" in result.output
    async with running_router(tmp_path) as world:
        after = {one.adapter_id: one async for one in world.client.list_all(states=EVERY)}
        for one in (*before.values(), *after.values()):
            one.ClearField("statistics")
        assert after == before
        again = await world.client.route(KNEES[0], base_model="base-a")
        assert [one.adapter_id for one in again.adapters] == [one.adapter_id for one in asked.adapters]
        assert again.confidence == pytest.approx(asked.confidence, abs=0.01)


async def test_the_stacks_own_index_is_rebuilt_and_no_folder_is_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, elsewhere = tmp_path / "smoa-data", tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with running_router(data) as world:
        knees = await world.register(KNEES)
    Stack(data=str(data), router="r:1", executor="e:1", kafka="k:1", store=str(data / "store"), pid=1, started_at_s=0.0).write()
    shutil.rmtree(data / "router")  # lost whole

    monkeypatch.chdir(elsewhere)
    result = await asyncio.to_thread(CliRunner().invoke, router_group, ["rebuild"])
    assert isinstance(result.exception, FailedPrecondition)
    assert str(result.exception) == (
        f"data: {elsewhere}/smoa-data/router (the built-in default: no stack.json is in {elsewhere}/smoa-data) does not exist; the "
        f"local stack that was looked for in {elsewhere}/smoa-data is not there; name its folder with --stack, or give --data and --store"
    )
    assert list(elsewhere.iterdir()) == []
    result = await asyncio.to_thread(CliRunner().invoke, router_group, ["rebuild", "--stack", str(data), "--store", "nowhere"])
    assert str(result.exception).startswith(f"store: {elsewhere}/nowhere (from --store) does not exist; the local stack that was")
    (elsewhere / "empty").mkdir()
    result = await asyncio.to_thread(CliRunner().invoke, router_group, ["rebuild", "--stack", str(data), "--store", "empty"])
    assert str(result.exception).startswith("store: empty holds no registration, so there is nothing to make an index from")
    assert not (data / "router").exists()

    with (data / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = await asyncio.to_thread(CliRunner().invoke, router_group, ["rebuild", "--stack", str(data)])
        assert str(result.exception).startswith(f"data: the router of the stack in {data} uses {data}/router (process 1, since ")

    monkeypatch.chdir(tmp_path)
    result = await asyncio.to_thread(CliRunner().invoke, router_group, ["rebuild", "--json"], catch_exceptions=False)
    assert json.loads(result.stdout) == {"writes": 1, "index": str(data / "router")}
    async with running_router(data) as world:
        assert [one.adapter_id async for one in world.client.list_all()] == [knees.adapter_id]


@pytest.mark.parametrize("kind", ["local", "client"])
@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
@pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning")
async def test_what_was_rebuilt_can_be_written_again(tmp_path: Path, kind: str) -> None:
    log, one = RegistrationLog(AdapterStore(str(tmp_path / "store"))), record()
    await log.write([Entry(one, vector(1), vector(2)[None])])
    library = await (
        sqlite_library(tmp_path / "index", DIMENSION) if kind == "local" else qdrant_library(AsyncQdrantClient(":memory:"), DIMENSION)
    )
    assert [done async for done in rebuild(log, library.catalogue, Mock(dimension=DIMENSION))] == [(1, 1)]
    found = await library.catalogue.get(one.adapter_id)
    assert found is not None
    await library.catalogue.write([Entry(replace(found[0], name="renamed"), found[1])])
    again = await library.catalogue.get(one.adapter_id)
    assert again is not None
    assert (again[0].name, again[0].revision) == ("renamed", 2)
    await library.close()


async def test_it_is_read_by_revision_whatever_the_writers_clocks_were(tmp_path: Path) -> None:
    log, one = RegistrationLog(AdapterStore(str(tmp_path / "store"))), record()
    where, example_vectors = vector(1), np.stack([vector(2), vector(3)])
    versions = [
        [Entry(replace(one, revision=2, state="retired"), where)],
        [Entry(one, vector(5), example_vectors)],
        [Entry(replace(one, revision=1, name="renamed"), vector(4))],
    ]
    for entries in versions:
        await log.write(entries)
    library = await sqlite_library(tmp_path / "index", DIMENSION)
    assert [done async for done in rebuild(log, library.catalogue, Mock(dimension=DIMENSION))] == [(1, 3), (2, 3), (3, 3)]
    found = await library.catalogue.get(one.adapter_id)
    assert found is not None
    assert (found[0].state, found[0].name) == ("retired", "n")
    assert found[1] == pytest.approx(where, abs=1e-3)
    assert (await library.catalogue.example_vectors([one.adapter_id]))[one.adapter_id] == pytest.approx(example_vectors, abs=0.01)
    await library.close()


async def test_only_an_empty_index_is_rebuilt_and_an_altered_journal_is_named(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        await world.register(KNEES)
        await world.store.put(adapter_file())
    library = await sqlite_library(tmp_path / "router" / "index", BOTH_VIEWS)
    log = RegistrationLog(AdapterStore(str(tmp_path / "store")))
    with pytest.raises(FailedPrecondition, match=r"^index: holds adapters already"):
        _ = [done async for done in rebuild(log, library.catalogue, Views(StaticEmbedder()))]
    await library.close()
    (name,) = await log.names()
    (tmp_path / "store" / name).write_text('{"record": 1}')
    with pytest.raises(InvalidArgument, match=r"^registrations/.*: is not a log of registrations"):
        await log.read(name, 256)
