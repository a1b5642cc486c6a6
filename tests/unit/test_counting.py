"""Counts: lifetime and recent, by tenant and task, and what was in one decision together."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.control.reporting import statistics_of
from services.optimizer.stream.counting import (
    MAX_PRODUCERS,
    MAX_TASKS,
    MAX_TENANTS,
    MAX_TOGETHER,
    CountPartition,
    count_outcome,
    count_usage,
    decay,
    stratum_key,
    totals,
)
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, USAGE, Received
from smoa.v1.events_pb2 import AdapterOutcome, TrialEffect, UsageEvent
from smoa.v1.state_pb2 import AdapterCounts, CountsEpoch, Tally

HALF_LIFE_US = 100.0
NOW_US = 1_000_000


def _effect(
    position: int, *, at_us: int = NOW_US, success: bool | None = True, tenant: str = "t", used: bool = True, **more: object
) -> AdapterOutcome:
    return AdapterOutcome(
        adapter_id="a",
        tenant=tenant,
        source_topic=DECISIONS,
        source_position=position,
        used=used,
        success=success,
        occurred_at_us=at_us,
        **more,  # type: ignore[arg-type]
    )


def _count(counts: AdapterCounts, effect: AdapterOutcome) -> bool:
    return count_outcome(counts, effect, HALF_LIFE_US, NOW_US)


def test_an_effect_is_counted_once() -> None:
    counts = AdapterCounts()
    assert _count(counts, _effect(7, task_id="job"))
    assert not _count(counts, _effect(7))
    assert not _count(counts, _effect(6, success=None))
    tally = counts.tenants["t"]
    assert (tally.uses, tally.outcomes, tally.successes) == (1, 1, 1)
    assert (counts.tasks["job"].uses, counts.tasks["job"].successes) == (1, 1)
    assert dict(counts.applied) == {f"{DECISIONS}:0": 7}


@pytest.mark.parametrize("at_us", [0, NOW_US * 1000, 2**62])
def test_an_effect_of_no_time_or_of_the_future_counts_as_one_of_now(at_us: int) -> None:
    counts = AdapterCounts()
    _count(counts, _effect(1))
    _count(counts, _effect(2, at_us=at_us))
    tally = counts.tenants["t"]
    assert (tally.recent_outcomes, tally.recent_at_us) == (2.0, NOW_US)


def test_usage_is_counted_once() -> None:
    counts = AdapterCounts()
    usage = UsageEvent(adapter_id="a", tenant="t", tokens=10)
    assert count_usage(counts, usage, "p", 1, NOW_US)
    assert not count_usage(counts, usage, "p", 1, NOW_US)
    assert count_usage(counts, usage, "q", 1, NOW_US)
    assert (counts.tenants["t"].generations, counts.tenants["t"].tokens) == (2, 20)


def test_the_producers_that_were_silent_longest_are_forgotten() -> None:
    counts = AdapterCounts()
    for number in range(MAX_PRODUCERS + 5):
        count_usage(counts, UsageEvent(tenant="t"), f"p{number}", 0, NOW_US + number)
    assert len(counts.producers) == MAX_PRODUCERS
    assert not count_usage(counts, UsageEvent(tenant="t"), f"p{MAX_PRODUCERS}", 0, NOW_US)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.permutations([(number, at) for number, at in enumerate([0, 30, 70, 110, 250, 250, 400])]))
def test_recent_counts_fade_by_half_lives_in_any_order(events: list[tuple[int, int]]) -> None:
    tally = Tally()
    for _, at in events:
        weight = decay(tally, NOW_US + at, HALF_LIFE_US)
        tally.recent_uses += weight
    assert tally.recent_at_us == NOW_US + 400
    assert tally.recent_uses == pytest.approx(sum(0.5 ** ((400 - at) / 100) for _, at in events))


def test_a_clock_that_is_ahead_does_not_age_what_was_counted() -> None:
    counts = AdapterCounts()
    _count(counts, _effect(1))
    _count(counts, _effect(2, at_us=NOW_US * 1000))
    assert counts.tenants["t"].recent_uses == 2.0


def test_past_the_bound_the_least_share_a_place_and_who_is_often_there_stays() -> None:
    counts = AdapterCounts()
    for number in range(50):
        _count(counts, _effect(number, tenant="owner", task_id="main"))
    for number in range(50, 50 + MAX_TENANTS + 10):
        _count(counts, _effect(number, tenant=f"t{number}", task_id=f"k{number}"))
    assert (len(counts.tenants), len(counts.tasks)) == (MAX_TENANTS + 1, MAX_TASKS + 1)
    assert counts.tenants["owner"].successes == counts.tasks["main"].successes == 50
    assert totals(counts.tenants.values(), HALF_LIFE_US).uses == MAX_TENANTS + 60


def test_frequent_companions_are_kept_of_many() -> None:
    counts = AdapterCounts()
    for number in range(200):
        _count(counts, _effect(number, together=["often", f"once{number}"]))
    assert len(counts.together) == MAX_TOGETHER
    assert counts.together["often"] == 200


def test_an_unknown_field_of_a_newer_worker_survives_an_older_one() -> None:
    newer = AdapterCounts(applied={"x:0": 1}).SerializeToString() + b"\xfa\x07\x03new"  # field 127
    part = CountPartition(1.0, {"a": newer})
    effect = _effect(1)
    plan = part.plan([Received(ADAPTER_OUTCOMES, 0, 0, 0, b"a", effect.SerializeToString(), "", 0)], NOW_US)
    assert b"\xfa\x07\x03new" in plan.counts["a"].SerializeToString()


def test_a_plan_changes_nothing_until_it_is_applied() -> None:
    part = CountPartition(1.0, {})
    one = Received(ADAPTER_OUTCOMES, 0, 0, 0, b"a", _effect(1).SerializeToString(), "", 0)
    plan = part.plan([one, one], NOW_US)
    assert (plan.counts["a"].tenants["t"].uses, len(part)) == (1, 0)
    part.apply(plan)
    assert list(part) == ["a"]
    assert not part.plan([one], NOW_US).counts


def test_usage_without_a_number_is_refused() -> None:
    usage = UsageEvent(adapter_id="a", tenant="t")
    plan = CountPartition(1.0, {}).plan([Received(USAGE, 0, 0, 0, b"a", usage.SerializeToString(), "", 0)], NOW_US)
    assert [str(error) for _, error in plan.refused] == [
        "smoa-producer: and smoa-sequence do not name the event; send usage through the spool"
    ]


def test_another_tenants_verdicts_do_not_reach_what_the_owner_sees() -> None:
    counts = AdapterCounts()
    for number in range(10):
        _count(counts, _effect(number, tenant="owner"))
    before = statistics_of(counts, "owner", HALF_LIFE_US / 1e6, CountsEpoch(epoch="e"))
    for number in range(10, 1010):
        _count(counts, _effect(number, tenant="attacker", success=False))
    after = statistics_of(counts, "owner", HALF_LIFE_US / 1e6, CountsEpoch(epoch="e"))
    assert (after.outcomes, after.successes) == (before.outcomes, before.successes) == (10, 10)
    assert math.isclose(after.recent_successes, before.recent_successes)
    assert after.uses == 1010
    assert statistics_of(counts, "nobody", HALF_LIFE_US / 1e6, CountsEpoch(epoch="e")).outcomes == 0


def test_verdicts_are_kept_by_the_parent_for_which_a_child_stood_and_by_who_gave_them() -> None:
    counts = AdapterCounts()
    for position, (tenant, success, parents) in enumerate(
        [("t", True, ("a", "b")), ("t", False, ("a",)), ("u", False, ("a",)), ("t", None, ("a",)), ("t", True, ())]
    ):
        effect = _effect(position, tenant=tenant, success=success, trial=TrialEffect(parents=parents))
        assert count_outcome(counts, effect, HALF_LIFE_US, NOW_US)
        assert not count_outcome(counts, effect, HALF_LIFE_US, NOW_US), "a replay"
    kept = {key: (tally.outcomes, tally.successes) for key, tally in counts.stood_for.items()}
    assert kept == {stratum_key("t", "a"): (2, 1), stratum_key("t", "b"): (1, 1), stratum_key("u", "a"): (1, 0)}


def test_a_childs_counts_have_both_sides_of_its_trial_and_only_its_own_uses() -> None:
    counts = AdapterCounts()
    effects = [
        _effect(0, success=None, trial=TrialEffect(parents=("a",), share=0.25)),
        _effect(1, success=None, trial=TrialEffect(parents=("a", "b"), control=True, share=0.25)),
        _effect(2, success=None, trial=TrialEffect(parents=("a",), control=True, share=0.0)),
        _effect(3, used=False, success=True, trial=TrialEffect(parents=("a",), share=0.25)),
        _effect(4, used=False, success=False, trial=TrialEffect(parents=("a", "b"), control=True, share=0.25)),
    ]
    for effect in effects:
        assert count_outcome(counts, effect, HALF_LIFE_US, NOW_US)
        assert not count_outcome(counts, effect, HALF_LIFE_US, NOW_US), "a replay"
    assert (counts.tenants["t"].uses, counts.tenants["t"].outcomes) == (1, 1)
    sides = [
        {key: (tally.uses, tally.outcomes, tally.successes) for key, tally in side.items()} for side in (counts.stood_for, counts.control)
    ]
    assert sides == [{"t/a": (1, 1, 1)}, {"t/a": (2, 1, 0), "t/b": (1, 1, 0)}]
    draws = counts.draws
    assert (draws.drawn, draws.child, draws.expected, draws.variance) == (2, 1, 0.5, 2 * 0.25 * 0.75)


@settings(deadline=None, derandomize=True)
@given(scores=st.lists(st.floats(0, 1, width=32), max_size=50), seed=st.integers(0, 100))
def test_a_score_counts_as_what_it_is_and_sums_do_not_depend_on_their_order(scores: list[float], seed: int) -> None:
    found = set()
    for order in (scores, random.Random(seed).sample(scores, len(scores))):
        counts = AdapterCounts()
        for position, score in enumerate(order):
            count_outcome(counts, _effect(position, success=True, score=score, trial=TrialEffect(parents=("p",))), HALF_LIFE_US, NOW_US)
        found.add((counts.tenants["t"].successes, counts.stood_for["t/p"].successes))
    assert len(found) == 1
    [(total, in_place)] = found
    assert total == in_place == pytest.approx(sum(scores), abs=len(scores) * 2**-20)


def test_the_longest_time_between_two_uses_is_kept() -> None:
    counts, day_us = AdapterCounts(), 86400 * 10**6
    now_us = 10**15
    start_us = now_us - 100 * day_us
    for position, day in enumerate((0, 1, 40, 39, 41)):
        count_outcome(counts, _effect(position, at_us=start_us + day * day_us, success=None), HALF_LIFE_US, now_us)
    tally = counts.tenants["t"]
    assert (tally.longest_gap_us, tally.last_used_at_us) == (39 * day_us, start_us + 41 * day_us)


def test_fresh_counts_fade_within_an_hour() -> None:
    counts = AdapterCounts()
    for position, (minutes, success) in enumerate(((0, True), (20, False), (60, False))):
        count_outcome(counts, _effect(position, at_us=NOW_US + minutes * 60 * 10**6, success=success), HALF_LIFE_US, NOW_US + 10**12)
    tally = counts.tenants["t"]
    assert tally.fresh_outcomes == pytest.approx(1 / 8 + 1 / 4 + 1)
    assert tally.fresh_successes == pytest.approx(1 / 8)
    whole = totals([tally, tally], HALF_LIFE_US)
    assert whole.fresh_outcomes == pytest.approx(2 * tally.fresh_outcomes)


def test_verdicts_of_an_incident_are_counted_and_set_aside() -> None:
    counts = AdapterCounts()
    for position, aside in enumerate((False, True, True)):
        effect = _effect(position, success=not aside, trial=TrialEffect(parents=("p",)))
        assert count_outcome(counts, effect, HALF_LIFE_US, NOW_US, aside=aside)
    tally = counts.tenants["t"]
    assert (tally.uses, tally.outcomes, tally.successes, tally.aside_outcomes, tally.aside_successes) == (3, 3, 1, 2, 0)
    assert (tally.recent_uses, tally.recent_outcomes, tally.recent_successes) == (3, 1, 1)
    assert (tally.fresh_outcomes, tally.fresh_successes) == (3, 1), "by these it is seen when it is over"
    assert counts.stood_for[stratum_key("t", "p")].outcomes == 1
    told = statistics_of(counts, "t", HALF_LIFE_US / 1e6, CountsEpoch(epoch="e"))
    assert (told.outcomes, told.aside_outcomes, told.recent_outcomes) == (3, 2, 1)
    received = Received(ADAPTER_OUTCOMES, 0, 9, 0, b"a", _effect(9, success=False).SerializeToString(), "", 0)
    [planned] = CountPartition(HALF_LIFE_US / 1e6, {}).plan([received], NOW_US, {"t"}).counts.values()
    assert planned.tenants["t"].aside_outcomes == 1
