"""Changes that are planned, and freezes, over every catalogue: each goes on from what is written, and what was refused stays so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qdrant_client import AsyncQdrantClient

from services.router.catalogue import planned_changes
from services.router.catalogue.changes import now_us
from services.router.catalogue.freezes import Freezes
from services.router.catalogue.planned_changes import HOUR_US, MAX_STEPS, MOVES, PlannedChange, PlannedChanges, change_id_of
from services.router.library import Library
from smoa.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from tests.contract.test_library import DIMENSION, record, vector
from tests.library_support import qdrant_library, sqlite_library

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]
TWINS = [record(name="a"), record(name="b")]
IDS = [one.adapter_id for one in TWINS]


class Planner:
    """Over a library with two adapters of `public`, and what was told."""

    def __init__(self, library: Library) -> None:
        self.library, self.told = library, list[PlannedChange]()
        self.freezes = Freezes(library.catalogue)
        self.again()

    def again(self) -> None:
        """As another router, or after a restart."""
        self.planned = PlannedChanges(self.library.catalogue, self.freezes, self.told.append, lambda: None)

    async def prune(self, place: int = 0) -> PlannedChange:
        return await self.planned.propose("public", "prune", [IDS[place]], "", "not needed", {"uses": 1.0})

    async def merge(self) -> PlannedChange:
        return await self.planned.propose("public", "merge", IDS, "merge-ab", "alike", {"cosine": 0.99})


@pytest.fixture(params=["sqlite", "qdrant"])
async def planner(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Planner]:
    """Over SQLite and Qdrant: what it needs of a catalogue is in `test_library.py`, for all of them."""
    if request.param == "sqlite":
        library = await sqlite_library(tmp_path / "index", DIMENSION)
    else:
        library = await qdrant_library(AsyncQdrantClient(":memory:"), DIMENSION)
    await library.catalogue.upsert([(one, vector(place)) for place, one in enumerate(TWINS)])
    yield Planner(library)
    await library.close()


async def test_a_change_goes_on_from_what_is_written(planner: Planner) -> None:
    made = await planner.merge()
    assert (made.state, made.adapter_ids, made.steps[0].evidence) == ("proposed", tuple(IDS), {"cosine": 0.99})
    await planner.planned.begin("public", made.change_id, 10)
    await planner.planned.advance("public", made.change_id, "gated", "passed", {"loss": 0.01}, "d" * 64)
    planner.again()
    found = await planner.planned.get("public", made.change_id)
    assert (found.state, found.child_digest, found.begun_at_us > 0) == ("gated", "d" * 64, True)
    assert await planner.merge() == found, "proposed again it is the same"
    await planner.planned.happened("public", made.change_id, "trial", "on trial", {})
    await planner.planned.happened("public", made.change_id, "trial", "again", {})
    await planner.planned.happened("public", made.change_id, "undone", "worse", {"child_successes": 2.0})
    assert [one.state for one in (await planner.merge()).steps] == ["proposed", "gated", "trial", "undone"]
    assert [one.state for one in planner.told] == ["proposed", "proposed", "gated", "trial", "undone"]
    with pytest.raises(FailedPrecondition, match="is undone, so it cannot begin"):
        await planner.planned.begin("public", made.change_id, 10)
    with pytest.raises(FailedPrecondition, match="is undone, so it cannot be gated"):
        await planner.planned.advance("public", made.change_id, "gated", "", {})
    await planner.planned.happened("public", change_id_of("prune", TWINS[0]), "done", "by hand", {})
    assert (await planner.planned.page("public", (), 10, ""))[0] == [await planner.merge()], "nothing is written of what was not planned"


async def test_a_no_is_remembered_and_a_yes_takes_it_back(planner: Planner) -> None:
    made = await planner.prune()
    await planner.planned.begin("public", made.change_id, 1)
    refused = await planner.planned.decide("public", made.change_id, approve=False, reason="it is for Christmas")
    assert (refused.state, refused.begun_at_us, refused.steps[-1].reason) == ("refused", 0, "it is for Christmas")
    assert (await planner.prune()).state == "refused"
    assert await planner.planned.decide("public", made.change_id, approve=False, reason="no") == await planner.prune()
    approved = await planner.planned.decide("public", made.change_id, approve=True, reason="after all")
    assert (approved.state, approved.approved) == ("proposed", True)
    assert await planner.planned.decide("public", made.change_id, approve=True, reason="yes") == await planner.prune()
    other = await planner.prune(1)
    assert not other.approved
    assert (await planner.planned.decide("public", other.change_id, approve=True, reason="")).approved
    await planner.planned.happened("public", made.change_id, "done", "retired", {})
    with pytest.raises(FailedPrecondition, match="nothing to decide; take it back with `smoa optimizer undo`"):
        await planner.planned.decide("public", made.change_id, approve=False, reason="")


async def test_what_was_withdrawn_comes_again(planner: Planner) -> None:
    made = await planner.prune()
    await planner.planned.advance("public", made.change_id, "withdrawn", "it is used again", {})
    again = await planner.prune()
    assert ([one.state for one in again.steps], again.change_id) == (["proposed"], made.change_id)


async def test_of_many_steps_the_first_and_the_last_are_kept(planner: Planner) -> None:
    made = await planner.prune()
    for turn in range(40):
        await planner.planned.decide("public", made.change_id, approve=turn % 2 == 1, reason=f"turn {turn}")
    steps = (await planner.prune()).steps
    assert (len(steps), steps[0].reason, steps[-1].reason) == (MAX_STEPS, "not needed", "turn 39")


async def test_an_hour_has_room_for_so_many_of_a_tenant(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = await planner.prune(0), await planner.prune(1)
    begun = await planner.planned.begin("public", first.change_id, 1)
    planner.again()
    with pytest.raises(ResourceExhausted, match="1 changes of public have begun within the hour; wait, or raise"):
        await planner.planned.begin("public", second.change_id, 1)
    assert (await planner.planned.begin("public", first.change_id, 1)).begun_at_us == begun.begun_at_us, "it keeps its own place"
    await planner.planned.advance("public", first.change_id, "refused", "the gate", {})
    await planner.planned.begin("public", second.change_id, 1)
    monkeypatch.setattr(planned_changes, "now_us", lambda: now_us() + HOUR_US + 1)
    third = await planner.merge()
    assert (await planner.planned.begin("public", third.change_id, 1)).begun_at_us


async def test_two_routers_give_a_place_once(planner: Planner) -> None:
    changes = [await planner.prune(0), await planner.prune(1), await planner.merge()]
    found = await asyncio.gather(
        *(planner.planned.begin("public", one.change_id, 2) for one in changes for _ in range(2)), return_exceptions=True
    )
    refused = [one for one in found if isinstance(one, ResourceExhausted)]
    begun = {one.change_id for one in found if isinstance(one, PlannedChange)}
    assert (len(begun), len(refused)) == (2, 2), found


async def test_a_freeze_holds_what_it_is_of(planner: Planner) -> None:
    made = await planner.prune()
    for tenant, model, holds in (
        ("public", "", True),
        ("public", "base-a", True),
        (None, "base-a", True),
        (None, "", True),
        ("acme", "", False),
        (None, "base-b", False),
    ):
        await planner.freezes.freeze(tenant, model, "a migration")
        if holds:
            with pytest.raises(FailedPrecondition, match=r"is held: a freeze of .* \(a migration\); thaw it with"):
                await planner.planned.begin("public", made.change_id, 10)
            assert [one.reason for one in await planner.freezes.all("public")] == ["a migration"]
        await planner.freezes.thaw(tenant, model)
    assert (await planner.planned.begin("public", made.change_id, 10)).begun_at_us
    with pytest.raises(FailedPrecondition, match="there is not a freeze of public; see"):
        await planner.freezes.thaw("public", "")


async def test_an_incident_is_thawed_by_a_person_until_it_is_over(planner: Planner) -> None:
    first = await planner.freezes.freeze("public", "", "everything fails", incident=True)
    assert await planner.freezes.holding("public", ["base-a"])
    await planner.freezes.thaw("public", "")
    assert await planner.freezes.holding("public", ["base-a"]) is None
    seen = await planner.freezes.freeze("public", "", "everything still fails", incident=True)
    assert (seen.thawed, seen.created_at_us, seen.seen_at_us > first.seen_at_us) == (True, first.created_at_us, True)
    assert await planner.freezes.holding("public", ["base-a"]) is None
    await planner.freezes.thaw("public", "", incident=True)
    assert await planner.freezes.all(None) == []
    await planner.freezes.thaw("public", "", incident=True)
    by_hand = await planner.freezes.freeze("public", "", "by hand")
    assert await planner.freezes.freeze("public", "", "an incident beside it", incident=True) == by_hand
    await planner.freezes.thaw("public", "", incident=True)
    assert await planner.freezes.all(None) == [by_hand], "the end of an incident takes nothing from what a person said"


async def test_pages_are_of_a_tenant_and_of_states(planner: Planner) -> None:
    theirs = record(tenant="acme", name="c")
    await planner.library.catalogue.upsert([(theirs, vector(9))])
    made = [await planner.prune(0), await planner.prune(1)]
    made.append(await planner.planned.propose("acme", "prune", [theirs.adapter_id], "", "x", {}))
    await planner.planned.decide("public", made[0].change_id, approve=False, reason="")
    by_id = sorted(one.change_id for one in made)
    first, token = await planner.planned.page(None, (), 2, "")
    second, none = await planner.planned.page(None, (), 2, token)
    assert ([one.change_id for one in (*first, *second)], none) == (by_id, "")
    assert [one.change_id for one in (await planner.planned.page("acme", (), 10, ""))[0]] == [made[2].change_id]
    refused, _ = await planner.planned.page(None, ("refused", "undone"), 10, "")
    assert [one.change_id for one in refused] == [made[0].change_id]
    assert [one.change_id for one in (await planner.planned.page("public", ("proposed",), 10, ""))[0]] == [made[1].change_id]
    with pytest.raises(InvalidArgument, match="belongs to another listing"):
        await planner.planned.page("public", (), 2, token)


async def test_bad_proposals_are_refused(planner: Planner) -> None:
    planned = planner.planned
    with pytest.raises(InvalidArgument, match="adapter_ids"):
        await planned.propose("public", "prune", IDS, "", "two", {})
    with pytest.raises(InvalidArgument, match="adapter_ids"):
        await planned.propose("public", "merge", IDS[:1], "m", "one", {})
    with pytest.raises(InvalidArgument, match="merge_id"):
        await planned.propose("public", "merge", IDS, "", "none", {})
    with pytest.raises(InvalidArgument, match="is not a ULID"):
        await planned.propose("public", "prune", ["x"], "", "", {})
    with pytest.raises(NotFound):
        await planned.propose("acme", "prune", IDS[:1], "", "not theirs", {})
    with pytest.raises(InvalidArgument, match="is not said but done"):
        await planned.advance("public", (await planner.prune()).change_id, "done", "", {})
    with pytest.raises(NotFound):
        await planned.get("acme", (await planner.prune()).change_id)
    assert set(MOVES) == set(planned_changes.STATES)
