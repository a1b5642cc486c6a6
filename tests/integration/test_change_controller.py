"""Changes as records: who says yes, what a worker that dies leaves behind, and what is left alone."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.optimizer.control.caution import Caution
from services.optimizer.control.changes import PassReport
from services.optimizer.control.passes import Optimizer
from services.optimizer.policy.library_policy import Rules
from services.optimizer.policy.trial import TrialRules
from services.optimizer.stream.counting import pair, stratum_key
from smoa.v1 import changes_pb2, registry_pb2
from smoa.v1 import common_pb2 as common
from smoa.v1.changes_pb2 import PlannedChange
from smoa.v1.state_pb2 import AdapterCounts
from tests.integration.router_support import KNEES, MONEY, RouterWorld, running_router
from tests.reports_support import report_one

RULES = Rules(min_age_s=0.0)
EVERY_STATE = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY, common.ADAPTER_STATE_RETIRED, common.ADAPTER_STATE_PURGED)
DONE = {"twin-a": "RETIRED", "twin-b": "RETIRED", "failing": "RETIRED", "useful": "ACTIVE"}
"""What becomes of `_library`, the child beside it."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path, purge_grace_s=0.0) as world:
        yield world


async def _library(world: RouterWorld, **modules: tuple[str, ...]) -> dict[str, registry_pb2.Adapter]:
    """Two near-duplicates, one that fails and one that is fine."""
    made = {}
    for name, value, successes in (("twin-a", 0.50, 27), ("twin-b", 0.51, 27), ("failing", -0.5, 1), ("useful", 0.9, 28)):
        shape = {"failing": ("k_proj",), "useful": ("v_proj",)}.get(name, ("q_proj",))
        made[name] = await world.register(KNEES if "twin" in name else MONEY, name=name, value=value, modules=shape)
        await _counted(world, made[name].adapter_id, 30, successes)
    return made


async def _counted(world: RouterWorld, adapter_id: str, outcomes: int, successes: int, fresh_successes: float = 0.0) -> None:
    now_us = time.time_ns() // 1000
    counts = registry_pb2.AdapterStatistics(
        uses=outcomes,
        outcomes=outcomes,
        successes=successes,
        recent_uses=outcomes,
        recent_outcomes=outcomes,
        recent_successes=successes,
        recent_at_us=now_us,
        last_used_at_us=now_us,
        fresh_outcomes=20.0 if fresh_successes else 0.0,
        fresh_successes=max(0.0, fresh_successes - 1),
    )
    await report_one(world.client, "public", adapter_id, counts)


async def _states(world: RouterWorld) -> dict[str, str]:
    """By name; children of merges by theirs and a star."""
    found = [one async for one in world.client.list_all(states=EVERY_STATE)]
    names = {f"{one.name}*" if one.merge_id else one.name: one.state for one in found}
    return {name: common.AdapterState.Name(state).removeprefix("ADAPTER_STATE_") for name, state in names.items()}


def _optimizer(world: RouterWorld, owns: Callable[[str], bool] = lambda _: True, rules: Rules = RULES, **caution: Any) -> Optimizer:
    return Optimizer(world.client, world.store, rules, lambda one: 0 if owns(one) else None, 100, caution=Caution(**caution))


async def _changes(world: RouterWorld) -> dict[str, PlannedChange]:
    """By the kind."""
    return {changes_pb2.ChangeKind.Name(one.kind).removeprefix("CHANGE_KIND_").lower(): one async for one in world.client.list_changes()}


def _steps(change: PlannedChange) -> list[str]:
    return [changes_pb2.ChangeState.Name(one.state).removeprefix("CHANGE_STATE_").lower() for one in change.steps]


async def test_a_change_goes_through_its_steps_with_their_numbers(world: RouterWorld) -> None:
    await _library(world)
    await _optimizer(world).run_pass()
    changes = await _changes(world)
    assert _steps(changes["prune"]) == ["proposed", "done"]
    assert _steps(changes["merge"]) == ["proposed", "gated", "done"]
    assert changes["prune"].steps[0].evidence["outcomes"] == 30
    assert changes["prune"].steps[1].reason.startswith("pruned: fails: 1 of 30 right")
    assert changes["merge"].steps[2].evidence["cosine"] > 0.99
    assert changes["merge"].begun_at_us > 0
    assert await _states(world) == {**DONE, "twin-a*": "ACTIVE"}


async def test_a_trial_whose_child_somebody_retired_is_undone(world: RouterWorld) -> None:
    await _library(world)
    await _optimizer(world, canary_share=0.2).run_pass()
    [child] = [one async for one in world.client.list_all(states=[common.ADAPTER_STATE_CANARY])]
    await world.client.retire("public", child.adapter_id, "we do not want it")
    merge = (await _changes(world))["merge"]
    assert (_steps(merge)[-2:], merge.steps[-1].reason) == (["trial", "undone"], "we do not want it")
    assert (await _optimizer(world, canary_share=0.2).run_pass()).merged == []


