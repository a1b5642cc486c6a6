"""A canary is judged at every outcome: rarely wrongly, soon when it is bad."""

from __future__ import annotations

import random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.policy.trial import Arm, TrialRules, interval, judge, reason_of

RULES = TrialRules()


def _trial(seed: int, child: float, parents: float, share: float = 0.1, rules: TrialRules = RULES) -> tuple[str, int]:
    """How it ends, and how many queries the child has had by then; judged after every outcome of either."""
    rng = random.Random(seed)
    arms = {"child": Arm(0, 0), "parents": Arm(0, 0)}
    while True:
        name, chance = ("child", child) if rng.random() < share else ("parents", parents)
        arm = arms[name]
        arms[name] = Arm(arm.outcomes + 1, arm.successes + (rng.random() < chance))
        judgement, _ = judge(arms["child"], arms["parents"], 0.0, rules)
        if judgement != "wait":
            return judgement, arms["child"].outcomes


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.01, 0.05, 0.2]))
def test_an_interval_holds_the_rate_and_narrows_with_alpha(successes: int, failures: int, alpha: float) -> None:
    arm = Arm(successes + failures, successes)
    low, high = interval(arm, alpha)
    assert 0 <= low <= arm.rate <= high <= 1
    wider_low, wider_high = interval(arm, alpha / 2)
    assert wider_low <= low
    assert high <= wider_high


def test_without_outcomes_nothing_is_known() -> None:
    assert interval(Arm(0, 0), 0.05) == (0.0, 1.0)
    assert judge(Arm(0, 0), Arm(500, 450), 0.0, RULES)[0] == "wait"


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_the_truth_leaves_the_interval_at_no_moment_but_rarely(chance: float) -> None:
    alpha, left = 0.1, 0
    for seed in range(200):
        rng, arm = random.Random(seed), Arm(0, 0)
        for _ in range(150):
            arm = Arm(arm.outcomes + 1, arm.successes + (rng.random() < chance))
            low, high = interval(arm, alpha)
            if not low <= chance <= high:
                left += 1
                break
    assert left / 200 <= alpha


def test_a_child_that_never_succeeds_is_rolled_back_before_twenty_queries() -> None:
    ends = [_trial(seed, 0.0, 0.9) for seed in range(50)]
    assert {end for end, _ in ends} == {"roll back"}
    assert max(seen for _, seen in ends) < 20


def test_a_much_worse_child_is_rolled_back_before_a_hundred_queries() -> None:
    ends = [_trial(seed, 0.4, 0.9) for seed in range(100)]
    assert sum(end == "promote" for end, _ in ends) == 0
    assert mean(seen for _, seen in ends) < 40
    assert max(seen for _, seen in ends) <= RULES.max_outcomes


def test_a_child_as_good_as_its_parents_is_promoted() -> None:
    ends = [_trial(seed, 0.85, 0.85) for seed in range(100)]
    assert sum(end == "promote" for end, _ in ends) >= 97


def test_a_canary_with_little_traffic_is_promoted_in_the_end_if_it_did_no_worse_and_not_unjudged() -> None:
    assert judge(Arm(0, 0), Arm(3, 3), RULES.max_age_s - 1, RULES)[0] == "wait"
    assert judge(Arm(0, 0), Arm(3, 3), RULES.max_age_s, RULES)[0] == "roll back"
    assert judge(Arm(9, 8), Arm(30, 27), RULES.max_age_s, RULES)[0] == "promote"
    assert judge(Arm(9, 3), Arm(30, 27), RULES.max_age_s, RULES)[0] == "roll back"


def test_the_reason_says_the_numbers() -> None:
    _, evidence = judge(Arm(10, 0), Arm(50, 45), 0.0, RULES)
    assert reason_of(evidence) == "child 0.00 of 10 (0.00 to 0.46), parents 0.90 of 50 (0.70 to 0.99)"
