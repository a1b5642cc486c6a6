"""What is left out of the closer look would not have been touched by it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.control.views import Facts, protection_of, view_of
from services.optimizer.policy.incidents import levels_of
from services.optimizer.policy.library_policy import AdapterView, Family, Rules, merges, prunes, totals_of, wilson_upper
from services.optimizer.policy.screening import ROW, Numbers, Screen, oldest_us, screened, versions, wilson_uppers
from services.optimizer.policy.versions import supersedes

DAY_US = 86400 * 10**6
NOW_US = 1000 * DAY_US
RULES = Rules()


@st.composite
def _numbers(draw: st.DrawFn) -> Numbers:
    created_us = NOW_US - draw(st.sampled_from([0, 1, 2, 13, 14, 15, 100, 500])) * DAY_US - draw(st.integers(-2, 2))
    restored_us = draw(st.sampled_from([0, 0, 0, NOW_US - 10 * DAY_US, NOW_US - 14 * DAY_US, NOW_US - 20 * DAY_US]))
    outcomes = draw(st.integers(0, 40))
    recent, fresh = draw(st.floats(0, outcomes)), draw(st.floats(0, outcomes))
    return Numbers(
        created_at_us=created_us,
        restored_at_us=restored_us,
        counted_since_us=draw(st.sampled_from([float("nan"), 0.0, NOW_US - 20 * DAY_US, NOW_US - 14 * DAY_US, NOW_US - DAY_US])),
        uses=outcomes + draw(st.integers(0, 40)),
        outcomes=outcomes,
        successes=draw(st.sampled_from([0.0, 0.1, 0.29, 0.3, 0.31, 1.0])) * outcomes,
        recent_at_us=draw(st.sampled_from([0, NOW_US, NOW_US + 5, NOW_US - DAY_US, NOW_US - 900 * DAY_US])),
        recent_uses=draw(st.sampled_from([0.0, 1.0, 5.0, 10.0, 100.0])),
        recent_outcomes=recent,
        recent_successes=draw(st.sampled_from([0.0, 0.3, 1.0])) * recent,
        fresh_outcomes=fresh,
        fresh_successes=draw(st.sampled_from([0.0, 0.5, 1.0])) * fresh,
        last_used_at_us=draw(st.sampled_from([0, NOW_US, NOW_US - 14 * DAY_US, NOW_US - 401 * DAY_US])),
        longest_gap_us=draw(st.sampled_from([0, DAY_US, 20 * DAY_US])),
        file_bytes=draw(st.integers(0, 100)),
        same_name=draw(st.integers(1, 3)),
        same_examples=draw(st.integers(0, 2)),
        pinned=draw(st.integers(0, 9)) == 0,
        one_epoch=draw(st.booleans()),
    )


_FAMILIES = [Family(tenant, False, base, "lora", rank, ("q",)) for tenant in "tu" for base in "ab" for rank in (4, 8)]
_FACTS = st.lists(st.tuples(_numbers(), st.sampled_from(_FAMILIES)), max_size=30).map(
    lambda found: [Facts(f"{place:03d}", f"name {one.same_name}", "d", family, one) for place, (one, family) in enumerate(found)]
)


def _blocks(library: list[Facts]) -> list[np.ndarray]:
    """Two of them."""
    rows = np.zeros(len(library), ROW)
    for place, one in enumerate(library):
        rows[place] = (*one.numbers, _FAMILIES.index(one.family), b"", 0)
    half = len(rows) // 2
    return [rows[:half], rows[half:]]


def _views(library: list[Facts], rules: Rules, counted_from_us: int) -> list[AdapterView]:
    return [view_of(one, protection_of(one, (), (), counted_from_us, rules.window_s, NOW_US), rules.half_life_s, NOW_US) for one in library]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(_FACTS, st.sampled_from([0, 150, 1000]), st.sampled_from([0, NOW_US - 14 * DAY_US, NOW_US - DAY_US]))
def test_what_is_found_is_what_a_look_at_each_would_find(library: list[Facts], tenant_bytes: int, counted_from_us: int) -> None:
    rules = dataclasses.replace(RULES, tenant_bytes=tenant_bytes)
    views = _views(library, rules, counted_from_us)
    screen: Screen = screened(_blocks(library), _FAMILIES, rules, NOW_US, counted_from_us)
    wanted, found = totals_of(views), screen.tenants
    assert {name: tuple(one) for name, one in found.items()} == {name: pytest.approx(tuple(one)) for name, one in wanted.items()}
    levels = levels_of(views)
    assert {scope: tuple(one) for scope, one in screen.levels.items()} == {
        scope: pytest.approx(tuple(one)) for scope, one in levels.items()
    }
    assert screen.families == [family for family in _FAMILIES if any(one.family == family for one in library)]
    closely = prunes([views[row] for row in screen.doubtful], wanted, rules)
    for tenant in "tu":  # each has its own order
        of_it, of_all = ([one for one in some if one.adapter.tenant == tenant] for some in (closely, prunes(views, wanted, rules)))
        assert of_it == of_all
    alike = {
        (one.adapter_id, other.adapter_id): 0.99
        for place, one in enumerate(views)
        for other in views[place + 1 :]
        if one.family == other.family
    }
    asked = [views[row] for rows in screen.mergeable.values() for row in rows]
    assert merges(asked, alike, rules) == merges(views, alike, rules)
    for family, rows in screen.mergeable.items():
        assert {views[row].family for row in rows} == {family}
        assert len(rows) > 1


_QUIET = Numbers(
    created_at_us=NOW_US - 900 * DAY_US,
    restored_at_us=0,
    counted_since_us=0,
    uses=500,
    outcomes=500,
    successes=450,
    recent_at_us=NOW_US,
    recent_uses=1000.0,
    recent_outcomes=0,
    recent_successes=0,
    fresh_outcomes=0,
    fresh_successes=0,
    last_used_at_us=NOW_US,
    longest_gap_us=0,
    file_bytes=1,
    same_name=1,
    same_examples=0,
    pinned=False,
    one_epoch=True,
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 700), st.integers(0, 300), st.sampled_from([0.0, 5.0, 400.0]))
def test_whoever_was_not_used_for_a_season_is_found(outcomes: int, successes: int, unused: int, gap: int, proven_successes: float) -> None:
    """One of two old adapters whose counts reach far back; the other is used so much that all were given their chances."""
    rules = dataclasses.replace(RULES, proven_successes=proven_successes)
    one = _QUIET._replace(
        outcomes=outcomes,
        successes=min(outcomes, successes),
        recent_uses=0.0,
        last_used_at_us=NOW_US - unused * DAY_US,
        longest_gap_us=gap * DAY_US,
    )
    library = [Facts(name, name, "", _FAMILIES[0], numbers) for name, numbers in (("busy", _QUIET), ("quiet", one))]
    views = _views(library, rules, 0)
    screen = screened(_blocks(library), _FAMILIES, rules, NOW_US, 0)
    assert prunes([views[row] for row in screen.doubtful], screen.tenants, rules) == prunes(views, totals_of(views), rules)
    assert screen.doubtful in ([], [1]), "and nobody else is looked at"


@settings(deadline=None, derandomize=True, max_examples=200)
@given(_FACTS)
def test_versions_are_found_by_their_numbers(library: list[Facts]) -> None:
    """All of one tenant and base model: their numbers are made of those, too."""
    library = [one._replace(family=_FAMILIES[0]) for one in library]
    views = _views(library, RULES, 0)
    assert supersedes([views[row] for row in versions(_blocks(library))], RULES) == supersedes(views, RULES)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(_FACTS)
def test_a_tenants_library_is_as_old_as_its_oldest(library: list[Facts]) -> None:
    found = oldest_us(_blocks(library), _FAMILIES)
    for tenant in "tu":
        ages = [one.numbers.created_at_us for one in library if one.family.tenant == tenant]
        assert found.get(tenant) == min(ages, default=None)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.floats(0, 1e12), st.floats(0, 1))
def test_the_bounds_of_many_are_those_of_each(trials: float, rate: float) -> None:
    many = wilson_uppers(np.array([rate * trials, 0.0]), np.array([trials, 0.0]), 1.96)
    assert many.tolist() == pytest.approx([wilson_upper(rate * trials, trials, 1.96), 1.0], rel=1e-12)
