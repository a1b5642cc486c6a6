"""The policy: what is pruned, what is merged, and why."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.policy.library_policy import (
    MAX_GROUP,
    AdapterView,
    Merge,
    Prune,
    Rules,
    benefit,
    merges,
    prunes,
    totals_of,
    wilson_upper,
)

RULES = Rules()


def _view(adapter_id: str, **changes: Any) -> AdapterView:
    view = AdapterView(
        adapter_id=adapter_id,
        digest=f"digest-{adapter_id}",
        tenant="t",
        name=f"name-{adapter_id}",
        kind="lora_xs",
        base_model="b",
        rank=4,
        modules=("q", "v"),
        age_s=1e8,
        uses=100,
        outcomes=0,
        successes=0,
    )
    faded = {f"recent_{name}": float(changes.get(name, getattr(view, name))) for name in ("uses", "outcomes", "successes")}
    return dataclasses.replace(view, **{**faded, **changes})


def _prunes(views: Sequence[AdapterView], rules: Rules = RULES) -> list[Prune]:
    return prunes(views, totals_of(views), rules)


def _pruned(*views: AdapterView) -> list[str]:
    return [prune.adapter.adapter_id for prune in _prunes(views)]


def _merged(likeness: dict[tuple[str, str], float], *views: AdapterView) -> list[tuple[str, ...]]:
    return [tuple(adapter.adapter_id for adapter in merge.adapters) for merge in merges(views, likeness, RULES)]


@pytest.mark.parametrize(
    ("successes", "trials", "upper"), [(0, 10, 0.2775), (5, 10, 0.7634), (10, 10, 1.0), (0, 0, 1.0), (1, 10, 0.4042), (0, 1, 0.7935)]
)
def test_wilson_upper_bound(successes: int, trials: int, upper: float) -> None:
    assert wilson_upper(successes, trials, 1.96) == pytest.approx(upper, abs=5e-5)


DAY_S = 86400.0
UNUSED_S = 15 * DAY_S


def test_an_unused_adapter_is_pruned_with_its_numbers() -> None:
    found = _prunes([_view("a", uses=9, unused_s=UNUSED_S), _view("b", uses=11)])
    wanted = "not needed: not used for 15.0 days, its season is 14.0 days; the tenant's 2 adapters were used 20 times recently"
    assert [prune.reason for prune in found] == [wanted]


def test_nine_seasonal_adapters_are_kept_through_a_quiet_day_beside_a_busy_one() -> None:
    seasonal = [_view(f"s{number}", uses=0, unused_s=1.1 * DAY_S) for number in range(9)]
    assert _pruned(_view("busy", uses=1000), *seasonal) == []


@pytest.mark.parametrize(
    ("gap_days", "unused_days", "pruned"), [(0, 13, False), (0, 15, True), (30, 40, False), (30, 46, True), (360, 400, False)]
)
def test_unused_is_longer_than_its_own_season(gap_days: float, unused_days: float, pruned: bool) -> None:
    one = _view("a", uses=0, unused_s=unused_days * DAY_S, longest_gap_s=gap_days * DAY_S)
    assert _pruned(one, _view("busy")) == (["a"] if pruned else [])


@pytest.mark.parametrize(
    ("successes", "outcomes", "unused_days", "pruned"),
    [(10, 12, 399, False), (10, 12, 401, True), (9, 9, 15, True), (10, 40, 15, True), (0, 0, 15, True)],
)
def test_what_was_of_use_is_waited_for_a_year(successes: int, outcomes: int, unused_days: float, pruned: bool) -> None:
    one = _view(
        "a", uses=0, unused_s=unused_days * DAY_S, successes=successes, outcomes=outcomes, recent_outcomes=0.0, recent_successes=0.0
    )
    assert _pruned(one, _view("busy")) == (["a"] if pruned else [])


def test_enough_uses_are_kept() -> None:
    assert _pruned(_view("a", uses=10), _view("b")) == []


def test_young_adapter_is_kept() -> None:
    assert _pruned(_view("a", uses=0, age_s=86399.0, unused_s=UNUSED_S), _view("b")) == []
    assert _pruned(_view("a", uses=0, age_s=86400.0, unused_s=UNUSED_S), _view("b")) == ["a"]


def test_quiet_tenant_prunes_nobody() -> None:
    assert _pruned(_view("a", uses=0, unused_s=UNUSED_S), _view("b", uses=19)) == []
    assert _pruned(_view("a", uses=0, unused_s=UNUSED_S), _view("b", uses=20)) == ["a"]


def test_traffic_of_another_tenant_does_not_count() -> None:
    assert _pruned(_view("a", uses=0, unused_s=UNUSED_S), _view("b", uses=9999, tenant="u")) == []


def test_failing_beyond_doubt_is_pruned_and_nobody_younger_than_a_day() -> None:
    assert _prunes([_view("a", outcomes=10, successes=0, age_s=86_000.0)]) == []
    found = _prunes([_view("a", outcomes=10, successes=0, age_s=86_400.0)])
    assert [prune.reason for prune in found] == ["fails: 0 of 10 right; with 95% confidence under 30%"]


@pytest.mark.parametrize(("successes", "outcomes"), [(0, 8), (1, 10), (29, 100), (30, 100)])
def test_failing_with_too_little_evidence_is_kept(successes: int, outcomes: int) -> None:
    assert _pruned(_view("a", outcomes=outcomes, successes=successes)) == []


def test_alike_adapters_merge() -> None:
    assert _merged({("a", "b"): 0.95}, _view("b"), _view("a")) == [("a", "b")]


def test_unknown_likeness_does_not_merge() -> None:
    assert _merged({}, _view("a"), _view("b")) == []


def test_cosine_at_the_threshold_does_not_merge() -> None:
    assert _merged({("a", "b"): 0.90}, _view("a"), _view("b")) == []
    assert _merged({("a", "b"): 0.9000001}, _view("a"), _view("b")) == [("a", "b")]


@pytest.mark.parametrize(
    "changes", [{"tenant": "u"}, {"base_model": "c"}, {"rank": 8}, {"modules": ("q",)}, {"modules": ("q", "k")}, {"kind": "lora"}]
)
def test_other_families_never_merge(changes: dict[str, Any]) -> None:
    assert _merged({("a", "b"): 1.0}, _view("a"), _view("b", **changes)) == []


def test_order_of_modules_does_not_matter() -> None:
    assert _merged({("a", "b"): 0.99}, _view("a"), _view("b", modules=("v", "q"))) == [("a", "b")]


def test_groups_are_disjoint_and_the_best_come_first() -> None:
    likeness = {("a", "b"): 0.95, ("b", "c"): 0.99, ("a", "c"): 0.96, ("c", "d"): 0.97, ("e", "f"): 0.99}
    assert _merged(likeness, *map(_view, "abcdef")) == [("a", "b", "c"), ("e", "f")]


def test_a_chain_of_likenesses_does_not_join_what_is_unlike() -> None:
    likeness = {("a", "b"): 0.95, ("b", "c"): 0.96, ("c", "d"): 0.95}
    assert _merged(likeness, *map(_view, "abcd")) == [("b", "c")]


def test_one_that_fails_is_left_out_of_its_group() -> None:
    likeness = dict.fromkeys(itertools.combinations("abc", 2), 0.99)
    good = {"outcomes": 10, "successes": 9}
    assert _merged(likeness, _view("a", **good), _view("b", outcomes=10, successes=2), _view("c", **good)) == [("a", "c")]


def test_small_gaps_in_success_do_not_add_up() -> None:
    """As a pair, one that never fails and one that always does are no merge; a third between them must not make them one."""
    likeness = dict.fromkeys(itertools.combinations("abcd", 2), 1.0)
    views = [_view(name, outcomes=100, successes=rate) for name, rate in zip("abcd", (90, 90, 45, 0), strict=True)]
    assert _merged(likeness, *views) == [("a", "b", "c")]


def test_a_group_has_a_largest_size() -> None:
    names = [f"{number:03}" for number in range(MAX_GROUP + 5)]
    found = _merged(dict.fromkeys(itertools.combinations(names, 2), 0.99), *map(_view, names))
    assert [len(group) for group in found] == [MAX_GROUP, 5]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(0.8, 1.0), min_size=28, max_size=28),
    st.permutations("abcdefgh"),
    st.lists(st.integers(0, 10), min_size=8, max_size=8),
)
def test_whatever_the_likenesses_groups_are_disjoint_all_alike_and_the_same_in_any_order(
    values: list[float], order: list[str], successes: list[int]
) -> None:
    likeness = dict(zip(itertools.combinations("abcdefgh", 2), values, strict=True))
    views = {name: _view(name, outcomes=10, successes=count) for name, count in zip("abcdefgh", successes, strict=True)}
    groups = _merged(likeness, *views.values())
    assert groups == _merged(likeness, *(views[name] for name in order))
    for group in groups:
        for low, high in itertools.combinations(group, 2):
            assert benefit((views[low], views[high]), likeness[low, high], RULES) >= RULES.min_benefit
    named = [one for group in groups for one in group]
    assert len(named) == len(set(named))
    assert all(likeness[pair] > RULES.min_cosine for group in groups for pair in itertools.combinations(group, 2))


def test_benefit_formula() -> None:
    first, second = _view("a", outcomes=10, successes=8), _view("b", outcomes=10, successes=5)
    assert benefit((first, second), 0.95, RULES) == pytest.approx(0.5 + 0.25 - 0.3)
    assert benefit((first, _view("b")), 0.95, RULES) == pytest.approx(0.75)
    assert benefit((_view("a"), _view("b")), 1.0, RULES) == pytest.approx(1.0)
    assert benefit(tuple(map(_view, "abcd")), 1.0, RULES) == pytest.approx(2.0)


def test_gap_in_success_forbids_a_merge() -> None:
    good, bad = _view("a", outcomes=10, successes=9), _view("b", outcomes=10, successes=1)
    assert _merged({("a", "b"): 0.99}, good, bad) == []


def test_min_cosine_of_one_merges_nothing() -> None:
    rules = dataclasses.replace(RULES, min_cosine=1.0)
    assert merges([_view("a"), _view("b")], {("a", "b"): 1.0000000000000002}, rules) == []


def test_merge_id_does_not_depend_on_the_order() -> None:
    first, second = _view("a"), _view("b")
    assert Merge((first, second), 0.9, 1.0).merge_id == Merge((second, first), 0.9, 0.5).merge_id
    assert Merge((first, second), 0.9, 1.0).merge_id != Merge((first, _view("c")), 0.9, 1.0).merge_id
    assert Merge((first, second), 0.9, 1.0).merge_id.startswith("merge-")
    assert len(Merge((first, second), 0.9, 1.0).merge_id) == 30


def test_reason_of_a_merge_has_the_numbers() -> None:
    merge = Merge((_view("a", outcomes=2, successes=1), _view("b")), 0.95, 0.75)
    assert merge.reason == "delta cosine 0.9500, benefit 0.75; name-a (100 uses, 1/2), name-b (100 uses, 0/0)"
    many = Merge(tuple(map(_view, "abcdef")), 0.95, 0.75)
    assert many.reason.endswith("name-d (100 uses, 0/0) and 2 more")


def test_what_failed_once_and_does_well_of_late_is_kept() -> None:
    failing = _view("a", outcomes=40, successes=2, recent_outcomes=10.0, recent_successes=0.5)
    better = _view("b", outcomes=40, successes=2, recent_outcomes=10.0, recent_successes=8.0)
    assert _pruned(failing, better) == ["a"]


@pytest.mark.parametrize("why", ["pinned", "its merge is on trial", "in a composition"])
def test_what_is_protected_is_neither_pruned_nor_merged(why: str) -> None:
    kept = [
        _view("a", uses=0, unused_s=UNUSED_S, protected=why),
        _view("b", outcomes=50, successes=0, protected=why),
        _view("c"),
        _view("d"),
    ]
    assert _pruned(*kept) == []
    assert _merged({("a", "b"): 1.0, ("b", "c"): 1.0, ("c", "d"): 1.0}, *kept) == [("c", "d")]


def test_those_of_least_value_for_their_bytes_go_first_with_their_numbers() -> None:
    big = _view("big", uses=5, unused_s=UNUSED_S, recent_successes=2.0, recent_outcomes=4.0, file_bytes=1000)
    small = _view("small", uses=5, unused_s=UNUSED_S, recent_successes=2.0, recent_outcomes=4.0, file_bytes=10)
    found = _prunes([small, big, _view("busy", uses=500)])
    assert [one.adapter.adapter_id for one in found] == ["big", "small"]
    assert found[0].evidence["recent_uses"] == 5.0
    assert found[0].evidence["tenant_adapters"] == 3.0


def _room(views: Sequence[AdapterView], tenant_bytes: int) -> list[str]:
    return [one.adapter.adapter_id for one in _prunes(views, dataclasses.replace(RULES, tenant_bytes=tenant_bytes))]


def test_within_a_tenants_room_only_those_go_that_fail() -> None:
    views = [
        _view("unused", uses=5, unused_s=UNUSED_S, file_bytes=100),
        _view("fails", outcomes=50, file_bytes=100),
        _view("busy", uses=500, file_bytes=100),
        dataclasses.replace(_view("elsewhere", uses=1, unused_s=UNUSED_S, file_bytes=10**6), tenant="u"),
    ]
    assert sorted(_room(views[:3], 0)) == ["fails", "unused"]
    assert _room(views[:3], 300) == ["fails"]
    assert _room(views, 200) == ["fails", "elsewhere"], "each tenant has its own"
    assert sorted(_room(views[:3], 199)) == ["fails", "unused"]


def test_over_it_those_of_least_value_for_their_bytes_go_after_those_that_nobody_needs_and_it_says_so() -> None:
    views = [
        _view("unused", uses=5, unused_s=UNUSED_S, file_bytes=10),
        _view("rare", uses=20, file_bytes=100),
        _view("large", uses=500, file_bytes=10_000),
        _view("dear", uses=500, file_bytes=100),
        _view("pinned", uses=0, file_bytes=100, protected="pinned"),
        _view("young", uses=0, file_bytes=100, age_s=3600.0),
    ]
    assert _room(views, 10_400) == ["unused"]
    assert _room(views, 10_399) == ["unused", "large"]
    assert _room(views, 300) == ["unused", "large", "rare"]
    assert _room(views, 1) == ["unused", "large", "rare", "dear"]
    [_, large] = _prunes(views, dataclasses.replace(RULES, tenant_bytes=10_399))
    wanted = "no room: the tenant's adapters take 10,410 bytes of 10,399; of least value for its bytes, 500.0 uses of late"
    assert (large.reason, large.evidence["room_bytes"]) == (wanted, 10_399.0)


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 300), st.booleans(), st.booleans()), max_size=12), st.integers(1, 6000))
def test_no_more_go_than_have_to(given_views: list[tuple[int, int, bool, bool]], room: int) -> None:
    views = [
        _view(f"{number:02}", uses=uses, outcomes=50 if fails else 0, file_bytes=size, protected="pinned" if pinned else "")
        for number, (size, uses, fails, pinned) in enumerate(given_views)
    ]
    sizes, gone = {one.adapter_id: one.file_bytes for one in views}, _room(views, room)
    assert len(gone) == len(set(gone))
    left = sum(sizes.values()) - sum(sizes[one] for one in gone)
    free = [one for one in views if not one.protected]
    assert left <= room or len(gone) == len(free)
    unneeded = [one.adapter_id for one in free if one.adapter_id in gone and not one.outcomes]
    if unneeded:
        assert left + max(sizes[one] for one in unneeded) > room
    assert {one.adapter_id for one in free if one.outcomes} <= set(gone)


def test_what_did_well_once_and_fails_beyond_doubt_of_late_is_pruned() -> None:
    fallen = _view("a", outcomes=500, successes=400, recent_outcomes=40.0, recent_successes=3.0)
    [prune] = _prunes([fallen, _view("b")])
    assert prune.reason == "fails recently: 3.0 of 40.0 right, as recent ones are weighed; with 95% confidence under 30%"


def test_a_retrained_version_is_not_merged_into_the_one_before() -> None:
    first, second = _view("a", name="intent", uses=5000, successes=4499, outcomes=5000), _view("b", name="intent")
    assert _merged({("a", "b"): 0.99}, first, second) == []
    assert _merged({("a", "b"): 0.99, ("a", "c"): 0.95}, first, second, _view("c")) == [("a", "c")]
