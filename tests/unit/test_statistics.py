"""Counting: everything once, in whatever order and however often it comes."""

from __future__ import annotations

from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.statistics import (
    MAX_CLAIMS,
    Counts,
    Effect,
    Joined,
    Source,
    TenantMismatchError,
    Verdict,
    count_effect,
    count_usage,
    join_decision,
    join_outcome,
)

ADAPTERS = (("a", 0.75), ("b", 0.25))
D, D2 = Source("decisions", 0, 1), Source("decisions", 0, 2)
J, J2 = Source("outcomes", 0, 1), Source("outcomes", 0, 2)


def test_decision_then_outcome() -> None:
    state, used = join_decision(None, "t", ADAPTERS, D, 5.0)
    assert used == [Effect("a", "t", 0.75, True, None), Effect("b", "t", 0.25, True, None)]
    state, judged = join_outcome(state, "t", True, J, 6.0)
    assert judged == [Effect("a", "t", 0.75, False, True), Effect("b", "t", 0.25, False, True)]
    assert state == Joined("t", ADAPTERS, D, {"t": Verdict(True, J)}, early=False, first_seen_s=5.0)


def test_outcome_then_decision() -> None:
    state, nothing = join_outcome(None, "t", False, J, 5.0)
    assert nothing == []
    state, both = join_decision(state, "t", ADAPTERS, D, 6.0)
    assert both == [Effect("a", "t", 0.75, True, False), Effect("b", "t", 0.25, True, False)]
    assert state == Joined("t", ADAPTERS, D, {"t": Verdict(False, J)}, early=True, first_seen_s=5.0)


def test_another_record_of_the_same_decision_or_outcome_changes_nothing() -> None:
    state, _ = join_decision(None, "t", ADAPTERS, D, 5.0)
    state, _ = join_outcome(state, "t", True, J, 5.0)
    assert join_decision(state, "t", (("z", 1.0),), D2, 9.0) == (state, [])
    assert join_outcome(state, "t", False, J2, 9.0) == (state, [])


def test_a_replayed_record_has_the_same_effects_again() -> None:
    state, used = join_decision(None, "t", ADAPTERS, D, 5.0)
    state, judged = join_outcome(state, "t", True, J, 5.0)
    assert join_decision(state, "t", ADAPTERS, D, 9.0) == (state, used)
    assert join_outcome(state, "t", True, J, 9.0) == (state, judged)


def test_an_early_verdict_travels_with_the_decision_in_a_replay_too() -> None:
    state, _ = join_outcome(None, "t", True, J, 5.0)
    state, both = join_decision(state, "t", ADAPTERS, D, 6.0)
    assert join_outcome(state, "t", True, J, 7.0) == (state, [])
    assert join_decision(state, "t", ADAPTERS, D, 7.0) == (state, both)


def test_repeated_early_outcome_keeps_the_first_verdict() -> None:
    state, _ = join_outcome(None, "t", True, J, 5.0)
    assert join_outcome(state, "t", False, J2, 6.0) == (state, [])


def test_outcome_of_another_tenant_is_an_error() -> None:
    state, _ = join_decision(None, "t", ADAPTERS, D, 5.0)
    with pytest.raises(TenantMismatchError, match=r"^outcome of tenant 'u' for a decision of another tenant$"):
        join_outcome(state, "u", True, J, 6.0)


def test_early_outcome_of_another_tenant_is_not_counted() -> None:
    state, _ = join_outcome(None, "u", True, J, 5.0)
    state, effects = join_decision(state, "t", ADAPTERS, D, 6.0)
    assert [effect.success for effect in effects] == [None, None]
    assert len(join_outcome(state, "t", True, J2, 7.0)[1]) == 2


def test_early_outcome_of_another_tenant_does_not_displace_the_owners() -> None:
    state, _ = join_outcome(None, "u", False, J, 5.0)
    state, _ = join_outcome(state, "t", True, J2, 5.5)
    _, effects = join_decision(state, "t", ADAPTERS, D, 6.0)
    assert [effect.success for effect in effects] == [True, True]


def test_claims_on_a_decision_that_has_not_come_are_bounded() -> None:
    state: Joined | None = None
    for number in range(MAX_CLAIMS):
        state, _ = join_outcome(state, f"u{number}", True, J, 5.0)
    with pytest.raises(TenantMismatchError, match=r"4 other tenants claim$"):
        join_outcome(state, "t", True, J2, 5.0)


@pytest.mark.parametrize(
    "state", [Joined(), Joined("t", ADAPTERS, D, {}, False, 1.5), Joined("t", (), D, {"t": Verdict(True, J)}, True, 0.0)]
)
def test_joined_round_trip(state: Joined) -> None:
    assert Joined.decode(state.encode()) == state


def test_counts_round_trip() -> None:
    counts = Counts(1, 2, 3, 4, 5, "t", {"x:0": 7})
    assert Counts.decode(counts.encode()) == counts


def test_emission_is_counted_once() -> None:
    source = Source("decisions", 2, 7)
    counts = count_effect(None, "t", source, True, True)
    assert counts == Counts(1, 1, 1, 0, 0, "t", {"decisions:2": 7})
    assert count_effect(counts, "t", source, True, True) is None
    assert count_effect(counts, "t", Source("decisions", 2, 6), True, None) is None
    assert count_effect(counts, "t", Source("decisions", 1, 6), False, False) == Counts(
        1, 2, 1, 0, 0, "t", {"decisions:2": 7, "decisions:1": 6}
    )


