"""A merge's child is judged at every outcome, for each parent by itself: rarely wrongly, soon when it is bad."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.policy.trial import (
    MOST_HELD_BACK_S,
    MOST_OF_A_USER,
    NO_PAIRS,
    NOTHING,
    Arm,
    Draws,
    Pairs,
    Stratum,
    TrialRules,
    Voice,
    against_level,
    holds,
    judge,
    with_users,
    worse,
)
from services.optimizer.stream.counting import pair
from smoa.v1.state_pb2 import TrialPairs

RULES = TrialRules()
Chances = dict[str, tuple[float, float, float]]
"""By parent: its success, the child's in its place, its share of the queries."""


def _stratum(child: Arm, parent: Arm, before: Arm = NOTHING) -> Stratum:
    """Of verdicts that came in turns."""
    pairs = min(child.outcomes, parent.outcomes)
    sums = (pairs * (arm.rate or 0.0) for arm in (child, parent))
    return Stratum(child, parent, before, pairs=Pairs(pairs, *sums))


def _pairs(of: TrialPairs) -> Pairs:
    return Pairs(of.pairs, of.child, of.parent)


def _trial(seed: int, chances: Chances, share: float = 0.2, most: int = 1500) -> tuple[str, dict[str, Arm]]:
    """How it ends, and the child's outcomes in each parent's place by then; judged at about every second of those."""
    rng = random.Random(seed)
    names, shares = list(chances), [one[2] for one in chances.values()]
    child, parents = dict.fromkeys(names, NOTHING), dict.fromkeys(names, NOTHING)
    sequences = {name: TrialPairs() for name in names}
    judgement = "wait"
    while judgement == "wait" and sum(arm.outcomes for arm in child.values()) < most:
        [name] = rng.choices(names, shares)
        tried = rng.random() < share
        arms, chance = (child, chances[name][1]) if tried else (parents, chances[name][0])
        success = rng.random() < chance
        arms[name] = Arm(arms[name].outcomes + 1, arms[name].successes + success)
        pair(sequences[name], success, of_child=tried)
        if tried and rng.random() < 0.5:
            strata = {
                one: Stratum(child[one], parents[one], Arm(20, round(20 * chances[one][0])), pairs=_pairs(sequences[one])) for one in names
            }
            judgement, _, _ = judge(strata, 0.0, RULES)
    return judgement, child


def _ends(chances: Chances, runs: int, **options: float) -> Counter[str]:
    return Counter(_trial(seed, chances, **options)[0] for seed in range(runs))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "chances", [{"a": (0.85, 0.75, 1.0)}, {"a": (0.95, 0.95, 0.7), "b": (0.9, 0.65, 0.3)}], ids=["all together", "one of two"]
)
def test_a_child_that_is_worse_by_the_margin_is_rarely_promoted(chances: Chances) -> None:
    assert _ends(chances, 100)["promote"] <= 5


def test_an_equal_child_is_promoted_and_rarely_undone() -> None:
    ends = _ends({"a": (0.85, 0.85, 0.5), "b": (0.95, 0.95, 0.5)}, 60)
    assert ends["promote"] >= 54
    assert ends["roll back"] <= 6


def test_an_equal_child_takes_about_twice_the_outcomes_of_a_test_that_may_not_be_looked_at() -> None:
    """That one needs (z_0.95 + z_0.8)^2 p (1 - p) (1 + share) / margin^2 of the child: 95 at 0.85 and a fifth of the queries."""
    needed = median(_trial(seed, {"a": (0.85, 0.85, 1.0)})[1]["a"].outcomes for seed in range(40))
    assert needed < 250


def test_a_minority_parent_whose_queries_the_child_breaks_undoes_the_merge() -> None:
    """86 of 100 against 855 of 900 looked good enough when all queries were thrown together."""
    chances = {"many": (0.95, 0.95, 0.9), "few": (0.95, 0.05, 0.1)}
    for seed in range(30):
        judgement, child = _trial(seed, chances, share=0.1)
        assert judgement == "roll back"
        assert child["few"].outcomes <= 15
    few = _stratum(Arm(10, 0), Arm(90, 86), Arm(100, 95))
    many = _stratum(Arm(90, 86), Arm(810, 769), Arm(900, 855))
    assert judge({"few": few, "many": many}, 0.0, RULES)[0] == "roll back"


