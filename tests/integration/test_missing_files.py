"""Adapters imported before their files are in the store: kept as missing, never routed to, and routed to once the file is there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from smoa.adapter import decode, digest_of
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.command_support import said_by
from tests.integration.router_support import KNEES, MONEY, RouterWorld, adapter_file, refused, running_router

pytestmark = pytest.mark.usefixtures("catalogue")

MISSING, ACTIVE, RETIRED = common.ADAPTER_STATE_MISSING, common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_RETIRED


def described(data: bytes, examples: list[str]) -> registry_pb2.ImportedAdapter:
    """What the owner of a file says of it."""
    manifest = decode(data).manifest
    adapter = registry_pb2.Adapter(
        adapter_id=manifest.adapter_id,
        version=1,
        digest=digest_of(data),
        name=manifest.name,
        kind=common.ADAPTER_KIND_LORA_XS,
        specialization=common.SPECIALIZATION_TASK,
        base_model=manifest.base_model,
        rank=manifest.rank,
        modules=manifest.modules,
        parameter_count=4,
    )
    return registry_pb2.ImportedAdapter(adapter=adapter, examples=examples)


async def imported(world: RouterWorld, *described: registry_pb2.ImportedAdapter) -> tuple[int, int, int]:
    """(durable, added, missing) of one request."""
    ((durable, added, missing),) = [(one.durable, one.added, one.missing) async for one in world.client.import_adapters([described])]
    return durable, added, missing


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path) as made:
        yield made


async def test_one_without_its_file_is_never_routed_to_until_the_file_is_there(world: RouterWorld) -> None:
    knees, money = adapter_file(), adapter_file(name="money")
    await world.store.put(money)
    both = described(knees, KNEES), described(money, MONEY)
    assert await imported(world, *both) == (2, 2, 1)
    assert await world.routed(KNEES[0], score_threshold=-1.0) == ["money"]
    assert await world.routed(KNEES[0], strategy="ROUTING_STRATEGY_TASK", task_id="knees") == []
    (there,) = [one async for one in world.client.list_all(states=[MISSING])]
    assert (there.name, there.state_reason) == ("knees", "its file is not in the store")
    assert await imported(world, *both) == (2, 0, 1)
    await world.store.put(knees)
    assert await imported(world, *both) == (2, 0, 0)
    assert (await world.routed(KNEES[0]))[0] == "knees"
    assert (await world.client.get(there.adapter_id)).state == ACTIVE


async def test_registering_it_with_its_file_makes_it_active(world: RouterWorld) -> None:
    knees = adapter_file()
    await imported(world, described(knees, MONEY))
    made = await world.client.register(await world.store.put(knees), KNEES)
    assert (made.state, made.example_count) == (ACTIVE, 5)
    assert (await world.routed(KNEES[0]))[0] == "knees"


async def test_an_import_notices_a_file_that_has_gone(world: RouterWorld) -> None:
    knees = adapter_file()
    digest = await world.store.put(knees)
    assert await imported(world, described(knees, KNEES)) == (1, 1, 0)
    assert await world.routed(KNEES[0]) == ["knees"]
    await world.store.delete(digest)
    assert await imported(world, described(knees, KNEES)) == (1, 0, 1)
    assert await world.routed(KNEES[0]) == []


async def test_a_missing_one_can_be_retired_and_restored_only_with_its_file(world: RouterWorld) -> None:
    knees = adapter_file()
    one = described(knees, KNEES)
    await imported(world, one)
    assert (await world.client.retire("public", one.adapter.adapter_id, "not wanted")).state == RETIRED
    assert await imported(world, one) == (1, 0, 1)
    code, message, _ = await refused(world.client.restore("public", one.adapter.adapter_id))
    assert code == "FAILED_PRECONDITION"
    assert message.startswith(f"adapter: the file of {one.adapter.adapter_id} is not in the store; ")
    await world.store.put(knees)
    assert (await world.client.restore("public", one.adapter.adapter_id)).state == ACTIVE


async def test_a_composition_does_not_run_without_the_file(world: RouterWorld) -> None:
    knees = adapter_file()
    one = described(knees, KNEES)
    await imported(world, one)
    child = registry_pb2.CompositionChild(adapter_id=one.adapter.adapter_id)
    await world.client.compose("c", registry_pb2.CompositionNode(strategy=common.COMPOSITION_STRATEGY_PARALLEL, children=[child]))
    code, message, _ = await refused(world.client.route(base_model="base-a", composition="c"))
    assert code == "FAILED_PRECONDITION"
    assert message.startswith(f"composition: the file of {one.adapter.adapter_id} of 'c' is not in the store; ")
    await world.store.put(knees)
    await imported(world, one)
    assert len((await world.client.route(base_model="base-a", composition="c")).stages) == 1


async def test_the_command_says_which_are_not_there(world: RouterWorld, tmp_path: Path) -> None:
    lines = tmp_path / "five.jsonl"
    with lines.open("w") as out:
        for number in range(5):
            one = described(adapter_file(name=f"n{number}"), KNEES)
            fields = {key.name: value if isinstance(value, str | int) else list(value) for key, value in one.adapter.ListFields()}
            fields |= {"kind": "lora_xs", "specialization": "task", "digest": f"{number:064x}", "examples": KNEES}
            out.write(json.dumps(fields) + "\n")
    address = ["--router", world.address]
    code, said, _ = await said_by("adapter", "import", "--jsonl", str(lines), *address)
    assert code == 0
    assert said.startswith("5 lines: 5 adapters added\nnot there: the files of 5 of them are not in the router's store. ")
    assert await world.routed(KNEES[0], score_threshold=-1.0) == []
    code, said, _ = await said_by("adapter", "import", "--jsonl", str(lines), "--json", *address)
    assert json.loads(said) == {"lines": 5, "done_before": 0, "added": 0, "missing": 5}
    (tmp_path / "five.jsonl.imported").write_text("3 3")  # as if it had been killed then
    code, said, _ = await said_by("adapter", "import", "--jsonl", str(lines), "--json", *address)
    assert json.loads(said) == {"lines": 5, "done_before": 3, "added": 0, "missing": 5}
    code, said, _ = await said_by("adapter", "list", "--json", *address)
    assert [json.loads(line)["state"] for line in said.splitlines()] == ["ADAPTER_STATE_MISSING"] * 5
    code, said, _ = await said_by("adapter", "import", "--jsonl", str(lines), "--no-file-check", *address)
    assert said == "5 lines: 0 adapters added\n"
    assert len(await world.routed(KNEES[0], score_threshold=-1.0)) == 3
