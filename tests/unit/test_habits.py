"""What is right for a user: their own successes, faded, bounded, and nobody else's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.router.learning.habits import DISCOUNT, KEPT, PRIOR, Habits, hash_of_user
from services.router.learning.ranker import builtin, order
from tests.unit.test_ranker import _candidate

ANN, BEN = hash_of_user("acme", "ann"), hash_of_user("acme", "ben")


def test_what_succeeded_for_a_user_is_likelier_for_them_and_for_nobody_else() -> None:
    habits = Habits()
    for _ in range(3):
        habits.observe(ANN, "a", True)
        habits.observe(ANN, "b", False)
    odds = habits.log_odds(ANN, ["a", "b", "c", "d"])
    count = sum(DISCOUNT**place for place in range(3))
    assert odds == pytest.approx([math.log(1 + count / (PRIOR / 4)), 0, 0, 0])
    assert habits.log_odds(BEN, ["a", "b"]) == habits.log_odds(b"", ["a", "b"]) == [0, 0]
    assert hash_of_user("acme", "ann") != hash_of_user("other", "ann")


def test_old_successes_fade_and_no_user_is_certain() -> None:
    habits = Habits()
    for _ in range(300):
        habits.observe(ANN, "a", True)
    assert habits.log_odds(ANN, ["a", "b"])[0] < math.log(1 + 1 / (1 - DISCOUNT) / (PRIOR / 2)) + 1e-6
    for _ in range(40):
        habits.observe(ANN, "b", True)
    first, second = habits.log_odds(ANN, ["a", "b"])
    assert second > first


def test_memory_is_bounded() -> None:
    habits = Habits(max_bytes=50_000)
    for number in range(1000):
        for adapter in range(2 * KEPT):
            habits.observe(hash_of_user("t", str(number)), f"a{adapter}", True)
    assert habits._seen.bytes <= 50_000
    assert len(habits._seen.get(hash_of_user("t", "999")) or {}) == KEPT


@pytest.mark.parametrize(("user", "weight"), [(b"", 1.0), (ANN, 0.0), (ANN, float("nan"))], ids=["nobody", "no share", "no number"])
def test_what_says_nothing_of_a_user_teaches_nothing(user: bytes, weight: float) -> None:
    habits = Habits()
    habits.observe(user, "a", True, weight)
    assert len(habits._seen) == 0


def test_a_habit_decides_between_what_is_as_likely() -> None:
    candidates = [_candidate("a"), _candidate("b")]
    rng = np.random.default_rng(0)
    assert order(builtin(), candidates, rng, explore=False).expected == pytest.approx((0.5, 0.5))
    made = type(candidates[0])(candidates[1].adapter_id, candidates[1].features, candidates[1].posterior, habit=2.0)
    ranking = order(builtin(), [candidates[0], made], rng, explore=False)
    assert ranking.expected[1] == pytest.approx(math.exp(2) / (1 + math.exp(2)))
