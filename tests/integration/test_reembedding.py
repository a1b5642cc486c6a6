"""`smoa router reembed`: another embedder, while the old library serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from services.router.commands import router_group
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.contract.test_embedder import Service
from tests.integration.router_support import KNEES, MONEY, RouterWorld, running_router
from tests.integration.test_import import imported
from tests.qdrant_support import client_of, drop, fresh_prefix, settings_of


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


async def _reembed(service: Service, arguments: list[str], **environment: str) -> dict[str, Any]:
    named = {"SMOA_ROUTER_EMBEDDER": service.url, "SMOA_ROUTER_EMBEDDER_MODEL": "words", **environment}
    done = await asyncio.to_thread(CliRunner(env=named).invoke, router_group, ["reembed", *arguments, "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def tree_of(*adapter_ids: str) -> registry_pb2.CompositionNode:
    children = [registry_pb2.CompositionChild(adapter_id=one) for one in adapter_ids]
    return registry_pb2.CompositionNode(strategy=common.COMPOSITION_STRATEGY_PARALLEL, children=children)


async def _filled(world: RouterWorld) -> tuple[str, str, str]:
    """Ids of two adapters with examples, one of them in a composition, and of one that was imported as a vector."""
    knees, money = await world.register(KNEES), await world.register(MONEY, name="money")
    await world.client.compose("alone", tree_of(knees.adapter_id))
    bare = registry_pb2.ImportedAdapter(adapter=imported(3, name="bare").adapter, vector=np.ones(256).tolist())
    async for _ in world.client.import_adapters([[bare]], files_unchecked=True):
        pass
    return knees.adapter_id, money.adapter_id, bare.adapter.adapter_id


async def _routed(world: RouterWorld, query: str, **options: Any) -> list[str]:
    return [one.adapter_id for one in (await world.client.route(query, base_model="base-a", top_k=1, **options)).adapters]


async def test_in_a_folder_beside_the_router_and_then_in_its_place(tmp_path: Path, service: Service) -> None:
    arguments = ["--data", str(tmp_path / "router")]
    async with running_router(tmp_path, purge_grace_s=0.0) as world:
        knees, money, bare = await _filled(world)
        done = await _reembed(service, arguments)
        assert (done["read"], done["written"], done["left_out"]) == (3, 2, [bare])
        assert done["next"].endswith("stop the router and run this again, which puts it in the old one's place")
        await world.client.pin("public", money)
        assert await _routed(world, MONEY[0]) == [money], "it serves meanwhile"
        gone = await world.register([f"of the {number}th that is purged" for number in range(5)], name="gone")
        await _reembed(service, arguments)
        await world.client.retire("public", gone.adapter_id, "by the test")
        await world.client.purge("public", gone.adapter_id)
        await world.client.delete_composition("alone")
        await world.client.compose("both", tree_of(knees, money))
    done = await _reembed(service, arguments)
    assert (done["read"], done["written"]) == (4, 1), "what has changed since"
    assert done["next"].startswith("the new library is in its place; the old one is ")
    new = {"embedder": service.url, "embedder_model": "words"}
    async with running_router(tmp_path, **new) as world:
        assert [await _routed(world, KNEES[0]), await _routed(world, MONEY[0])] == [[knees], [money]]
        assert {one.name async for one in world.client.list_compositions()} == {"both"}
        assert (await world.client.get(gone.adapter_id)).state == common.ADAPTER_STATE_PURGED
        assert (await world.client.get(money)).pinned
        assert {one.adapter_id async for one in world.client.list_all()} == {knees, money}
        await world.client.retire("public", knees, "by the test")
        with pytest.raises(FailedPrecondition, match=r"^index: the library is of 'words surface-2' already; name another embedder"):
            await _reembed(service, arguments)
    with pytest.raises(FailedPrecondition, match=r"^data: .*/nowhere/index is not there; name the router's data folder with --data"):
        await _reembed(service, ["--data", str(tmp_path / "nowhere")])


async def test_on_a_server_under_another_prefix(qdrant: tuple[str, int], tmp_path: Path, service: Service) -> None:
    old, new = fresh_prefix(), fresh_prefix()
    server = {"SMOA_QDRANT_GRPC_PORT": str(qdrant[1]), "SMOA_QDRANT_PREFIX": old}
    settings: dict[str, Any] = {**settings_of(*qdrant, old), "store": str(tmp_path / "store")}
    arguments = ["--qdrant", qdrant[0], "--into", new]
    with pytest.raises(InvalidArgument, match=r"^into: '.*' is not a prefix of another library"):
        await _reembed(service, ["--qdrant", qdrant[0], "--into", old], **server)
    async with running_router(tmp_path / "old", **settings) as world:
        knees, money, bare = await _filled(world)
        done = await _reembed(service, arguments, **server)
        assert (done["read"], done["written"], done["left_out"]) == (3, 2, [bare])
        changed = {"qdrant_prefix": new, "embedder": service.url, "embedder_model": "words"}
        async with running_router(tmp_path / "new", **{**settings, **changed}) as other:
            assert [await _routed(other, KNEES[0]), await _routed(other, MONEY[0])] == [[knees], [money]]
            assert await _routed(other, KNEES[0], composition="alone") == [knees]
            late = await world.register([f"where is the {number}th bus stop" for number in range(5)], name="late")
            await other.client.pin("public", money)
            done = await _reembed(service, arguments, **server)
            assert (done["read"], done["written"], done["kept"]) == (4, 1, [])
            await other.client.retire("public", knees, "by the test")
            await world.client.pin("public", knees)
            done = await _reembed(service, arguments, **server)
            assert (done["written"], done["kept"]) == (0, [knees])
            assert (await other.client.get(knees)).state == common.ADAPTER_STATE_RETIRED, "what was acknowledged there stays"
            assert (await other.client.get(late.adapter_id)).name == "late"
            assert (await other.client.get(money)).pinned, "what was changed there since stays"
    client = client_of(*qdrant)
    for prefix in (old, new):
        await drop(client, prefix)
    await client.close()
