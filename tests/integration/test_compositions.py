"""Compositions over a real socket: made, found, carried out, nested, deleted; and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from services.router.catalogue.compositions import Compositions
from services.router.catalogue.records import AdapterRecord
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue
from smoa.adapter import new_adapter_id
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.integration.router_support import KNEES, MONEY, RouterWorld, adapter_file, refused, running_router
from tests.reports_support import report_one

pytestmark = pytest.mark.usefixtures("catalogue")

Child, Node = registry_pb2.CompositionChild, registry_pb2.CompositionNode
PARALLEL, SEQUENTIAL = common.COMPOSITION_STRATEGY_PARALLEL, common.COMPOSITION_STRATEGY_SEQUENTIAL


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path) as made:
        yield made


async def test_a_composition_is_made_found_listed_and_deleted(world: RouterWorld) -> None:
    adapter = await world.register(KNEES)
    root = Node(strategy=PARALLEL, children=[Child(adapter_id=adapter.adapter_id, weight=0.5)])
    made = await world.client.compose("c", root)
    assert (made.root, list(made.adapter_ids)) == (root, [adapter.adapter_id])
    assert await world.client.compose("c", root) == made
    assert await world.client.composition("c") == made
    assert [one async for one in world.client.list_compositions()] == [made]
    registry = world.client.registry
    assert await registry.GetComposition(registry_pb2.GetCompositionRequest(composition_id=made.composition_id), timeout=5) == made
    assert (await refused(world.client.composition("c", "acme")))[0] == "NOT_FOUND"
    other = registry_pb2.GetCompositionRequest(tenant="acme", composition_id=made.composition_id)
    assert (await refused(registry.GetComposition(other, timeout=5)))[0] == "NOT_FOUND"
    await world.client.delete_composition("c")
    assert (await refused(world.client.composition("c")))[0] == "NOT_FOUND"
    assert [one async for one in world.client.list_compositions()] == []


async def test_route_carries_out_a_composition_by_its_name(world: RouterWorld) -> None:
    one, two = await world.register(KNEES), await world.register(MONEY)
    polite = Node(strategy=PARALLEL, children=[Child(adapter_id=two.adapter_id, weight=0.5), Child(adapter_id=one.adapter_id, weight=0.25)])
    await world.client.compose("polite", polite)
    await world.client.compose(
        "answer", Node(strategy=SEQUENTIAL, children=[Child(adapter_id=one.adapter_id, max_tokens=9), Child(composition="polite")])
    )
    decision = await world.client.route(base_model="base-a", composition="answer")
    assert [[(a.adapter_id, a.version, a.digest, a.weight) for a in stage.adapters] for stage in decision.stages] == [
        [(one.adapter_id, 1, one.digest, 1.0)],
        [(two.adapter_id, 1, two.digest, 0.5), (one.adapter_id, 1, one.digest, 0.25)],
    ]
    assert [stage.max_tokens for stage in decision.stages] == [9, 0]
    assert {a.adapter_id: a.weight for a in decision.adapters} == {one.adapter_id: 0.25, two.adapter_id: 0.5}
    await world.client.report(decision, success=True)  # outcomes of a composition count for its adapters like any other's


async def test_parents_and_children_are_recorded_and_hold_each_other(world: RouterWorld) -> None:
    adapter = await world.register(KNEES)
    await world.client.compose("inner", Node(strategy=PARALLEL, children=[Child(adapter_id=adapter.adapter_id)]))
    outer = Node(strategy=PARALLEL, children=[Child(composition="inner", weight=0.5)])
    assert list((await world.client.compose("outer", outer)).children) == ["inner"]
    assert list((await world.client.composition("inner")).parents) == ["outer"]
    code, details, _ = await refused(world.client.delete_composition("inner"))
    assert (code, details) == ("FAILED_PRECONDITION", "composition: 'inner' is nested by 'outer'; delete that first")
    await world.client.delete_composition("outer")
    await world.client.delete_composition("inner")


async def test_a_composition_can_be_deleted_after_a_crash_let_what_it_nests_go(world: RouterWorld, tmp_path: Path) -> None:
    catalogue = SqliteCatalogue(tmp_path / "index", 256)
    adapter_id, compositions = new_adapter_id(), Compositions(catalogue)
    leaf: dict[str, object] = {"strategy": "COMPOSITION_STRATEGY_PARALLEL", "children": [{"adapterId": adapter_id}]}
    nests: dict[str, object] = {"strategy": "COMPOSITION_STRATEGY_PARALLEL", "children": [{"composition": "inner"}]}
    record = AdapterRecord(
        adapter_id=adapter_id,
        version=1,
        digest="d" * 64,
        tenant="public",
        name="n",
        kind="lora",
        granularity="NANO",
        specialization="task",
        base_model="b",
        rank=1,
        modules=(),
        parameter_count=1,
        file_bytes=1,
    )
    await catalogue.upsert([(record, np.full(256, 1 / 16, np.float32))])
    inner = await compositions.create("public", "inner", leaf)
    outer = await compositions.create("public", "outer", nests)
    there = await catalogue.get_document("composition", inner.composition_id)
    assert there is not None
    await catalogue.write_document("composition", there._replace(body={**there.body, "parents": ()}))  # as before it was nested
    await compositions.delete("public", inner.composition_id)
    await compositions.delete("public", outer.composition_id)
    assert (await compositions.page("public", 10, ""))[0] == []
    await catalogue.close()


async def test_weights_follow_measured_success(world: RouterWorld) -> None:
    good, bad = await world.register(KNEES), await world.register(MONEY)
    await report_one(world.client, "public", good.adapter_id, registry_pb2.AdapterStatistics(outcomes=98, successes=89))
    await report_one(world.client, "public", bad.adapter_id, registry_pb2.AdapterStatistics(outcomes=98, successes=9))
    root = Node(strategy=PARALLEL, children=[Child(adapter_id=one.adapter_id, weight=0.5) for one in (good, bad)])
    await world.client.compose("measured", root, weighting=registry_pb2.COMPOSITION_WEIGHTING_MEASURED_SUCCESS)
    (stage,) = (await world.client.route(base_model="base-a", composition="measured")).stages
    assert [one.weight for one in stage.adapters] == pytest.approx([0.9, 0.1])


async def test_what_is_refused(world: RouterWorld) -> None:
    adapter = await world.register(KNEES)
    leaf = Child(adapter_id=adapter.adapter_id)
    root = Node(strategy=PARALLEL, children=[leaf])
    await world.client.compose("c", root)
    gone, theirs = Child(adapter_id=new_adapter_id()), await world.register(KNEES, "acme")
    for name, tree, expected in [
        ("", root, ("INVALID_ARGUMENT", "name: has 0 characters; name the composition in 1 to 128")),
        (
            "d",
            Node(strategy=PARALLEL, children=[gone]),
            ("NOT_FOUND", f"adapter {gone.adapter_id!r} was not found; list what exists and check the tenant"),
        ),
        (
            "d",
            Node(strategy=PARALLEL, children=[Child(adapter_id=theirs.adapter_id)]),
            ("NOT_FOUND", f"adapter {theirs.adapter_id!r} was not found; list what exists and check the tenant"),
        ),
        (
            "d",
            Node(strategy=PARALLEL, children=[Child(composition="nobody")]),
            ("NOT_FOUND", "composition 'nobody' was not found; list what exists and check the tenant"),
        ),
        (
            "d",
            Node(strategy=SEQUENTIAL, children=[Child(composition="d")]),
            ("INVALID_ARGUMENT", "root: nests itself: d -> d; break the cycle"),
        ),
        (
            "c",
            Node(strategy=SEQUENTIAL, children=[leaf]),
            ("ALREADY_EXISTS", "name: 'c' is taken by another composition; choose another, or delete that one first"),
        ),
    ]:
        assert (await refused(world.client.compose(name, tree)))[:2] == expected
    code, details, _ = await refused(world.client.route(base_model="base-b", composition="c"))
    assert (code, details) == (
        "FAILED_PRECONDITION",
        f"base_model: adapter {adapter.adapter_id} of 'c' was trained for base-a, not base-b; send it to an executor with that base model",
    )
    assert (await refused(world.client.route(base_model="base-a", composition="x")))[0] == "NOT_FOUND"
    assert (await refused(world.client.route(base_model="base-a", composition="c", tenant="acme")))[0] == "NOT_FOUND"


async def test_a_retired_adapter_still_serves_and_a_purged_one_is_named(tmp_path: Path) -> None:
    async with running_router(tmp_path, purge_grace_s=0.0) as world:
        adapter = await world.register(KNEES)
        await world.client.compose("c", Node(strategy=PARALLEL, children=[Child(adapter_id=adapter.adapter_id)]))
        await world.client.retire("public", adapter.adapter_id, "old")
        assert len((await world.client.route(base_model="base-a", composition="c")).stages) == 1
        await world.client.registry.PurgeAdapter(registry_pb2.PurgeAdapterRequest(adapter_id=adapter.adapter_id), timeout=5)
        code, details, _ = await refused(world.client.route(base_model="base-a", composition="c"))
        assert (code, details) == (
            "FAILED_PRECONDITION",
            f"composition: adapter {adapter.adapter_id} of 'c' was purged; make the composition anew",
        )


async def test_the_command_line(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        adapter = await world.client.register(await world.store.put(adapter_file()), KNEES)
        tree = tmp_path / "tree.json"
        tree.write_text(json.dumps({"sequential": [{"parallel": [{"adapter_id": adapter.adapter_id}], "max_tokens": 4}]}))

        async def smoa(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [str(Path(sys.executable).parent / "smoa"), "composition", *arguments]
            return await asyncio.to_thread(
                subprocess.run, command, env=os.environ | {"SMOA_ROUTER": world.address}, capture_output=True, text=True, timeout=60
            )

        made = await smoa("create", "c", str(tree))
        assert (made.returncode, made.stderr) == (0, "")
        assert json.loads(made.stdout)["root"]["children"][0]["max_tokens"] == 4
        assert json.loads((await smoa("show", "c")).stdout)["adapter_ids"] == [adapter.adapter_id]
        assert json.loads((await smoa("list", "--json")).stdout)["name"] == "c"
        tree.write_text('{"parallel": [3]}')
        wrong = await smoa("create", "d", str(tree))
        assert wrong.returncode == 1
        assert wrong.stderr.startswith("error: tree: is not a composition (")
        assert (await smoa("delete", "c")).returncode == 0
        gone = (await smoa("show", "c")).stderr
        assert gone.startswith("error: composition 'c' was not found; no name or id is or begins so; see `smoa composition list`")