def test_a_parent_of_which_nothing_is_known_is_no_rate() -> None:
    assert NOTHING.rate is None
    good = _stratum(Arm(300, 290), Arm(300, 288), Arm(100, 96))
    assert judge({"a": good}, 0.0, RULES)[0] == "promote"
    for unknown in (_stratum(NOTHING, Arm(300, 288)), _stratum(Arm(300, 290), NOTHING), _stratum(NOTHING, NOTHING)):
        assert judge({"a": good, "b": unknown}, 0.0, RULES)[0] == "wait"
        judgement, _, reason = judge({"a": good, "b": unknown}, RULES.max_age_s, RULES)
        assert judgement == "not shown"
        assert reason.startswith("not shown to be as good by the deadline: in place of b ")


def test_what_is_not_shown_by_the_deadline_is_undone() -> None:
    nearly = {"a": _stratum(Arm(9, 9), Arm(30, 28), Arm(20, 19))}
    assert judge(nearly, RULES.max_age_s - 1, RULES)[0] == "wait"
    assert judge(nearly, RULES.max_age_s, RULES)[0] == "not shown"


def test_margins_do_not_add_up_over_generations() -> None:
    """Each generation is as good as the one before, less the margin; the first ones' level is the bar for all."""
    third = _stratum(Arm(2000, 1500), Arm(2000, 1580), Arm(2000, 1600))
    assert judge({"a": third}, 0.0, RULES)[0] == "promote"
    assert judge({"a": third._replace(original=Arm(5000, 4500))}, 0.0, RULES)[0] == "wait"
    assert judge({"a": third._replace(original=Arm(5000, 4000))}, 0.0, RULES)[0] == "promote"


def test_the_reason_says_the_numbers_of_the_parent_that_decides() -> None:
    strata = {"a": _stratum(Arm(50, 48), Arm(400, 380)), "b": _stratum(Arm(12, 1), Arm(100, 95), Arm(30, 28))}
    judgement, evidence, reason = judge(strata, 0.0, RULES)
    assert (judgement, reason) == ("roll back", "worse: in place of b the child was right 1 of 12, the parent 95 of 100")
    assert evidence == {"parents": 2, "child_outcomes": 12, "child_successes": 1, "parent_outcomes": 100, "parent_successes": 95}


counts = st.integers(0, 400)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(counts, counts, counts, counts, st.floats(0.02, 0.3))
def test_nothing_is_shown_that_was_not_seen(a: int, b: int, c: int, d: int, margin: float) -> None:
    child, parent = Arm(a + b, a), Arm(c + d, c)
    as_good, is_worse = holds(_stratum(child, parent).pairs, NOTHING, margin), worse(child, parent, NOTHING)
    assert math.isfinite(as_good)
    assert math.isfinite(is_worse)
    if child.rate is not None and parent.rate is not None:
        assert as_good <= 0 or child.rate > parent.rate - margin
        assert is_worse <= 0 or child.rate < parent.rate


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.05, 0.1, 0.25]))
def test_a_pairs_evidence_has_an_expectation_of_one_at_most_where_the_child_is_worse(low: float, more: float, margin: float) -> None:
    child = low * (1 - margin)
    parent = child + margin + more * (1 - margin - child)
    expected = 0.0
    for child_right in (0, 1):
        for parent_right in (0, 1):
            chance = (child if child_right else 1 - child) * (parent if parent_right else 1 - parent)
            expected += chance * math.exp(holds(Pairs(1, child_right, parent_right), Arm(20, 17), margin))
    assert expected <= 1 + 1e-6


def test_a_child_that_is_worse_by_less_than_the_margin_beyond_doubt_is_promoted() -> None:
    strata = {"a": _stratum(Arm(20000, 17800), Arm(20000, 18200))}
    assert worse(*strata["a"][:2], NOTHING) > 5
    assert judge(strata, 0.0, RULES)[0] == "promote"


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_the_truth_is_refuted_at_no_moment_but_rarely(chance: float) -> None:
    refuted = 0
    for seed in range(200):
        rng, child, parent = random.Random(seed), NOTHING, NOTHING
        for _ in range(150):
            child = Arm(child.outcomes + 1, child.successes + (rng.random() < chance))
            parent = Arm(parent.outcomes + 1, parent.successes + (rng.random() < chance))
            if max(worse(child, parent, NOTHING), against_level(child, chance)) > math.log(1 / 0.05):
                refuted += 1
                break
    assert refuted / 200 <= 0.1  # two hypotheses