async def test_nothing_is_done_without_a_yes_and_a_no_is_remembered(world: RouterWorld) -> None:
    await _library(world)
    for _ in range(2):
        report = await _optimizer(world, mode="approve").run_pass()
        assert (report.waiting, report.pruned, report.merged) == (2, [], [])
    changes = await _changes(world)
    await world.client.decide_change("public", changes["prune"].change_id, approve=True, reason="it does fail")
    await world.client.decide_change("public", changes["merge"].change_id, approve=False, reason="they are two customers'")
    report = await _optimizer(world, mode="approve").run_pass()
    assert ([one.name for one in report.pruned], report.merged, report.waiting) == (["failing"], [], 0)
    for mode in ("approve", "auto"):  # by others, after restarts
        report = await _optimizer(world, mode=mode).run_pass()
        assert (report.pruned, report.merged, report.proposed) == ([], [], [])
    assert await _states(world) == {**DONE, "twin-a": "ACTIVE", "twin-b": "ACTIVE"}
    await world.client.decide_change("public", changes["merge"].change_id, approve=True, reason="after all")
    assert len((await _optimizer(world, mode="approve").run_pass()).merged) == 1


async def test_a_new_library_is_only_proposed_to_and_who_observes_not_even_does_what_was_approved(world: RouterWorld) -> None:
    await _library(world)
    report = await _optimizer(world, observe_first_s=3600.0).run_pass()
    assert (report.waiting, report.pruned, report.merged) == (2, [], [])
    prune = (await _changes(world))["prune"]
    await world.client.decide_change("public", prune.change_id, approve=True)
    assert (await _optimizer(world, mode="observe").run_pass()).waiting == 2
    assert [one.name for one in (await _optimizer(world, observe_first_s=3600.0).run_pass()).pruned] == ["failing"]
    assert len((await _optimizer(world, observe_first_s=0.0).run_pass()).merged) == 1


async def test_what_the_numbers_do_not_ask_for_any_more_is_withdrawn_and_may_come_again(world: RouterWorld) -> None:
    made = await _library(world)
    await _optimizer(world, mode="approve").run_pass()
    await _counted(world, made["failing"].adapter_id, 300, 270)
    await _optimizer(world, mode="approve").run_pass()
    assert _steps((await _changes(world))["prune"]) == ["proposed", "withdrawn"]
    await _counted(world, made["failing"].adapter_id, 3000, 271)
    assert [one.name for one in (await _optimizer(world).run_pass()).pruned] == ["failing"]


async def test_a_yes_stands_when_the_numbers_have_changed_and_not_when_somebody_was_there(world: RouterWorld) -> None:
    made = await _library(world)
    await _optimizer(world, mode="approve").run_pass()
    for change in (await _changes(world)).values():
        await world.client.decide_change("public", change.change_id, approve=True)
    await _counted(world, made["failing"].adapter_id, 300, 270)
    await world.client.retire("public", made["twin-a"].adapter_id, "its customer left")
    report = await _optimizer(world, mode="approve").run_pass()
    assert ([one.name for one in report.pruned], report.merged) == (["failing"], [])
    assert _steps((await _changes(world))["merge"])[-1] == "withdrawn"


