"""Which queries a canary gets: a share of its parents', never another's, never more than it has earned."""

from __future__ import annotations

import dataclasses
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.catalogue.records import AdapterRecord, AdapterRef, State
from services.router.catalogue.statistics import Statistics
from services.router.routing.canaries import (
    FIRST_QUERIES,
    MOST_SAVED_HOURS,
    QUERIES_AN_HOUR,
    QUERIES_AN_OUTCOME,
    SHARES,
    TAKEN_AT_ONCE,
    Canaries,
    some_of_budget,
)
from services.router.routing.scoring import Chosen


def _record(name: str, parents: tuple[str, ...] = (), state: State = "canary", share: float = 1.0, outcomes: int = 0) -> AdapterRecord:
    return AdapterRecord(
        adapter_id=name,
        version=1,
        digest=name,
        tenant="t",
        name=name,
        kind="lora",
        granularity="NANO",
        specialization="task",
        base_model="b",
        rank=1,
        modules=("q",),
        parameter_count=1,
        file_bytes=1,
        parents=parents,
        canary_baseline=dict.fromkeys(parents, Statistics()),
        state=state,
        canary_share=share,
        statistics=Statistics(outcomes=outcomes, successes=outcomes),
    )


def _chosen(**weights: float) -> tuple[Chosen, ...]:
    return tuple(Chosen(AdapterRef(name, 1, name), score=weight, weight=weight) for name, weight in weights.items())


def _given(canaries: Canaries, chosen: tuple[Chosen, ...], tenant: str = "t") -> tuple[Chosen, ...]:
    """The first answer of twenty that a child is in, if there is one."""
    canaries.grant("child", FIRST_QUERIES)
    answers = (canaries.tried(chosen, tenant, 0) for _ in range(FIRST_QUERIES))
    return next((answer for answer in answers if any(one.stands_for for one in answer)), chosen)


def _names(chosen: tuple[Chosen, ...]) -> list[tuple[str, float]]:
    return [(one.ref.adapter_id, round(one.weight, 6)) for one in chosen]


def test_it_stands_where_its_first_parent_stood_with_their_weights() -> None:
    canaries = Canaries(1)
    canaries.update([_record("child", ("a", "b"))])
    assert _names(_given(canaries, _chosen(x=0.5, a=0.3, b=0.2))) == [("x", 0.5), ("child", 0.5)]


def test_it_says_for_which_parents_it_stands() -> None:
    canaries = Canaries(1)
    canaries.update([_record("child", ("a", "b", "c"))])
    assert [(one.ref.adapter_id, one.stands_for) for one in _given(canaries, _chosen(x=0.5, b=0.3, a=0.2))] == [
        ("x", ()),
        ("child", ("b", "a")),
    ]
    assert _given(canaries, _chosen(c=1.0))[0].stands_for == ("c",)


def test_both_sides_say_who_is_compared_and_by_which_chance() -> None:
    canaries = Canaries(1)
    canaries.update([_record("child", ("a", "b"), share=0.1)])
    assert [(one.control_of, one.trial_share) for one in canaries.tried(_chosen(a=0.6, x=0.4), "t", 0)] == [("child", 0.0), ("", 0.0)]
    canaries.grant("child", 10_000)
    share, sides = round(0.1 * SHARES) / SHARES, Counter[str]()
    for _ in range(2000):
        first, other = canaries.tried(_chosen(a=0.6, x=0.4), "t", 0)
        assert (first.trial_share, other.trial_share, other.control_of) == (share, 0.0, "")
        assert (first.ref.adapter_id, first.control_of, first.stands_for) in (("a", "child", ()), ("child", "", ("a",)))
        sides[first.ref.adapter_id] += 1
    assert 150 < sides["child"] < 250
    kept = canaries.tried(_chosen(a=1.0), "t", 0, b"somebody")[0]
    assert kept.trial_share == 0.0, "one who stays on a side was not drawn for this query"


def test_whoever_asks_stays_on_one_side() -> None:
    canaries = Canaries(1)
    canaries.update([_record("child", ("a",), share=0.3)])
    canaries.grant("child", 10_000)
    sides = {}
    for number in range(400):
        who = str(number).encode()
        answers = {canaries.tried(_chosen(a=1.0), "t", 0, who)[0].ref.adapter_id for _ in range(5)}
        assert len(answers) == 1
        sides[who] = answers.pop()
    assert 80 < sum(side == "child" for side in sides.values()) < 160
    canaries.update([dataclasses.replace(_record("child", ("a",), share=0.5))])
    assert all(canaries.tried(_chosen(a=1.0), "t", 0, who)[0].ref.adapter_id == "child" for who, side in sides.items() if side == "child")