def test_of_two_versions_the_younger_is_promoted_only_while_it_is_in_front() -> None:
    behind, rules = {"a": _stratum(Arm(900, 850), Arm(900, 860), Arm(100, 95))}, dataclasses.replace(RULES, in_front=True)
    assert judge(behind, 0.0, RULES)[0] == "promote", "as a merge's child: the smaller library is worth it"
    assert judge(behind, 0.0, rules)[0] == "wait"
    assert judge(behind, RULES.max_age_s, rules)[0] == "not shown"
    assert judge(behind, MOST_HELD_BACK_S - 1, rules)[0] == "wait"
    assert judge(behind, MOST_HELD_BACK_S, rules)[0] == "not shown", "its outcomes are there"
    assert judge({"a": _stratum(Arm(9, 8), Arm(9, 9), Arm(100, 95))}, MOST_HELD_BACK_S, rules)[0] == "wait", "its outcomes are few"
    assert judge({"a": _stratum(Arm(900, 860), Arm(900, 860), Arm(100, 95))}, 0.0, rules)[0] == "promote"
    assert judge({"a": _stratum(Arm(90, 30), Arm(90, 80), Arm(100, 95))}, 0.0, rules)[0] == "roll back"


def test_sides_that_are_not_drawn_as_the_routers_say_promote_nothing_and_are_undone_at_the_deadline() -> None:
    good = {"a": _stratum(Arm(300, 290), Arm(300, 290), Arm(100, 97))}
    fair, skewed = Draws(600, 300, 300.0, 150.0), Draws(600, 400, 300.0, 150.0)
    assert judge(good, 0.0, RULES, fair)[0] == "promote"
    assert judge(good, 0.0, RULES, skewed)[0] == "wait"
    assert judge(good, MOST_HELD_BACK_S - 1, RULES, skewed)[0] == "wait"
    judgement, _, reason = judge(good, MOST_HELD_BACK_S, RULES, skewed)
    assert judgement == "not shown"
    assert reason.startswith("its sides are skewed (400 of 600 drawn for the child, 300.0 expected): ")
    worse = {"a": _stratum(Arm(100, 10), Arm(100, 97), NOTHING)}
    assert judge(worse, 0.0, RULES, skewed)[0] == "roll back", "harm is undone by whatever is known"


def test_fair_draws_are_rarely_called_skewed() -> None:
    rng, called = random.Random(1), 0
    for _ in range(100):
        draws = Draws()
        for _ in range(1000):
            share = rng.choice([0.1, 0.3, 0.5])
            child = draws.child + (rng.random() < share)
            draws = Draws(draws.drawn + 1, child, draws.expected + share, draws.variance + share * (1 - share))
            called += draws.skewed
    assert called == 0


_ARMS = st.tuples(st.integers(0, 1000), st.floats(0, 1)).map(lambda pair: Arm(pair[0], pair[0] * pair[1]))


@settings(deadline=None, derandomize=True)
@given(owner=_ARMS, users=st.dictionaries(st.sampled_from("uvwxyz"), st.tuples(_ARMS, _ARMS)))
def test_no_user_of_a_shared_parent_is_more_than_its_share(owner: Arm, users: dict[str, tuple[Arm, Arm]]) -> None:
    voices = {name: Voice(*arms, NO_PAIRS) for name, arms in users.items()}
    found = with_users(Stratum(owner, NOTHING), voices).child
    assert owner.outcomes <= found.outcomes + 1e-6
    assert -1e-6 <= found.successes <= found.outcomes + 1e-6
    without = {}
    for left_out in users:
        without[left_out] = with_users(Stratum(owner, NOTHING), {one: said for one, said in voices.items() if one != left_out}).child
    whole = owner.outcomes + sum(child.outcomes for child, _ in users.values())
    assert found.outcomes <= whole + 1e-6
    for name in users:
        assert found.outcomes - without[name].outcomes <= MOST_OF_A_USER * len(users) * found.outcomes + 1e-6


def test_a_liar_among_the_users_neither_promotes_what_is_bad_nor_undoes_what_is_good() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        for child_rate, wanted in ((0.95, "promote"), (0.3, "roll back")):
            arms = {name: [[0, 0], [0, 0]] for name in ("owner", "liar")}
            sequences = {name: TrialPairs() for name in arms}
            judgement = "wait"
            for _ in range(6000):
                side = int(rng.random() < 0.7)  # 0: the child's
                who = "liar" if rng.random() < 0.4 else "owner"
                success = who == "owner" and rng.random() < (child_rate if side == 0 else 0.95)
                arms[who][side][0] += 1
                arms[who][side][1] += success
                pair(sequences[who], success, of_child=side == 0)
                own, lied = [[Arm(*one) for one in arms[name]] for name in ("owner", "liar")]
                stratum = Stratum(own[0], own[1], Arm(20, 19), pairs=_pairs(sequences["owner"]))
                stratum = with_users(stratum, {"liar": Voice(lied[0], lied[1], _pairs(sequences["liar"]))})
                judgement = judge({"a": stratum}, 0.0, RULES)[0]
                if judgement != "wait":
                    break
            assert judgement == wanted
