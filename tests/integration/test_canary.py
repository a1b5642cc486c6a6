"""A merge on trial: who answers, for how long, who is told, and the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from unittest.mock import AsyncMock

import grpc
import pytest

from services.optimizer.control.caution import Caution
from services.optimizer.control.gate import Finding, Gate
from services.optimizer.control.passes import Optimizer
from services.optimizer.policy.library_policy import Rules
from services.optimizer.policy.trial import TrialRules
from services.router.routing.canaries import FIRST_QUERIES, QUERIES_AN_OUTCOME
from smoa.v1 import changes_pb2, registry_pb2
from smoa.v1 import common_pb2 as common
from tests.integration.canary_support import Callers
from tests.integration.router_support import KNEES, RouterWorld, adapter_file, refused, running_router
from tests.kafka_support import until
from tests.reports_support import report_one

pytestmark = pytest.mark.usefixtures("catalogue")

RULES = Rules(min_age_s=0.0, min_merge_uses=0.0)
ALL = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY, common.ADAPTER_STATE_RETIRED)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path) as world:
        yield world


async def _twins(world: RouterWorld) -> list[registry_pb2.Adapter]:
    return [await world.register(KNEES, name=name, value=value) for name, value in (("a", 0.5), ("b", 0.51))]


async def _child(world: RouterWorld, parents: list[registry_pb2.Adapter], name: str = "child") -> str:
    ids = tuple(parent.adapter_id for parent in parents)
    return await world.store.put(adapter_file(name=name, parents=ids))


async def _trial(world: RouterWorld, parents: list[registry_pb2.Adapter], share: float = 0.5) -> registry_pb2.Adapter:
    ids = [parent.adapter_id for parent in parents]
    return await world.client.apply_merge("public", "m1", await _child(world, parents), ids, "because", share, {"cosine": 0.99})


async def _states(world: RouterWorld) -> dict[str, str]:
    found = [adapter async for adapter in world.client.list_all(states=ALL)]
    return {adapter.name: common.AdapterState.Name(adapter.state).removeprefix("ADAPTER_STATE_") for adapter in found}


async def _asked(world: RouterWorld, times: int) -> Counter[str]:
    """Who answered, by id, in shares of a decision."""
    found: Counter[str] = Counter()
    for _ in range(times):
        decision = await world.client.route("my knee hurts when I climb stairs", base_model="base-a")
        assert sum(one.weight for one in decision.adapters) == pytest.approx(1.0)
        found.update({one.adapter_id for one in decision.adapters})
    return found


async def test_a_canary_answers_a_share_and_no_more_than_it_has_earned(world: RouterWorld) -> None:
    child = await _trial(world, await _twins(world))
    assert (child.state, child.canary_share) == (common.ADAPTER_STATE_CANARY, 0.5)
    assert await _states(world) == {"a": "ACTIVE", "b": "ACTIVE", "child": "CANARY"}
    first = await _asked(world, 30)
    assert 5 <= first[child.adapter_id] <= FIRST_QUERIES
    await _asked(world, 100)
    assert (await _asked(world, 50))[child.adapter_id] == 0, "nobody has judged it yet"
    counts = registry_pb2.AdapterStatistics(uses=20, outcomes=10, successes=9)
    await report_one(world.client, "public", child.adapter_id, counts)

    async def goes_on() -> bool:
        return (await _asked(world, 5))[child.adapter_id] > 0

    await until("more queries for the canary", 10, goes_on)
    assert (await _asked(world, 100))[child.adapter_id] <= QUERIES_AN_OUTCOME * 10


async def test_promotion_and_its_undoing(world: RouterWorld) -> None:
    parents = await _twins(world)
    child = await _trial(world, parents)
    for _ in range(2):  # the second time changes nothing
        made = await world.client.settle_trial("public", child.adapter_id, promote=True, reason="good", evidence={"child_success": 1.0})
        assert made.state == common.ADAPTER_STATE_ACTIVE
    assert await _states(world) == {"a": "RETIRED", "b": "RETIRED", "child": "ACTIVE"}
    assert set(await _asked(world, 10)) == {child.adapter_id}
    for _ in range(2):
        made = await world.client.settle_trial("public", child.adapter_id, promote=False, reason="we want them back")
        assert made.state_reason == "rolled back: we want them back"
    assert await _states(world) == {"a": "ACTIVE", "b": "ACTIVE", "child": "RETIRED"}
    assert set(await _asked(world, 10)) == {parent.adapter_id for parent in parents}


async def test_rolling_back_leaves_the_parents_alone(world: RouterWorld) -> None:
    parents = await _twins(world)
    child = await _trial(world, parents)
    await world.client.settle_trial("public", child.adapter_id, promote=False, reason="bad")
    assert await _states(world) == {"a": "ACTIVE", "b": "ACTIVE", "child": "RETIRED"}
    assert child.adapter_id not in await _asked(world, 20)
    code, message, _ = await refused(world.client.restore("public", child.adapter_id))
    assert code == "FAILED_PRECONDITION"
    assert message.startswith(f"adapter: {child.adapter_id} is the child of a merge that was undone: ")
    code, message, _ = await refused(world.client.settle_trial("public", child.adapter_id, promote=True, reason="no, good"))
    assert (code, message) == ("FAILED_PRECONDITION", f"child: {child.adapter_id} is retired, so it cannot be promoted")


async def test_there_is_one_trial_at_a_time_and_none_of_what_is_pinned(world: RouterWorld) -> None:
    a, b = await _twins(world)
    c = await world.register(KNEES, name="c", value=0.52)
    child = await _trial(world, [a, b])
    second = world.client.apply_merge("public", "m2", await _child(world, [b, c], "second"), [b.adapter_id, c.adapter_id], "because", 0.1)
    code, message, _ = await refused(second)
    assert code == "FAILED_PRECONDITION"
    assert message.startswith(f"parent: {b.adapter_id} has a canary on trial already ({child.adapter_id}); ")
    d = await world.register(KNEES, name="d", value=0.53)
    await world.client.pin("public", d.adapter_id)
    assert (await world.client.get(d.adapter_id)).pinned
    third = world.client.apply_merge("public", "m3", await _child(world, [c, d], "third"), [c.adapter_id, d.adapter_id], "because", 0.1)
    assert (await refused(third))[1].startswith(f"parent: {d.adapter_id} is pinned; ")
    await world.client.pin("public", d.adapter_id, pinned=False)
    await world.client.apply_merge("public", "m3", await _child(world, [c, d], "third"), [c.adapter_id, d.adapter_id], "because", 0.1)


async def test_a_parent_that_somebody_retired_meanwhile_holds_nothing_up(world: RouterWorld) -> None:
    a, b = await _twins(world)
    child = await _trial(world, [a, b])
    await world.client.retire("public", a.adapter_id, "by hand")
    await world.client.settle_trial("public", child.adapter_id, promote=True, reason="good")
    assert await _states(world) == {"a": "RETIRED", "b": "RETIRED", "child": "ACTIVE"}
    assert (await world.client.get(a.adapter_id)).state_reason == "by hand"


async def test_shared_and_private_adapters_are_not_merged(world: RouterWorld) -> None:
    private = await world.register(KNEES, name="private", value=0.5)
    shared = await world.register(KNEES, name="shared", value=0.51, shared=True)
    code, message, _ = await refused(_trial(world, [private, shared]))
    assert code == "FAILED_PRECONDITION"
    assert message.endswith("merge adapters that the same tenants may use")
    optimizer = Optimizer(world.client, world.store, RULES, lambda _: 0, 100)
    assert (await optimizer.run_pass()).merged == []


async def test_bad_input(world: RouterWorld) -> None:
    a, b = await _twins(world)
    code, message, _ = await refused(_trial(world, [a, b], share=0.6))
    assert (code, message) == (
        "INVALID_ARGUMENT",
        "canary_share: 0.6000000238418579 is outside 0..0.5; send 0 to replace the parents at once",
    )
    code, message, _ = await refused(world.client.settle_trial("public", a.adapter_id, promote=True, reason=""))
    assert (code, message) == ("FAILED_PRECONDITION", f"child: {a.adapter_id} is not the child of a merge; retire or restore it instead")
    assert (await refused(world.client.settle_trial("acme", a.adapter_id, promote=True, reason="")))[0] == "NOT_FOUND"


async def test_it_is_on_trial_again_after_a_restart(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        child = await _trial(world, await _twins(world))
    async with running_router(tmp_path) as world:

        async def answers() -> bool:
            return (await _asked(world, 5))[child.adapter_id] > 0

        await until("the canary's first answer", 10, answers)
        assert (await world.client.get(child.adapter_id)).state == common.ADAPTER_STATE_CANARY


@pytest.mark.parametrize(("deserved", "ends_as"), [(0.1, "RETIRED"), (0.9, "ACTIVE")])
async def test_the_optimizer_ends_the_trial_as_the_child_deserves(world: RouterWorld, deserved: float, ends_as: str) -> None:
    """A planted bad merge is rolled back before 100 requests saw it, and a good one takes its parents' place."""
    parents, callers = await _twins(world), Callers(world, {})
    optimizer = Optimizer(
        world.client,
        world.store,
        RULES,
        lambda _: True,
        100,
        counts=callers.on_trial.get,
        caution=Caution(canary_share=0.2, trial=TrialRules(margin=0.3, parent_margin=0.3)),
    )
    report = await optimizer.run_pass()
    assert len(report.merged) == 1
    [child] = [adapter async for adapter in world.client.list_all(states=[common.ADAPTER_STATE_CANARY])]
    again = await optimizer.run_pass()
    assert (again.merged, again.pruned) == ([], []), "nothing else is done to those whose merge is on trial"
    callers.chance[child.adapter_id] = deserved
    said: list[str] = []
    for _ in range(200):
        for _ in range(20):
            await callers.ask()
        await callers.report()
        said = await optimizer.trials.judge()
        if said:
            break
    assert (await world.client.get(child.adapter_id)).state == common.AdapterState.Value(f"ADAPTER_STATE_{ends_as}"), said
    assert callers.seen[child.adapter_id] < 100
    states = {(await world.client.get(parent.adapter_id)).state for parent in parents}
    assert states == {common.ADAPTER_STATE_ACTIVE if ends_as == "RETIRED" else common.ADAPTER_STATE_RETIRED}
    if ends_as == "RETIRED":
        for same_or_new in (optimizer, Optimizer(world.client, world.store, RULES, lambda _: 0, 100)):
            assert (await same_or_new.run_pass()).merged == [], "what was rolled back is not tried again"