class _Died(Exception):
    """The process ended here."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", ["propose_change", "begin_change", "advance_change", "apply_merge", "retire", "purge"])
async def test_a_worker_that_dies_anywhere_leaves_what_another_finishes(
    world: RouterWorld, monkeypatch: pytest.MonkeyPatch, call: str, when: str
) -> None:
    await _library(world)
    real: Callable[..., Awaitable[Any]] = getattr(world.client, call)

    async def dies(*arguments: Any, **more: Any) -> None:
        if when == "after":
            await real(*arguments, **more)
        raise _Died

    def caution(purge: bool) -> dict[str, Any]:
        return {"changes_per_hour": 5, "purge_after_s": 1e-6 if purge else 0.0}

    if call == "purge":
        await _optimizer(world, **caution(purge=False)).run_pass()
    with monkeypatch.context() as patched:
        patched.setattr(world.client, call, dies)
        with pytest.raises(_Died):
            await _optimizer(world, **caution(purge=call == "purge")).run_pass()
    for _ in range(2):
        report = await _optimizer(world, **caution(purge=call == "purge")).run_pass()
        assert report.refused == []
    children = [one async for one in world.client.list_all() if one.merge_id]
    assert len(children) == 1
    gone = "PURGED" if call == "purge" else "RETIRED"
    expected = {name: gone if state == "RETIRED" else state for name, state in DONE.items()}
    assert await _states(world) == {**expected, "twin-a*": "ACTIVE"}
    found = [one async for one in world.client.list_changes()]
    assert {_steps(one)[-1] for one in found} == {"done"}
    assert len(found) == (5 if call == "purge" else 2)
    assert all(one.begun_at_us for one in found)


async def test_two_workers_share_the_hour_and_what_one_began_the_other_ends(world: RouterWorld) -> None:
    for number in range(6):
        made = await world.register(MONEY, name=f"failing-{number}", value=0.1 + number, modules=(f"k{number}_proj",))
        await _counted(world, made.adapter_id, 40, 1)
    halves = (lambda one: ord(one[-1]) % 2 == 0, lambda one: ord(one[-1]) % 2 == 1)
    reports = [await _optimizer(world, owns, changes_per_hour=3).run_pass() for owns in halves]
    assert sum(len(one.pruned) for one in reports) == 3
    assert sum(one.put_off for one in reports) == 3
    after = await _optimizer(world, changes_per_hour=6).run_pass()  # all partitions came to one
    assert (len(after.pruned), after.put_off) == (3, 0)


async def test_a_freeze_holds_prunes_merges_and_promotions_and_no_undoing(world: RouterWorld) -> None:
    made = await _library(world)
    await world.client.freeze("public", reason="a migration")
    report = await _optimizer(world).run_pass()
    assert (report.proposed, report.pruned, report.merged) == ([], [], [])
    await world.client.thaw("public")
    in_place = AdapterCounts()
    optimizer = Optimizer(
        world.client,
        world.store,
        RULES,
        lambda _: 0,
        100,
        caution=Caution(canary_share=0.2, trial=TrialRules(margin=0.3, parent_margin=0.3)),
        counts=lambda _: in_place,
    )
    assert len((await optimizer.run_pass()).merged) == 1
    for name in ("twin-a", "twin-b"):
        key = stratum_key("public", made[name].adapter_id)
        for side in (in_place.stood_for, in_place.control):
            side[key].outcomes, side[key].successes = 100, 100
        for turn in range(200):
            pair(in_place.pairs[key], 1.0, of_child=turn % 2 == 0)
    await world.client.freeze("public", reason="another")
    assert await optimizer.trials.judge() == []
    await world.client.thaw("public")
    assert [one.split()[0] for one in await optimizer.trials.judge()] == ["promote"]
    assert _steps((await _changes(world))["merge"]) == ["proposed", "gated", "trial", "done"]


async def test_an_incident_is_known_after_a_restart_until_a_half_life_after_it(world: RouterWorld) -> None:
    made = await _library(world)

    async def pass_with(fresh_right: float, rules: Rules = RULES) -> tuple[PassReport, Optimizer]:
        for name in ("twin-a", "twin-b", "useful"):
            await _counted(world, made[name].adapter_id, 60, 50, fresh_right)
        optimizer = _optimizer(world, rules=rules)  # a new one each time
        return await optimizer.run_pass(), optimizer

    report, optimizer = await pass_with(1.0)
    assert (report.pruned, report.merged, optimizer.freezing.incident_tenants) == ([], [], frozenset({"public"}))
    kept = await world.client.list_freezes()
    assert {(one.tenant, one.incident) for one in kept} == {("public", True), ("", True)}
    again = _optimizer(world)
    await again.freezing.recall(60.0)
    assert again.freezing.incident_tenants == {"public"}
    report, optimizer = await pass_with(20.0)  # it is over, and what failed then is still in the counts
    assert (report.pruned, report.merged, optimizer.freezing.incident_tenants) == ([], [], frozenset())
    report, _ = await pass_with(20.0, Rules(min_age_s=0.0, half_life_s=1e-3))
    assert await world.client.list_freezes() == []


async def test_what_is_proposed_waits_while_it_is_frozen(world: RouterWorld) -> None:
    await _library(world)
    await _optimizer(world, mode="approve").run_pass()
    before = await _changes(world)
    assert _steps(before["merge"]) == ["proposed"]
    await world.client.freeze("public", reason="a sale")
    await _optimizer(world, mode="approve").run_pass()
    assert await _changes(world) == before
    await world.client.thaw("public")
    assert (await _optimizer(world, mode="approve").run_pass()).waiting == len(before)
    assert await _changes(world) == before


async def test_the_registry_hears_of_an_incident_once_and_not_with_every_pass(world: RouterWorld) -> None:
    made = await _library(world)
    for name in ("twin-a", "twin-b", "useful"):
        await _counted(world, made[name].adapter_id, 60, 50, 1.0)
    optimizer = _optimizer(world)
    await optimizer.run_pass()
    [seen] = {one.seen_at_us for one in await world.client.list_freezes() if one.tenant}
    await optimizer.run_pass()
    assert {one.seen_at_us for one in await world.client.list_freezes() if one.tenant} == {seen}
    assert optimizer.freezing.incident_tenants == {"public"}


async def test_an_incident_that_a_person_thawed_holds_nothing(world: RouterWorld) -> None:
    made = await _library(world)
    for name in ("twin-a", "twin-b", "useful"):
        await _counted(world, made[name].adapter_id, 60, 50, 1.0)
    assert (await _optimizer(world).run_pass()).pruned == []
    for one in await world.client.list_freezes():
        await world.client.thaw(one.tenant or None, one.base_model)
    assert [one.name for one in (await _optimizer(world).run_pass()).pruned] == ["failing"]
