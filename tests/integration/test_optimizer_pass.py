"""A pass of the optimizer over a real registry: what a dry run leaves alone, and what a real one does, with its numbers."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.optimizer.control.caution import Caution
from services.optimizer.control.changes import PassReport
from services.optimizer.control.passes import Optimizer
from services.optimizer.control.views import facts_of, view_of
from services.optimizer.policy.library_policy import Rules, prunes, totals_of
from smoa.adapter import decode, new_adapter_id
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.changes_pb2 import PlannedChange
from tests.integration.router_support import KNEES, MONEY, RouterWorld, running_router
from tests.reports_support import refusal_of, report_one

RULES = Rules(min_age_s=0.0, min_merge_uses=0.0, unused_after_s=0.0)
EVERY_STATE = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_RETIRED)


async def _library(world: RouterWorld) -> None:
    """Two near-duplicates that work, one that fails, one nobody uses, one that is fine, and another tenant's twin of a duplicate."""
    for name, tenant, value, uses, successes, examples in (
        ("twin-a", "public", 0.50, 30, 27, KNEES),
        ("twin-b", "public", 0.51, 9, 9, KNEES),
        ("failing", "public", -0.5, 40, 2, MONEY),
        ("unused", "public", -0.6, 0, 0, MONEY),
        ("useful", "acme", 0.9, 50, 45, MONEY),
    ):
        # Each odd one has a shape of its own, so that only the twins are alike.
        modules = {"failing": ("k_proj",), "unused": ("v_proj",)}.get(name, ("q_proj",))
        made = await world.register(examples, tenant, name=name, value=value, modules=modules)
        now_us = time.time_ns() // 1000
        counts = registry_pb2.AdapterStatistics(uses=uses, outcomes=uses, successes=successes, recent_uses=uses, recent_at_us=now_us)
        await report_one(world.client, tenant, made.adapter_id, counts)


async def _states(world: RouterWorld) -> list[tuple[str, str, str]]:
    """(name, state, its reason) of everything there is."""
    found = [a async for a in world.client.list_all(states=EVERY_STATE, all_tenants=True)]
    return [(a.name, common.AdapterState.Name(a.state).removeprefix("ADAPTER_STATE_"), a.state_reason) for a in found]


async def _pass(world: RouterWorld, *, rules: Rules = RULES, **caution: Any) -> PassReport:
    return await Optimizer(world.client, world.store, rules, lambda _: 0, 100, caution=Caution(**caution)).run_pass()


async def _names(world: RouterWorld, changes: Sequence[PlannedChange]) -> set[frozenset[str]]:
    """Of each change's adapters."""
    return {frozenset([(await world.client.get(adapter)).name for adapter in one.adapter_ids]) for one in changes}


async def test_who_observes_proposes_with_numbers_and_applies_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running_router(tmp_path) as world:
        await _library(world)
        before = await _states(world)
        files = sorted(Path(world.store.location).rglob("*.safetensors"))
        report = await _pass(world, mode="observe")
        assert await _names(world, report.proposed) == {frozenset({"failing"}), frozenset({"unused"}), frozenset({"twin-a", "twin-b"})}
        assert (report.waiting, report.pruned, report.merged) == (3, [], [])
        assert await _states(world) == before
        assert sorted(Path(world.store.location).rglob("*.safetensors")) == files
        said = "\n".join(caplog.messages)
        assert "proposed: prune " in said
        assert "fails: 2 of 40 right; with 95% confidence under 30%" in said
        assert "; the tenant's 4 adapters were used 79 times recently" in said
        assert "not needed: not used for " in said
        assert " s, its season is 0 s; " in said
        assert "delta cosine 1.0000, benefit 0.90; " in said


