"""A second adapter under a tenant's name: refused with the way out, or in the first one's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from smoa.adapter import digest_of
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.integration.router_support import KNEES, MONEY, RouterWorld, adapter_file, refused, running_router

pytestmark = pytest.mark.usefixtures("catalogue")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path, purge_grace_s=0.0) as made:
        yield made


async def push(
    world: RouterWorld, examples: list[str], tenant: str = "public", *, replace: bool = False, **changes: Any
) -> registry_pb2.Adapter:
    data = adapter_file(tenant=tenant, **changes)
    return await world.client.register(await world.store.put(data), examples, tenant, replace=replace)


async def state_of(world: RouterWorld, adapter: registry_pb2.Adapter) -> tuple[str, str]:
    there = await world.client.get(adapter.adapter_id, adapter.tenant)
    return common.AdapterState.Name(there.state).removeprefix("ADAPTER_STATE_"), there.state_reason


async def test_two_adapters_of_one_name_with_the_same_examples(world: RouterWorld) -> None:
    old = await push(world, MONEY, name="refunds")
    await world.client.pin("public", old.adapter_id, pinned=True)
    second = adapter_file(0.7, name="refunds")
    digest = await world.store.put(second)
    code, details, _ = await refused(world.client.register(digest, MONEY[::-1]))
    assert code == "ALREADY_EXISTS"
    assert details == (
        f"name: 'refunds' is the name of {old.adapter_id}, which has the same examples, so both would answer every query by half; push "
        "it with --replace (`replace` of RegisterAdapter) to retire that one in the same step, or give it another name"
    )
    decision = await world.client.route(MONEY[0], base_model="base-a")
    assert [one.weight for one in decision.adapters] == [1.0]

    new = await world.client.register(digest, MONEY, replace=True)
    assert (new.name, new.state, new.pinned, new.statistics.uses) == ("refunds", common.ADAPTER_STATE_ACTIVE, True, 0)
    assert await state_of(world, old) == ("RETIRED", f"replaced by {new.adapter_id}")
    decision = await world.client.route(MONEY[0], base_model="base-a")
    assert [(one.adapter_id, one.weight) for one in decision.adapters] == [(new.adapter_id, 1.0)]
    assert digest_of(await world.store.get(old.digest)) == old.digest, "requests that run on the old one may still load it"
    assert await world.client.register(digest, MONEY, replace=True) == new, "again is fine"
    assert await world.client.register(digest, MONEY) == new


async def test_what_is_no_second_adapter_of_the_name(world: RouterWorld) -> None:
    await push(world, MONEY, name="refunds")
    await push(world, MONEY, name="refunds", value=0.6, base_model="base-b")
    await push(world, MONEY, "acme", name="refunds", value=0.7)
    await push(world, KNEES, name="refunds", value=0.8)
    await push(world, MONEY, name="money back", value=0.9)
    assert len([one async for one in world.client.list_all(all_tenants=False)]) == 4


async def test_with_replace_the_one_that_is_meant_goes(world: RouterWorld) -> None:
    money, knees = await push(world, MONEY, name="help"), await push(world, KNEES, name="help", value=0.6)
    code, details, _ = await refused(push(world, [*MONEY, "more"], name="help", value=0.7, replace=True))
    assert code == "FAILED_PRECONDITION"
    assert details.startswith("name: 'help' is the name of 2 live adapters (")
    new = await push(world, MONEY, name="help", value=0.8, replace=True)
    assert (await state_of(world, money), await state_of(world, knees)) == (("RETIRED", f"replaced by {new.adapter_id}"), ("ACTIVE", ""))
    alone = await push(world, KNEES, name="alone", replace=True)
    assert (await state_of(world, alone))[0] == "ACTIVE"
    moved = await push(world, MONEY, name="alone", value=0.9, replace=True)
    assert await state_of(world, alone) == ("RETIRED", f"replaced by {moved.adapter_id}")


async def test_shared_ones_and_those_on_trial_are_not_replaced_unawares(world: RouterWorld) -> None:
    shared = await push(world, KNEES, name="shared", shared=True)
    code, details, _ = await refused(push(world, KNEES, name="shared", value=0.6, replace=True))
    assert (code, details.startswith(f"adapter: {shared.adapter_id} is shared and ")) == ("FAILED_PRECONDITION", True)
    parents = [await push(world, KNEES, name="a", value=0.7), await push(world, KNEES, name="b", value=0.8)]
    ids = [parent.adapter_id for parent in parents]
    child = await world.store.put(adapter_file(name="a", parents=tuple(ids)))
    made = await world.client.apply_merge("public", "m", child, ids, "alike", 0.1)
    for name in ("a", "b"):
        code, details, _ = await refused(push(world, KNEES, name=name, value=0.9, replace=True))
        assert code == "FAILED_PRECONDITION"
        assert made.adapter_id in details


async def test_replacing_survives_a_restart(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        old = await push(world, MONEY, name="refunds")
        new = await push(world, MONEY, name="refunds", value=0.7, replace=True)
    async with running_router(tmp_path) as world:
        assert await state_of(world, old) == ("RETIRED", f"replaced by {new.adapter_id}")
        assert [one.adapter_id for one in (await world.client.route(MONEY[0], base_model="base-a")).adapters] == [new.adapter_id]


async def test_one_of_two_pushed_at_once_is_refused(world: RouterWorld) -> None:
    pushes = [push(world, MONEY, name="refunds", value=value) for value in (0.5, 0.6)]
    ended = await asyncio.gather(*pushes, return_exceptions=True)
    assert sorted(isinstance(one, BaseException) for one in ended) == [False, True]


async def test_a_retired_or_purged_adapter_comes_back_by_restore(world: RouterWorld) -> None:
    data = adapter_file()
    made = await world.client.register(await world.store.put(data), KNEES)
    await world.client.retire("public", made.adapter_id, "no more")
    code, details, _ = await refused(world.client.register(made.digest, KNEES))
    restore = f"bring it back with `smoa adapter restore {made.adapter_id}`"
    assert (code, details) == ("FAILED_PRECONDITION", f"adapter: 'knees' is there as {made.adapter_id}, retired (no more); {restore}")
    await world.client.purge("public", made.adapter_id)
    code, details, _ = await refused(world.client.restore("public", made.adapter_id))
    assert code == "FAILED_PRECONDITION"
    assert details == f"adapter: the file of {made.adapter_id} is not in the store; put it there with `smoa adapter push` first"
    code, details, _ = await refused(world.client.register(await world.store.put(data), KNEES))
    assert (code, details) == ("FAILED_PRECONDITION", f"adapter: 'knees' is there as {made.adapter_id}, purged (no more); {restore}")
    assert (await world.client.restore("public", made.adapter_id)).state == common.ADAPTER_STATE_ACTIVE
    assert await world.routed("my knee hurts") == ["knees"]
