"""`smoa optimizer`: what it did, why, and the way back, with a router, a worker and a broker that are real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from click.testing import CliRunner

from services.local import free_port
from services.optimizer.control.change_commands import CARRIED_OUT
from services.optimizer.control.commands import optimizer_group
from services.optimizer.control.report import days_of, lifecycle_of
from smoa.cli.names import PROTECTED
from smoa.errors import FailedPrecondition, InvalidArgument, NotFound
from smoa.events import CHANGES, DECISIONS, LIFECYCLE, OUTCOMES
from smoa.v1 import changes_pb2, registry_pb2
from smoa.v1 import common_pb2 as common
from tests.integration.router_support import KNEES, MONEY, RouterWorld, adapter_file, running_router
from tests.kafka_support import embedded_broker, read_all, until
from tests.stream_support import Worker, counted


class _World:
    def __init__(self, router: RouterWorld, kafka: str) -> None:
        self.router, self.kafka = router, kafka

    async def said(self, *arguments: str) -> str:
        where = {"SMOA_KAFKA_BOOTSTRAP": self.kafka, "SMOA_ROUTER": self.router.address, "COLUMNS": "80"}
        ran = await asyncio.to_thread(CliRunner().invoke, optimizer_group, arguments, env=where)
        if ran.exception is not None:
            raise ran.exception
        return ran.output

    async def told(self, events: int) -> None:
        async def there() -> bool:
            return len(await read_all(self.kafka, LIFECYCLE)) >= events

        await until(f"{events} lifecycle events", 20, there)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[_World]:
    async with embedded_broker(tmp_path) as kafka, running_router(tmp_path, kafka_bootstrap=kafka) as router:
        yield _World(router, kafka)


async def _merged(world: _World, share: float) -> tuple[list[registry_pb2.Adapter], registry_pb2.Adapter]:
    client = world.router.client
    parents = [await world.router.register(KNEES, name=name, value=value) for name, value in (("a", 0.5), ("b", 0.51))]
    ids = [parent.adapter_id for parent in parents]
    digest = await world.router.store.put(adapter_file(name="child", parents=tuple(ids)))
    return parents, await client.apply_merge("public", "m", digest, ids, "delta cosine 0.99", share, {"cosine": 0.99})


async def test_history_has_the_numbers_and_undo_brings_a_merge_back(world: _World) -> None:
    parents, child = await _merged(world, 0.0)
    other = await world.router.register(MONEY, name="other")
    await world.told(6)
    events = [json.loads(line) for line in (await world.said("history", parents[0].adapter_id, "--json")).splitlines()]
    assert {one["adapter_id"] for one in events} == {child.adapter_id, *(parent.adapter_id for parent in parents)}
    [merge] = [one for one in events if one["action"] == "LIFECYCLE_ACTION_MERGED"]
    assert merge["evidence"] == {"cosine": 0.99}
    assert other.adapter_id in await world.said("history")
    history = await world.said("history", "a")
    for adapter in (*parents, child):  # the name beside the whole id
        assert any(f"│ {adapter.name} " in line and adapter.adapter_id in line for line in history.splitlines())
    said = await world.said("undo", "a")
    back = ", ".join(f"{one.name} {one.adapter_id}" for one in parents)
    assert said == f"child {child.adapter_id} is retired; active again: {back}\n{PROTECTED}\n"
    active = {adapter.name async for adapter in world.router.client.list_all()}
    assert active == {"a", "b", "other"}
    with pytest.raises(FailedPrecondition, match=r"is neither retired, on trial nor the child of a merge"):
        await world.said("undo", other.adapter_id)


async def test_undo_restores_what_was_pruned_and_ends_a_trial(world: _World) -> None:
    _, child = await _merged(world, 0.2)
    other = await world.router.register(MONEY, name="other")
    await world.router.client.retire("public", other.adapter_id, "0 uses of late, under 10")
    assert await world.said("undo", other.adapter_id) == f"other is active again\n{PROTECTED}\n"
    assert (await world.said("undo", child.adapter_id)).startswith(f"child {child.adapter_id} is retired")
    assert (await world.router.client.get(child.adapter_id)).state == common.ADAPTER_STATE_RETIRED


async def test_undo_of_a_version_on_trial_leaves_both(world: _World) -> None:
    client, examples = world.router.client, [f"{one} again" for one in KNEES]
    older, younger = [await world.router.register(given, name="knees", value=0.5) for given in (KNEES, examples)]
    await client.propose_change("public", changes_pb2.CHANGE_KIND_SUPERSEDE, [younger.adapter_id, older.adapter_id], "of one name", {})
    listed = await world.said("changes")
    assert "supersede" in listed
    assert all(one.adapter_id in listed for one in (younger, older)), "by their names nobody could tell them apart"
    await client.try_version("public", younger.adapter_id, older.adapter_id, "of one name", 0.2)
    assert await world.said("undo", younger.adapter_id) == f"knees {younger.adapter_id} is active beside the older one\n"
    assert {(await client.get(one.adapter_id)).state for one in (younger, older)} == {common.ADAPTER_STATE_ACTIVE}


async def test_a_report_is_written_of_a_period(world: _World, tmp_path: Path) -> None:
    parents, child = await _merged(world, 0.2)
    for place in range(5):
        await world.router.client.report(await world.router.client.route(KNEES[place % 3], base_model="base-a"), success=place > 0)
    await world.router.client.settle_trial("public", child.adapter_id, promote=True, reason=f"as good: in place of {parents[0].adapter_id}")
    other = await world.router.register(MONEY, name="other")
    await world.router.client.retire("public", other.adapter_id, "pruned: fails: 0 of 20 right")

    async def told() -> bool:
        pruned = [one for one in await lifecycle_of(world.kafka) if one.adapter_id == other.adapter_id and one.reason.startswith("pruned")]
        return bool(pruned) and sum(day.outcomes for day in await days_of(world.kafka, "", 0)) >= 5

    await until("the prune and the outcomes", 20, told)
    numbers = json.loads(await world.said("report", "--json", "--since", "1h"))
    assert {name: numbers[name] for name in ("pruned", "merged_away", "merges", "undone")} == {
        "pruned": 1,
        "merged_away": 2,
        "merges": 1,
        "undone": 0,
    }
    assert numbers["outcomes_first_half"] + numbers["outcomes_last_half"] == 5
    assert numbers["successes_first_half"] + numbers["successes_last_half"] == 4
    page = tmp_path / "page.html"
    said = await world.said("report", "--since", "1h", "-o", str(page))
    assert said == f"wrote {page}: 1 pruned, 2 merged into 1, 0 superseded, 0 undone\n"
    written = page.read_text()
    assert "as good: in place of a" in written
    assert "fails: 0 of 20 right" in written
    assert json.loads(await world.said("report", "--json", "--since", "2099-01-01"))["pruned"] == 0
    history = [json.loads(line) for line in (await world.said("history", "--json", "--since", "1h")).splitlines()]
    assert other.adapter_id in {one["adapter_id"] for one in history}
    assert await world.said("history", "--json", "--since", "2099-01-01") == ""


async def test_people_see_what_is_planned_and_say_yes_or_no(world: _World) -> None:
    client, adapters = world.router.client, [await world.router.register(KNEES, name=name) for name in ("left", "right")]
    prune = changes_pb2.CHANGE_KIND_PRUNE
    assert await world.said("changes") == "no change is planned\n"
    with pytest.raises(InvalidArgument, match="change: is not named; name changes, or give --all alone"):
        await world.said("approve")
    assert await world.said("approve", "--all") == "nothing is proposed\n"
    first, second = [await client.propose_change("public", prune, [one.adapter_id], "not needed", {"uses": 1.0}) for one in adapters]
    listed = await world.said("changes")
    assert all(word in listed for word in (first.change_id, "prune", "left", "right", "proposed", "smoa optimizer approve CHANGE"))
    assert "2 changes of public are proposed" in await world.said("status")
    assert await world.said("approve", first.change_id.lower(), "--reason", "it is old") == f"approved: {first.change_id}\n{CARRIED_OUT}\n"
    assert await world.said("reject", second.change_id[:20], "--reason", "not now") == f"refused: {second.change_id}\n"
    assert f"{first.change_id}" in await world.said("reject", "--all")
    with pytest.raises(NotFound):
        await world.said("reject", "ZZZZ")
    told = [json.loads(line) for line in (await world.said("changes", "--all", "--json")).splitlines()]
    assert {one["change_id"]: one["state"] for one in told}[second.change_id] == "CHANGE_STATE_REFUSED"

    async def there() -> bool:
        events = [changes_pb2.PlannedChange.FromString(one.value or b"") for one in await read_all(world.kafka, CHANGES)]
        steps = [one.steps[-1].reason for one in events if one.change_id == second.change_id]
        return steps == ["not needed", "not now"]

    await until("a chat bot hears of both", 20, there)


async def test_a_freeze_is_said_shown_and_taken_back(world: _World) -> None:
    assert await world.said("freeze", "--reason", "a migration") == "frozen: public; let it go on with `smoa optimizer thaw`\n"
    everywhere = await world.said("freeze", "--all-tenants", "--base-model", "base-a")
    assert everywhere == "frozen: every tenant, base model base-a; let it go on with `smoa optimizer thaw`\n"
    status = await world.said("status")
    assert "a migration" in status
    assert "every tenant, base model base-a" in status
    assert {one["reason"] for one in json.loads(await world.said("status", "--json"))["freezes"] if "reason" in one} == {"a migration"}
    assert await world.said("thaw") == "thawed: public\n"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.said("thaw")
    assert refused.value.details() == "freeze: there is not a freeze of public; see `smoa optimizer status`"


async def test_status_explain_and_metrics_show_counts_views_and_trials(world: _World, tmp_path: Path) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    worker = Worker(world.kafka, tmp_path, "worker", SMOA_OPTIMIZER_METRICS_ADDRESS=metrics)
    try:
        parents, child = await _merged(world, 0.2)
        assert "nothing of public is on trial" not in await world.said("status")
        decisions = [
            await world.router.client.route("my knee hurts when I climb stairs", base_model="base-a", task_id="a") for _ in range(12)
        ]
        for decision in decisions:
            await world.router.client.report(decision, success=True)

        async def all_counted() -> bool:
            return sum(outcomes for _, outcomes, _ in (await counted(world.kafka)).values()) >= len(decisions)

        await until("the counts", 60, all_counted)
        status = json.loads(await world.said("status", "--json"))
        assert [one["adapterId"] for one in status["canaries"]] == [child.adapter_id]
        assert status["dead_letters"] == 0
        assert child.adapter_id in await world.said("status")
        named = {option.adapter_id for decision in decisions for option in decision.adapters} | {child.adapter_id}  # which is compared
        used = max(parents, key=lambda parent: sum(parent.adapter_id in {o.adapter_id for o in d.adapters} for d in decisions))
        measured: dict[str, str] = {}

        async def all_joined() -> bool:  # what an event brings is in Kafka a moment before the event is done
            text = await asyncio.to_thread(lambda: urlopen(f"http://{metrics}/metrics", timeout=5).read().decode())
            measured.update(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
            joined = float(measured['smoa_optimizer_events_total{stage="join"}']) >= 2 * len(decisions)
            return joined and float(measured["smoa_optimizer_adapters"]) >= len(named)

        await until("every event joined", 20, all_joined)
        assert float(measured['smoa_optimizer_events_total{stage="join"}']) == 2 * len(decisions)
        assert [float(measured[f'smoa_optimizer_lag_messages{{topic="{topic}"}}']) for topic in (DECISIONS, OUTCOMES)] == [0, 0]
        assert float(measured["smoa_optimizer_open_decisions"]) == len(decisions)
        assert float(measured["smoa_optimizer_adapters"]) == len(named)
        explained = json.loads(await world.said("explain", used.adapter_id, "--json"))
        tally = explained["counts"]["tenants"]["public"]
        assert int(tally["uses"]) == int(tally["successes"]) == int(explained["counts"]["tasks"]["a"]["uses"]) > 0
        assert tally["recentUses"] == pytest.approx(float(tally["uses"]), rel=0.01)
        shown = await world.said("explain", used.adapter_id)
        assert f"{used.name} {used.adapter_id} is active" in shown
        assert "100% of" in shown
    finally:
        worker.stop()