@pytest.mark.parametrize("retired", [1, 2])
async def test_those_that_somebody_retired_meanwhile_are_not_waited_for(world: RouterWorld, retired: int) -> None:
    parents, callers = await _twins(world), Callers(world, {})
    child = await _trial(world, parents)
    trial = TrialRules(margin=0.3, parent_margin=0.3)
    optimizer = Optimizer(world.client, world.store, RULES, lambda _: 0, 100, counts=callers.on_trial.get, caution=Caution(trial=trial))
    optimizer.trials.began(child)
    for one in parents[:retired]:
        await world.client.retire("public", one.adapter_id, "by hand")
    said: list[str] = []
    for _ in range(200):
        if said := await optimizer.trials.judge():
            break
        for _ in range(20):
            await callers.ask()
        await callers.report()
    if retired == 1:
        assert said[0].startswith(f"promote {child.adapter_id}: as good: in place of {parents[1].adapter_id} ")
        assert await _states(world) == {"a": "RETIRED", "b": "RETIRED", "child": "ACTIVE"}
    else:
        assert said == [f"not shown {child.adapter_id}: none of those that it was tried against is in use any more"]
        assert await _states(world) == {"a": "RETIRED", "b": "RETIRED", "child": "RETIRED"}


async def test_what_was_undone_is_remembered_in_every_group_after_a_restart(world: RouterWorld) -> None:
    a, b = await _twins(world)
    ids = [a.adapter_id, b.adapter_id]
    planned = await world.client.propose_change("public", changes_pb2.CHANGE_KIND_MERGE, ids, "alike", merge_id="m1")
    child = await _trial(world, [a, b])
    await world.client.settle_trial("public", child.adapter_id, promote=False, reason="bad for one of them")
    [undone] = [one async for one in world.client.list_changes(states=[changes_pb2.CHANGE_STATE_UNDONE])]
    assert (undone.change_id, [one.reason for one in undone.steps]) == (planned.change_id, ["alike", "because", "bad for one of them"])
    c = await world.register(KNEES, name="c", value=0.505)
    report = await Optimizer(world.client, world.store, RULES, lambda _: 0, 100).run_pass()
    [merge] = report.merged
    merged = {one.adapter_id for one in merge}
    assert c.adapter_id in merged
    assert len(merged & {a.adapter_id, b.adapter_id}) == 1


