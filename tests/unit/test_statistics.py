"""Counts by epoch: they rise within one, and another's are added."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.catalogue.statistics import COUNTED, MAX_EPOCHS, EpochCounts, Statistics
from smoa.errors import FailedPrecondition

NOW_US = 1000
STEPS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 5)), max_size=40)


def report(epoch: str, uses: int, outcomes: int = 0) -> Statistics:
    return Statistics(epoch=epoch, uses=uses, outcomes=outcomes, counted_since_us=7, recent_uses=float(uses))


def test_less_in_the_same_epoch_is_refused_and_changes_nothing() -> None:
    counts = Statistics().after(report("a", 125), NOW_US)
    with pytest.raises(FailedPrecondition, match="uses is 40, and was 125 in the same epoch 'a'"):
        counts.after(report("a", 40), NOW_US)
    assert counts.after(report("a", 125), NOW_US).uses == 125


def test_outcomes_fall_where_verdicts_were_taken_back_and_verdicts_do_not() -> None:
    first = Statistics(epoch="a", uses=3, verdicts=3, outcomes=3, successes=3.0)
    counts = Statistics().after(first, NOW_US).after(replace(first, verdicts=4, outcomes=2, successes=2.0), NOW_US)
    assert (counts.outcomes, counts.successes) == (2, 2.0)
    with pytest.raises(FailedPrecondition, match="verdicts is 3, and was 4 in the same epoch 'a'"):
        counts.after(first, NOW_US)


def test_another_epoch_adds_and_its_recent_counts_are_its_own() -> None:
    counts = Statistics().after(report("a", 125, 100), NOW_US).after(report("b", 40, 10), NOW_US)
    assert (counts.uses, counts.outcomes, counts.recent_uses, counts.epoch) == (165, 110, 40.0, "b")
    assert counts.after(report("a", 130, 100), NOW_US).uses == 170, "the first one again: two brokers in turn"


@given(STEPS)
def test_the_total_is_the_sum_of_the_last_reports(steps: list[tuple[int, int, int]]) -> None:
    counts, last = Statistics(), dict[str, tuple[int, int]]()
    for number, (epoch, uses, outcomes) in enumerate(steps):
        name = str(epoch % MAX_EPOCHS if number % 2 else epoch)
        before = last.get(name, (0, 0)) if name in counts.epochs else (0, 0)
        now = (before[0] + uses, before[1] + outcomes)
        if name not in counts.epochs and name in last:
            continue  # kept as one with the older ones: it is not told from a new one any more
        last[name] = now
        counts = counts.after(report(name, *now), NOW_US)
        assert len(counts.epochs) <= MAX_EPOCHS
    assert counts.uses == sum(uses for uses, _ in last.values())
    assert counts.outcomes == sum(outcomes for _, outcomes in last.values())
    assert Statistics.from_payload(counts.to_payload()) == counts


def test_what_was_stored_before_there_were_epochs_is_read() -> None:
    assert Statistics.from_payload({"uses": 5, "outcomes": 2, "successes": 1}) == Statistics(uses=5, outcomes=2, successes=1)
    assert set(COUNTED) == {item.name for item in dataclasses.fields(EpochCounts)}


def test_an_epoch_that_comes_back_is_whole_from_then_on() -> None:
    counts = Statistics().after(report("a", 5), NOW_US).after(report("b", 5), NOW_US + 1)
    assert (counts.epoch, counts.counted_since_us) == ("b", 7)
    again = counts.after(report("a", 6), NOW_US + 2)
    assert again.counted_since_us == NOW_US + 2
    assert again.after(report("a", 7), NOW_US + 3).counted_since_us == NOW_US + 2


def test_totals_of_before_there_were_epochs_are_kept() -> None:
    assert Statistics(uses=125).after(report("a", 1), NOW_US).uses == 126


def test_what_a_newer_router_added_stays_also_after_a_report() -> None:
    kept = Statistics.from_payload({**report("a", 5).to_payload(), "added_later": [1]})
    assert kept.after(report("a", 6), NOW_US).to_payload()["added_later"] == [1]
