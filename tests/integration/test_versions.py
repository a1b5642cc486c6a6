"""Two adapters of one name: the better one stays, by what callers said of both at the same time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from services.optimizer.control.caution import Caution
from services.optimizer.control.passes import Optimizer
from services.optimizer.policy.library_policy import Rules
from services.optimizer.policy.trial import TrialRules
from smoa.v1 import changes_pb2, registry_pb2
from smoa.v1 import common_pb2 as common
from tests.integration.canary_support import Callers
from tests.integration.router_support import KNEES, MONEY, RouterWorld, refused, running_router

pytestmark = pytest.mark.usefixtures("catalogue")

RULES = Rules(min_age_s=0.0, min_merge_uses=0.0)
TRIAL = TrialRules(margin=0.3, parent_margin=0.3)
OTHER_KNEES = [f"my knee hurts when I climb the stairs at {number}" for number in range(5)]
Pair = tuple[registry_pb2.Adapter, registry_pb2.Adapter]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path) as world:
        yield world


async def _versions(world: RouterWorld, examples: list[str] = OTHER_KNEES) -> Pair:
    """(younger, older), of one name."""
    older = await world.register(KNEES, name="knees", value=0.5)
    return await world.register(examples, name="knees", value=0.5001, version=2), older


def _optimizer(world: RouterWorld, callers: Callers | None = None, trial: TrialRules = TRIAL) -> Optimizer:
    caution = Caution(canary_share=0.2, trial=trial)
    counts = callers.on_trial.get if callers else lambda _: None
    return Optimizer(world.client, world.store, RULES, lambda _: 0, 100, counts=counts, caution=caution)


async def _state(world: RouterWorld, adapter: registry_pb2.Adapter) -> str:
    return common.AdapterState.Name((await world.client.get(adapter.adapter_id)).state).removeprefix("ADAPTER_STATE_")


async def _change(world: RouterWorld) -> tuple[str, list[str]]:
    """(kind, states of its steps) of the only change."""
    [change] = [one async for one in world.client.list_changes()]
    steps = [changes_pb2.ChangeState.Name(one.state).removeprefix("CHANGE_STATE_").lower() for one in change.steps]
    return changes_pb2.ChangeKind.Name(change.kind).removeprefix("CHANGE_KIND_").lower(), steps


@pytest.mark.parametrize(("deserved", "younger_is", "older_is"), [(0.1, "RETIRED", "ACTIVE"), (0.97, "ACTIVE", "RETIRED")])
async def test_the_better_version_stays(world: RouterWorld, deserved: float, younger_is: str, older_is: str) -> None:
    younger, older = await _versions(world)
    callers = Callers(world, {younger.adapter_id: deserved})
    optimizer = _optimizer(world, callers)
    report = await optimizer.run_pass()
    assert (report.tried, report.merged) == ([(younger.adapter_id, older.adapter_id)], []), "alike as they are, they are not merged"
    assert await _state(world, younger) == "CANARY"
    assert (await optimizer.run_pass()).proposed == []
    for _ in range(200):
        for _ in range(20):
            await callers.ask()
        await callers.report()
        if await optimizer.trials.judge():
            break
    assert (await _state(world, younger), await _state(world, older)) == (younger_is, older_is)
    assert await _change(world) == ("supersede", ["proposed", "trial", "done" if older_is == "RETIRED" else "undone"])
    gone = older if older_is == "RETIRED" else younger
    reason = (await world.client.get(gone.adapter_id)).state_reason
    began = f"superseded by {younger.adapter_id}: as good" if gone is older else "rolled back: worse: in place of "
    assert reason.startswith(began), reason
    await world.client.restore("public", gone.adapter_id)
    assert (await _change(world))[1][-1] == "undone"
    assert (await _optimizer(world).run_pass()).tried == [], "whoever brought it back wants both"


async def test_what_is_not_shown_by_the_deadline_leaves_both_as_they_were(world: RouterWorld) -> None:
    younger, older = await _versions(world)
    optimizer = _optimizer(world, trial=TrialRules(max_age_s=0.0))
    await optimizer.run_pass()
    [said] = await optimizer.trials.judge()
    assert said.startswith("not shown")
    assert (await _state(world, younger), await _state(world, older)) == ("ACTIVE", "ACTIVE")
    assert (await world.client.get(younger.adapter_id)).state_reason.startswith(f"stays beside {older.adapter_id}: not shown")
    assert await _change(world) == ("supersede", ["proposed", "trial", "undone"])
    assert (await _optimizer(world).run_pass()).tried == []
    assert set(await world.routed("my knee hurts when I climb stairs 1")) == {"knees"}


async def test_a_worker_that_died_after_the_trial_began_leaves_what_another_finds_again(world: RouterWorld) -> None:
    younger, older = await _versions(world)
    planned = await world.client.propose_change(
        "public", changes_pb2.CHANGE_KIND_SUPERSEDE, [younger.adapter_id, older.adapter_id], "the same name", {}
    )
    await world.client.begin_change("public", planned.change_id, 100)
    await world.client.try_version("public", younger.adapter_id, older.adapter_id, "the same name", 0.2)
    again = await world.client.try_version("public", younger.adapter_id, older.adapter_id, "the same name", 0.2)
    assert again.state == common.ADAPTER_STATE_CANARY
    optimizer = _optimizer(world)
    await optimizer.run_pass()
    assert len(optimizer.trials) == 1
    assert await _change(world) == ("supersede", ["proposed", "trial"])
    assert list(again.canary_baseline) == [older.adapter_id]
    for _ in range(2):
        made = await world.client.settle_trial("public", younger.adapter_id, promote=True, reason="better")
        assert made.state == common.ADAPTER_STATE_ACTIVE
    assert await _state(world, older) == "RETIRED"


async def test_of_one_name_and_other_queries_both_stay_and_it_is_said_once(world: RouterWorld) -> None:
    younger, older = await _versions(world, MONEY)
    optimizer = _optimizer(world)
    [said] = (await optimizer.run_pass()).refused
    assert "older_id: was made for other queries (cosine " in said
    assert await _change(world) == ("supersede", ["proposed", "refused"])
    assert (await optimizer.run_pass()).refused == []
    assert (await _state(world, younger), await _state(world, older)) == ("ACTIVE", "ACTIVE")


async def test_a_trial_of_versions_that_cannot_be(world: RouterWorld) -> None:
    younger, older = await _versions(world)
    try_version = world.client.try_version

    async def said(adapter_id: str, older_id: str, share: float = 0.2) -> tuple[str, str]:
        found = await refused(try_version("public", adapter_id, older_id, "because", share))
        return found[0], found[1].partition(" ")[0]

    assert await said(younger.adapter_id, older.adapter_id, share=0.6) == ("INVALID_ARGUMENT", "canary_share:")
    assert await said(younger.adapter_id, younger.adapter_id) == ("INVALID_ARGUMENT", "older_id:")
    assert await said(younger.adapter_id, "01J9ZC3B5T8QH7M2K4N6P0R1SV") == ("NOT_FOUND", "adapter")
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await try_version("acme", younger.adapter_id, older.adapter_id, "because", 0.2)
    settled = await refused(world.client.settle_trial("public", younger.adapter_id, promote=True, reason="of no trial"))
    assert settled[0] == "FAILED_PRECONDITION"
    await world.client.pin("public", older.adapter_id)
    assert await said(younger.adapter_id, older.adapter_id) == ("FAILED_PRECONDITION", "adapter:")
    await world.client.pin("public", older.adapter_id, pinned=False)
    await try_version("public", younger.adapter_id, older.adapter_id, "because", 0.2)
    third = await world.register([*OTHER_KNEES, "my knee hurts"], name="knees", value=0.6)
    assert await said(third.adapter_id, older.adapter_id) == ("FAILED_PRECONDITION", "parent:")
    await world.client.retire("public", older.adapter_id, "it is the worse one")
    await world.client.settle_trial("public", younger.adapter_id, promote=True, reason="better")
    assert (await world.client.get(older.adapter_id)).state_reason == "it is the worse one"