def test_others_queries_are_left_as_they_are() -> None:
    canaries = Canaries(1)
    canaries.update([_record("child", ("a", "b"))])
    chosen = _chosen(x=0.6, y=0.4)
    assert _given(canaries, chosen) is chosen


def test_one_that_is_settled_gets_no_more() -> None:
    canaries = Canaries(1)
    child = _record("child", ("a", "b"))
    canaries.update([child])
    canaries.update([dataclasses.replace(child, state="retired")])
    chosen = _chosen(a=1.0)
    assert _given(canaries, chosen) is chosen
    assert len(canaries) == 0
    canaries.update([child])
    canaries.forget("child")
    assert _given(canaries, chosen) is chosen


def _take(routers: list[Canaries], record: AdapterRecord, now_us: int = 0) -> AdapterRecord:
    """Each router takes what it wants of the budget, as `Trials` does."""
    for canaries in routers:
        canaries.update([record])
        while canaries.wanting(now_us):
            count, taken = some_of_budget(record, now_us)
            record = dataclasses.replace(record, canary_taken=taken)
            canaries.update([record])
            canaries.grant("child", count)
    return record


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 3), max_size=60), st.floats(0.05, 0.5), st.integers(0, 100), st.integers(1, 3), st.integers(0, 7))
def test_all_routers_together_never_send_more_queries_than_it_has_earned(
    judged: list[int], share: float, seed: int, count: int, restarts: int
) -> None:
    routers, seen, outcomes = [Canaries(seed + number) for number in range(count)], 0, 0
    record = _record("child", ("a", "b"), share=share)
    for turn, more in enumerate(judged):
        record = dataclasses.replace(record, statistics=Statistics(outcomes=outcomes, successes=outcomes))
        if restarts and turn % 8 == restarts:
            routers[turn % count] = Canaries(seed)
        record = _take(routers, record)
        for canaries in routers:
            seen += sum(canaries.tried(_chosen(a=0.7, b=0.3), "t", 0)[0].ref.adapter_id == "child" for _ in range(30))
        assert seen <= FIRST_QUERIES + QUERIES_AN_OUTCOME * outcomes
        outcomes += more


def test_no_tenant_is_given_a_canary_that_it_may_not_use() -> None:
    canaries = Canaries(1)
    canaries.update([_record("child", ("a", "b"))])
    chosen = _chosen(a=1.0)
    assert _given(canaries, chosen, "other") is chosen
    assert _given(canaries, chosen) is not chosen


def test_one_that_is_never_judged_gets_some_queries_an_hour() -> None:
    canaries = Canaries(1)
    record, counts = _record("child", ("a", "b")), []
    for now_us in (0, int(5 * 3600e6)):
        seen = 0
        for _ in range(50):
            record = _take([canaries], record, now_us)
            seen += sum(canaries.tried(_chosen(a=1.0), "t", now_us)[0].ref.adapter_id == "child" for _ in range(10))
        counts.append(seen)
    assert counts == [FIRST_QUERIES, 5 * QUERIES_AN_HOUR]


def test_what_months_have_earned_and_nobody_took_has_lapsed() -> None:
    canaries, hour_us = Canaries(1), int(3600e6)
    record, counts = _record("child", ("a", "b")), []
    for now_us in (0, 24 * 150 * hour_us, (24 * 150 + 5) * hour_us):
        seen = 0
        for _ in range(200):
            record = _take([canaries], record, now_us)
            seen += sum(canaries.tried(_chosen(a=1.0), "t", now_us)[0].ref.adapter_id == "child" for _ in range(30))
        counts.append(seen)
    assert counts == [FIRST_QUERIES, FIRST_QUERIES + MOST_SAVED_HOURS * QUERIES_AN_HOUR, 5 * QUERIES_AN_HOUR]


def test_what_outcomes_have_earned_does_not_lapse() -> None:
    record = dataclasses.replace(_record("child", ("a", "b")), statistics=Statistics(outcomes=5000, successes=5000))
    count, taken = some_of_budget(record, 0)
    assert count == taken == TAKEN_AT_ONCE
