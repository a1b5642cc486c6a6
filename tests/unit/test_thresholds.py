"""From how close on queries are answered: what outcomes may and may not change about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.learning.thresholds import KEPT, SAMPLED, Bar, Closeness, Thresholds, found_threshold
from tests.unit.test_contexts import _rows

LOSS, LEAST = 0.05, -1.5


def _queries(rightly: Any, wrongly: Any = ()) -> np.ndarray:
    made = [(value, 1.0) for value in rightly] + [(value, -1.0) for value in wrongly]
    return np.array(made, np.float32).reshape(-1, 2)


def test_it_rises_where_more_are_answered_wrongly_than_rightly() -> None:
    rng = np.random.default_rng(0)
    inside, strange = rng.normal(0.5, 1, 900), rng.normal(-1.2, 0.4, 500)
    found = found_threshold(_queries(inside[inside >= LEAST], strange[strange >= LEAST]), LEAST, LOSS)
    assert LEAST < found <= np.quantile(inside[inside >= LEAST], LOSS)
    assert (strange < found).mean() > 0.5


def test_nothing_is_lost_where_nobody_is_a_stranger() -> None:
    """Not even the share that may be."""
    inside = np.linspace(-1.4, 3, 1_000)
    assert found_threshold(_queries(inside), LEAST, LOSS) == LEAST


def test_never_more_is_lost_than_may_be() -> None:
    """However many are answered wrongly."""
    inside = np.linspace(-1.4, 3, 1_000)
    found = found_threshold(_queries(inside, np.linspace(-1.4, 3, 5_000)), LEAST, LOSS)
    assert 0.04 < (inside < found).mean() <= LOSS


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(40, 400), st.integers(0, 2**32 - 1))
def test_the_bound_is_the_conformal_one(count: int, seed: int) -> None:
    """Of as many queries rightly answered and as many that are not, everywhere: the next one is under it with at most the share."""
    share, inside = int(LOSS * (count + 1)) - 1, np.float32(np.random.default_rng(seed).permutation(count))
    found = found_threshold(_queries(inside, np.repeat(inside - 0.5, 2)), -20.0, LOSS)
    assert found == np.sort(inside)[share - 1]


@pytest.mark.parametrize("count", [0, 10, 38])
def test_few_say_nothing(count: int) -> None:
    assert found_threshold(_queries(np.linspace(0, 1, count), np.full(100, -1.0)), LEAST, LOSS) == LEAST


def test_what_is_sampled_stands_for_what_is_not() -> None:
    """The share that is lost does not creep up, though most of what lies below the threshold has no outcomes any more."""
    rng, thresholds = np.random.default_rng(1), Thresholds(LOSS)
    vectors, lost = _rows(500, rng), []
    for step in range(12_000):
        bar = thresholds.of("t", "b", LEAST, 3600.0 * (step // 50))
        value, strange = float(rng.normal(1, 1)), rng.random() < 0.4
        close = bar.of(value - 2.5 * strange, vectors[rng.integers(500)])
        if close.stands_for:
            thresholds.observe("t", "b", *close, right=not strange)
        if not strange and step > 4_000:
            lost.append(value < bar.every)
    assert 0.02 < np.mean(lost) < LOSS + 0.015


def test_equal_queries_stand_or_fall_together() -> None:
    queries = _queries([*np.full(3, -1.0), *np.linspace(0, 3, 400)], np.full(9, -1.0))
    assert found_threshold(queries, LEAST, LOSS) == 0
    assert found_threshold(np.concatenate([queries, _queries(np.full(7, -1.0))]), LEAST, LOSS) == LEAST


@pytest.mark.parametrize("hours", [1, 8, 24])
def test_every_query_has_its_turn(hours: int) -> None:
    """Also one that comes at the same time each day."""
    for query in _rows(5):
        stands_for = [Bar(0.0, -1.0, hours * number).of(-0.5, query).stands_for for number in range(400)]
        assert set(stands_for) == {0, SAMPLED}
        assert 0.06 < np.mean(stands_for) / SAMPLED < 0.2
        assert [Bar(0.0, -1.0, 7).of(value, query) for value in (-1.5, 0.0)] == [Closeness(-1.5, 0), Closeness(0.0, 1)]


def test_few_that_stand_for_many_say_no_more_than_they_are() -> None:
    for count, found in ((20, LEAST), (25, 0.0)):
        queries = _queries(np.linspace(0, 1, count), np.full(9, -1.0))
        queries[:count, 1] = SAMPLED
        assert found_threshold(queries, LEAST, LOSS) == found


@pytest.mark.parametrize(("value", "stands_for"), [(float("nan"), 1), (float("inf"), 1), (0.0, 0), (0.0, SAMPLED + 1), (0.0, -1)])
def test_what_no_router_sends_says_nothing(value: float, stands_for: int) -> None:
    thresholds = Thresholds(LOSS)
    thresholds.observe("t", "b", value, stands_for, right=True)
    assert not len(thresholds._seen)


def test_tenants_base_models_and_fits_are_apart_and_memory_is_bounded() -> None:
    thresholds = Thresholds(LOSS, max_bytes=40_000)
    for value in np.tile(np.linspace(-1.4, 3, 256), 2 * KEPT // 256):
        thresholds.observe("t", "b", float(value), 1, right=value > -1)
    raised = thresholds.of("t", "b", LEAST, 0)
    assert raised.every > LEAST == raised.some
    assert thresholds.of("u", "b", LEAST, 0).every == thresholds.of("t", "c", LEAST, 0).every == LEAST
    assert thresholds.of("t", "b", -1.0, 0).some == -1.0
    assert thresholds.of("t", "b", LEAST, 0).every == raised.every
    for tenant in range(200):
        for value in range(10):
            thresholds.observe(str(tenant), "b", value, 1, right=True)
    assert thresholds._seen.bytes <= 40_000
    assert thresholds.of("t", "b", LEAST, 0).every == LEAST, "the least recently used is forgotten"