class _SaysNo(Gate):
    """A gate at which every child has lost a nat a token."""

    async def compare(self, tenant: str, parents: Sequence[common.WeightedAdapter], child: common.WeightedAdapter) -> Finding:
        return Finding({parents[0].adapter_id: (1.0,) * 8})


async def test_a_child_that_the_gate_refuses_never_goes_on_trial(world: RouterWorld) -> None:
    parents = await _twins(world)
    optimizer = Optimizer(
        *(world.client, world.store, RULES, lambda _: 0, 100),
        caution=Caution(canary_share=0.2),
        gate=_SaysNo(world.client, AsyncMock(return_value=[])),
    )
    report = await optimizer.run_pass()
    assert report.merged == []
    [why] = report.refused
    assert why.endswith(" the child is 1.000 nats a token less sure, over 0.1")
    assert f"on 8 right answers of {min(parent.adapter_id for parent in parents)}" in why
    assert [one async for one in world.client.list_all(states=[common.ADAPTER_STATE_CANARY])] == []
    assert {(await world.client.get(parent.adapter_id)).state for parent in parents} == {common.ADAPTER_STATE_ACTIVE}
    assert (await optimizer.run_pass()).refused == [], "what was refused is not scored again in every pass"


@pytest.mark.parametrize(("code", "left"), [("NOT_FOUND", 0), ("INTERNAL", 1), ("DEADLINE_EXCEEDED", 1), ("UNAVAILABLE", 1)])
async def test_only_a_canary_that_is_gone_is_given_up(world: RouterWorld, code: str, left: int) -> None:
    nothing = grpc.aio.Metadata()
    client = AsyncMock(get=AsyncMock(side_effect=grpc.aio.AioRpcError(grpc.StatusCode[code], nothing, nothing, "no")))
    optimizer = Optimizer(client, world.store, Rules(), lambda _: 0, 100)
    optimizer.trials.began(registry_pb2.Adapter(adapter_id="child", tenant="public"))
    with suppress(grpc.aio.AioRpcError):
        assert await optimizer.trials.judge() == ["gone"] * (1 - left)
    assert len(optimizer.trials) == left