def test_usage_is_counted_once() -> None:
    counts = count_usage(None, "t", "p", 1, 10)
    assert counts == Counts(generations=1, tokens=10, tenant="t", applied={"usage:p": 1})
    assert count_usage(counts, "t", "p", 1, 10) is None
    assert count_usage(counts, "t", "q", 1, 5) == Counts(generations=2, tokens=15, tenant="t", applied={"usage:p": 1, "usage:q": 1})


Record: TypeAlias = tuple[bool, int, bool]  # (is a decision, number of the decision, verdict)


def _used_by(number: int) -> tuple[tuple[str, float], ...]:
    return tuple((name, 0.5) for bit, name in enumerate("abc") if (number + 1) >> bit & 1)


class _World:
    """Two topics of two partitions, the join's table, and the counter behind it."""

    def __init__(self, logs: dict[tuple[bool, int], list[Record]]) -> None:
        self.logs = logs
        self.joins: dict[int, Joined] = {}
        self.counts: dict[str, Counts] = {}

    def process(self, lane: tuple[bool, int], offset: int, repeats: int = 1) -> None:
        """State first, then the emissions, `repeats` times: 0 is a crash between the two."""
        is_decision, number, success = self.logs[lane][offset]
        state = self.joins.get(number)
        source = Source("decisions" if is_decision else "outcomes", lane[1], offset)
        if is_decision:
            after, effects = join_decision(state, "t", _used_by(number), source, 0.0)
        else:
            after, effects = join_outcome(state, "t", success, source, 0.0)
        self.joins[number] = Joined.decode(after.encode())
        for _ in range(repeats):
            for effect in effects:
                counts = count_effect(self.counts.get(effect.adapter_id), effect.tenant, source, effect.used, effect.success)
                if counts is not None:
                    self.counts[effect.adapter_id] = Counts.decode(counts.encode())

    def totals(self) -> dict[str, tuple[int, int, int]]:
        return {name: (counts.uses, counts.outcomes, counts.successes) for name, counts in self.counts.items()}


def _truth(verdicts: list[bool | None]) -> dict[str, tuple[int, int, int]]:
    totals: dict[str, tuple[int, int, int]] = {}
    for number, verdict in enumerate(verdicts):
        for name, _ in _used_by(number):
            uses, outcomes, successes = totals.get(name, (0, 0, 0))
            totals[name] = (uses + 1, outcomes + (verdict is not None), successes + (verdict is True))
    return totals


def _draw_world(data: st.DataObject) -> tuple[_World, list[bool | None]]:
    verdicts = data.draw(st.lists(st.sampled_from([None, True, False]), min_size=1, max_size=6))
    records: list[Record] = [(True, number, False) for number in range(len(verdicts))]
    records += [(False, number, verdict) for number, verdict in enumerate(verdicts) if verdict is not None]
    again = data.draw(st.lists(st.sampled_from(records), max_size=5))
    logs: dict[tuple[bool, int], list[Record]] = {(kind, partition): [] for kind in (True, False) for partition in (0, 1)}
    for record in data.draw(st.permutations(records + again)):
        logs[record[0], record[1] % 2].append(record)
    return _World(logs), verdicts


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_any_interleaving_with_repeats_and_replays_counts_the_truth(data: st.DataObject) -> None:
    world, verdicts = _draw_world(data)
    at = dict.fromkeys(world.logs, 0)
    replays = 4
    while open_lanes := [lane for lane, log in world.logs.items() if at[lane] < len(log)]:
        lane = data.draw(st.sampled_from(open_lanes))
        world.process(lane, at[lane], repeats=data.draw(st.integers(1, 2)))
        at[lane] += 1
        if replays and data.draw(st.integers(0, 5)) == 0:
            replays -= 1
            back = data.draw(st.sampled_from(list(at)))
            at[back] = data.draw(st.integers(0, at[back]))
    assert world.totals() == _truth(verdicts)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_crash_anywhere_and_a_replay_in_any_order_of_lanes_counts_the_truth(data: st.DataObject) -> None:
    """Up to some point everything is done; a batch after it has its state durable for some records, its emissions for none or a
    prefix of each lane; then every lane is replayed from that point, in another order of lanes.
    """
    world, verdicts = _draw_world(data)
    lanes = data.draw(st.permutations([lane for lane, log in world.logs.items() for _ in log]))
    steps = [(lane, list(lanes[:index]).count(lane)) for index, lane in enumerate(lanes)]
    kept = data.draw(st.integers(0, len(steps)))
    crashed = data.draw(st.integers(kept, len(steps)))
    for lane, offset in steps[:kept]:
        world.process(lane, offset)
    emitted = data.draw(st.integers(kept, crashed))
    for index, (lane, offset) in enumerate(steps[kept:crashed], kept):
        world.process(lane, offset, repeats=int(index < emitted))
    again = data.draw(st.permutations([lane for lane, _ in steps[kept:]]))
    at = {lane: sum(1 for done, _ in steps[:kept] if done == lane) for lane in world.logs}
    for lane in again:
        world.process(lane, at[lane])
        at[lane] += 1
    assert world.totals() == _truth(verdicts)


DECISION, OUTCOME = (True, 0), (False, 0)


@pytest.mark.parametrize("first", [DECISION, OUTCOME])
@pytest.mark.parametrize("emitted", [0, 1, 2])
def test_crash_then_replay_in_the_other_order_counts_once(first: tuple[bool, int], emitted: int) -> None:
    second = OUTCOME if first == DECISION else DECISION
    world = _World({DECISION: [(True, 0, False)], OUTCOME: [(False, 0, True)]})
    world.process(first, 0, repeats=int(emitted > 0))
    world.process(second, 0, repeats=int(emitted > 1))
    world.process(second, 0)
    world.process(first, 0)
    assert world.totals() == {"a": (1, 1, 1)}
