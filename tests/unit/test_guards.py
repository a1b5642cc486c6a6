"""What speaks against a child on trial beside its verdicts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from services.optimizer.control.trials import Trials
from services.optimizer.policy.guards import MIN_ANSWERS, Guarded, Spent, evidence, guarded, together
from services.optimizer.policy.trial import MOST_HELD_BACK_S, Arm, Pairs, Stratum, TrialRules, judge
from smoa.v1 import registry_pb2

ALPHA = 0.05


def _spent(uses: int, answered: float = 1.0, tokens: float = 20.0, first_token_ms: float = 100.0) -> Spent:
    answers = round(uses * answered)
    return Spent(uses, answers, answers * tokens, answers * first_token_ms * 1000)


def _guarded(child: Spent, parents: Spent, most: float = 1.5) -> Guarded:
    """All was asked a while ago."""
    return guarded(child, parents, (child.uses, parents.uses), most, ALPHA)


def test_a_child_that_is_as_its_parents_are_has_nothing_against_it() -> None:
    assert _guarded(_spent(100), _spent(900)) == Guarded()


def test_a_child_that_does_not_answer_fails_though_nobody_judges_it() -> None:
    found = _guarded(_spent(60, answered=0.3), _spent(600, answered=0.98))
    assert found.fails == "answers less often: 18 of 60 decisions, its parents 588 of 600"


def test_what_was_asked_a_moment_ago_may_be_on_its_way() -> None:
    child, parents = Spent(50, 30, 600, 3e6), Spent(1000, 1000, 20000, 1e8)
    assert guarded(child, parents, None, 1.5, ALPHA).fails == ""
    assert guarded(child, parents, (30, 900), 1.5, ALPHA).fails == ""
    assert guarded(child._replace(uses=90), parents, (55, 900), 1.5, ALPHA).fails != ""


@pytest.mark.parametrize(
    ("child", "said"),
    [
        (_spent(80, first_token_ms=300), "the first token comes after 300 ms, its parents' 100"),
        (_spent(80, tokens=64), "answers have 64 tokens, its parents' 20"),
        (_spent(80, tokens=29, first_token_ms=149), ""),
    ],
)
def test_a_child_whose_answers_take_more_is_not_promoted_while_they_do(child: Spent, said: str) -> None:
    assert _guarded(child, _spent(800)) == Guarded(costs=said)
    assert _guarded(child, _spent(800), 0.0) == Guarded()


@pytest.mark.parametrize(("child", "parents"), [(MIN_ANSWERS - 1, 900), (900, MIN_ANSWERS - 1), (0, 0)])
def test_of_a_few_answers_nothing_is_said(child: int, parents: int) -> None:
    assert _guarded(_spent(child, 0.5, 500, 5000), _spent(parents)) == Guarded()


def test_without_executors_that_tell_nothing_is_said() -> None:
    """As behind another engine: its callers judge, and nobody counts tokens."""
    assert _guarded(_spent(500, answered=0), _spent(5000, answered=0)) == Guarded()
    assert _guarded(_spent(5000, answered=0), _spent(60, answered=0)) == Guarded()
    assert evidence(_spent(500, answered=0), _spent(5000, answered=0)) == {}


def test_an_equal_child_is_seldom_said_to_fail_however_often_it_is_looked_at() -> None:
    rng, failed = np.random.default_rng(5), 0
    for _ in range(200):
        sides = rng.random(2000) < 0.1
        answered = rng.random(2000) < 0.9
        for end in range(100, 2001, 50):
            child, parents = (Spent(int((side := sides[:end] == one).sum()), int((side & answered[:end]).sum())) for one in (True, False))
            if _guarded(child, parents).fails:
                failed += 1
                break
    assert failed / 200 <= ALPHA


def test_what_came_before_the_trial_is_not_of_it() -> None:
    assert _spent(100).since(_spent(40)) == _spent(60)
    assert _spent(40).since(_spent(100)) == Spent()  # of another epoch
    assert together([_spent(10), _spent(20)]) == _spent(30)
    assert evidence(_spent(100, tokens=5), _spent(100)) == {
        "child_answered": 1.0,
        "child_tokens": 5.0,
        "child_first_token_ms": 100.0,
        "parents_answered": 1.0,
        "parents_tokens": 20.0,
        "parents_first_token_ms": 100.0,
    }


def test_of_a_version_only_what_it_took_since_it_was_looked_at_counts() -> None:
    def adapter(uses: int, *, merge_id: str = "", before: int = 0) -> registry_pb2.Adapter:
        def of(one: int) -> registry_pb2.AdapterStatistics:
            return registry_pb2.AdapterStatistics(uses=one, generations=one, tokens=one * 20, first_token_us=one * 100_000)

        counts, then = of(uses), of(before)
        return registry_pb2.Adapter(adapter_id="c" if before else "p", merge_id=merge_id, statistics=counts, canary_baseline={"p": then})

    nothing: Any = None
    trials = Trials(nothing, TrialRules(), nothing, nothing)
    assert trials._spent(adapter(100, merge_id="m", before=400), [adapter(900)]) == (_spent(100), _spent(500))
    trials._spent(adapter(70, before=400), [adapter(900)])
    assert trials._spent(adapter(100, before=400), [adapter(1000)]) == (_spent(30), _spent(100))
    trials.are([])
    assert trials._spent(adapter(100, before=400), [adapter(1000)]) == (Spent(), Spent())


def test_a_child_with_something_against_it_waits_and_is_undone_at_the_deadline() -> None:
    arm = Arm(400, 400)
    strata = {"p": Stratum(arm, arm, arm, pairs=Pairs(400, 400, 400))}
    rules = TrialRules()
    assert judge(strata, 1.0, rules)[0] == "promote"
    assert judge(strata, 1.0, rules, against="answers have 90 tokens, its parents' 20")[0] == "wait"
    judgement, _, reason = judge(strata, MOST_HELD_BACK_S, rules, against="answers have 90 tokens, its parents' 20")
    assert (judgement, reason.split(":")[0]) == ("not shown", "answers have 90 tokens, its parents' 20")
    assert math.isfinite(rules.most_spent)