async def test_a_pass_merges_and_prunes_through_the_registry_and_a_second_one_finds_nothing(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        await _library(world)
        report = await _pass(world)
        assert report.refused == []
        retired = {name: reason for name, state, reason in await _states(world) if state == "RETIRED"}
        assert set(retired) == {"twin-a", "twin-b", "failing", "unused"}
        assert retired["failing"] == "pruned: fails: 2 of 40 right; with 95% confidence under 30%"
        assert [a.name async for a in world.client.list_all("acme")] == ["useful"]
        (child,) = [a async for a in world.client.list_all()]
        merged = decode(await world.store.get(child.digest))
        # The mean, alike for each: by their use, the child would be the one that is asked most.
        assert np.allclose(merged.tensors["q_proj"], 0.505, atol=1e-4)
        assert await world.routed("my knee hurts") == [child.name]
        again = await _pass(world, rules=dataclasses.replace(RULES, unused_after_s=3600.0))
        assert (again.pruned, again.merged, again.refused) == ([], [], [])


async def test_a_lost_file_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        await _library(world)
        (twin,) = [a async for a in world.client.list_all() if a.name == "twin-a"]
        await world.store.delete(twin.digest)
        report = await _pass(world)
        assert report.merged == []
        assert {"failing", "unused"} <= {one.name for one in report.pruned}
        assert report.refused[0].startswith(f"{twin.adapter_id} cannot be compared: adapter file '{twin.digest}' was not found")


async def test_three_alike_become_one_and_what_was_read_once_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_router(tmp_path) as world:
        for name, value in (("a", 0.50), ("b", 0.51), ("c", 0.52), ("other", -0.9)):
            await world.register(KNEES, name=name, value=value)
        reads: list[str] = []
        get = world.store.get

        async def counted(digest: str) -> bytes:
            reads.append(digest)
            return await get(digest)

        with monkeypatch.context() as patched:
            patched.setattr(world.store, "get", counted)
            observing = Optimizer(world.client, world.store, RULES, lambda _: 0, 100, caution=Caution(mode="observe"))
            for _ in range(2):
                report = await observing.run_pass()
                assert frozenset("abc") in await _names(world, report.proposed)
        assert len(reads) == 4 + 3, "each for its sketch, and those that are near once more"
        rules = dataclasses.replace(RULES, unused_after_s=3600.0)
        assert (await _pass(world, rules=rules)).refused == []
        active = {adapter.name: adapter async for adapter in world.client.list_all()}
        assert set(active) == {"a", "other"}
        assert len(active["a"].parents) == 3
        assert np.allclose(decode(await get(active["a"].digest)).tensors["q_proj"], 0.51, atol=1e-3)


async def test_files_of_what_was_taken_away_are_archived_once_and_not_of_what_people_retired(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        await _library(world)
        by_hand = await world.register(MONEY, name="by-hand", value=0.1, modules=("o_proj",))
        await world.client.retire("public", by_hand.adapter_id, "its customer left")
        await _pass(world)
        assert (await _pass(world, archive_after_s=3600.0)).archived == 0
        assert (await _pass(world, archive_after_s=1e-6, mode="observe")).archived == 0
        later = Optimizer(world.client, world.store, RULES, lambda _: 0, 100, caution=Caution(archive_after_s=1e-6))
        assert (await later.run_pass()).archived == 4
        assert (await later.run_pass()).archived == 0
        retired = [a async for a in world.client.list_all(states=[common.ADAPTER_STATE_RETIRED])]
        assert {a.name for a in retired if a.archived_at_us} == {"failing", "unused", "twin-a", "twin-b"}
        assert await world.store.absent([a.digest for a in retired]) == set()


async def test_what_was_taken_away_long_ago_is_purged_and_what_people_retired_is_not(tmp_path: Path) -> None:
    async with running_router(tmp_path, purge_grace_s=0.0) as world:
        await _library(world)
        by_hand = await world.register(MONEY, name="by-hand", value=0.1, modules=("o_proj",))
        await world.client.retire("public", by_hand.adapter_id, "its customer left")
        assert {one.name for one in (await _pass(world)).pruned} == {"failing", "unused"}
        [pinned] = [a async for a in world.client.list_all(states=[common.ADAPTER_STATE_RETIRED]) if a.name == "failing"]
        await world.client.pin("public", pinned.adapter_id)
        later = Optimizer(world.client, world.store, RULES, lambda _: 0, 100, caution=Caution(purge_after_s=1e-6))
        assert len((await later.run_pass()).purged) == 3
        assert (await later.run_pass()).purged == []
        states = {name: state for name, state, _ in await _states(world)}
        assert (states["by-hand"], states["failing"]) == ("RETIRED", "RETIRED")
        purged = [a async for a in world.client.list_all(states=[common.ADAPTER_STATE_PURGED])]
        assert {a.name for a in purged} == {"unused", "twin-a", "twin-b"}
        assert not any(digest in str(path) for path in Path(world.store.location).rglob("*") for digest in [a.digest for a in purged])


async def test_counts_that_were_lost_prune_nobody(tmp_path: Path) -> None:
    """The broker's log is gone: the counts of the new one are a few of one job, and every other adapter was "not used of late"."""
    async with running_router(tmp_path) as world:
        await _library(world)
        began_us = time.time_ns() // 1000 + 3600 * 10**6  # an hour after they were registered
        lost = Optimizer(world.client, world.store, RULES, lambda _: began_us, 100)
        report = await lost.run_pass()
        assert (report.pruned, report.merged) == ([], [])


async def test_what_was_brought_back_stays_and_less_than_was_counted_is_refused(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        await _library(world)
        assert {one.name for one in (await _pass(world)).pruned} == {"failing", "unused"}
        [failing] = [a async for a in world.client.list_all(states=[common.ADAPTER_STATE_RETIRED]) if a.name == "failing"]
        await world.client.restore("public", failing.adapter_id)
        for _ in range(2):
            assert (await _pass(world)).pruned == []
        refused = await refusal_of(world.client, "public", failing.adapter_id, registry_pb2.AdapterStatistics(uses=3))
        assert refused.code == "FAILED_PRECONDITION"
        assert (await world.client.get(failing.adapter_id)).statistics.uses == 40


@pytest.mark.parametrize(
    "statistics",
    [
        registry_pb2.AdapterStatistics(uses=2**63 - 1, epoch="a"),
        registry_pb2.AdapterStatistics(uses=1, recent_uses=float("inf")),
        registry_pb2.AdapterStatistics(uses=1, recent_uses=float("nan")),
        registry_pb2.AdapterStatistics(uses=1, epoch="older"),
    ],
)
async def test_counts_that_nobody_can_have_counted_are_refused(tmp_path: Path, statistics: registry_pb2.AdapterStatistics) -> None:
    """Two of them would add up to more than travels, and no list that holds the adapter could be sent any more."""
    async with running_router(tmp_path) as world:
        made = await world.register(KNEES)
        other = await world.register(KNEES, name="other")
        good = registry_pb2.AdapterStatistics(uses=7)
        reports = [
            registry_pb2.ReportedStatistics(tenant="public", adapter_id=name, statistics=counts)
            for name, counts in ((new_adapter_id(), good), (made.adapter_id, statistics), (other.adapter_id, good))
        ]
        results = await world.client.report_statistics(reports)
        assert [one.code for one in results] == ["NOT_FOUND", "INVALID_ARGUMENT", ""], "the others are taken"
        assert results[1].message.startswith("statistics")
        assert [one.statistics.uses async for one in world.client.list_all()] == [0, 7]


async def test_a_deployment_that_fails_everything_retires_nothing(tmp_path: Path) -> None:
    """Ten adapters that did well; then every answer fails, whoever gives it, and some have hardly any other evidence."""
    async with running_router(tmp_path) as world:
        names = [f"a{number}" for number in range(10)]
        made = [await world.register(KNEES, name=name, value=0.1 * number - 0.5, modules=("q_proj",)) for number, name in enumerate(names)]
        now_us = time.time_ns() // 1000

        async def report(fresh_right: float) -> None:
            for number, adapter in enumerate(made):
                before = 2 if number == 3 else 40
                right = before * 9 // 10
                counts = registry_pb2.AdapterStatistics(
                    uses=before + 20,
                    outcomes=before + 20,
                    successes=right + int(20 * fresh_right),
                    recent_uses=before + 20,
                    recent_outcomes=before + 20,
                    recent_successes=right + 20 * fresh_right,
                    recent_at_us=now_us,
                    fresh_outcomes=20,
                    fresh_successes=20 * fresh_right,
                    last_used_at_us=now_us,
                )
                await report_one(world.client, "public", adapter.adapter_id, counts)

        await report(0.0)
        rules = dataclasses.replace(RULES, unused_after_s=3600.0)
        views = [view_of(facts_of(one, rules.half_life_s), "", rules.half_life_s, now_us) for one in await _all(world)]
        failed = [one.adapter.name for one in prunes(views, totals_of(views), rules)]
        assert failed == ["a3"], "without the others nobody would know better"
        optimizer = Optimizer(world.client, world.store, rules, lambda _: 0, 100)
        report_of = await optimizer.run_pass()
        assert (report_of.pruned, report_of.merged) == ([], [])
        assert optimizer.freezing.incident_tenants == {"public"}, "by which the counter sets aside what is said now"
        await report(1.0)  # it is over, and what failed is still in the counts
        assert (await optimizer.run_pass()).pruned == []
        assert optimizer.freezing.incident_tenants == set()


async def _all(world: RouterWorld) -> list[registry_pb2.Adapter]:
    return [one async for one in world.client.list_all()]


async def test_an_hour_has_room_for_so_many_changes_of_each_tenant_also_after_a_restart(tmp_path: Path) -> None:
    async with running_router(tmp_path) as world:
        for tenant in ("acme", "beta"):
            for number in range(3):
                made = await world.register(MONEY, tenant, name=f"failing-{number}", value=0.1 + number, modules=(f"k{number}_proj",))
                counts = registry_pb2.AdapterStatistics(
                    uses=40, outcomes=40, successes=1, recent_uses=40, recent_at_us=time.time_ns() // 1000
                )
                await report_one(world.client, tenant, made.adapter_id, counts)
        caution = Caution(changes_per_hour=2)
        for pruned, put_off in ((4, 2), (0, 2)):  # the second time by another worker
            report = await Optimizer(world.client, world.store, RULES, lambda _: 0, 100, caution=caution).run_pass()
            assert (len(report.pruned), report.put_off) == (pruned, put_off)
