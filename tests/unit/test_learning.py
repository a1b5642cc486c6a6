"""When a ranker is announced and when it is taken back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from services.router.learning.posteriors import Posterior
from services.router.learning.publication import MIN_LIVE, next_step
from services.router.learning.ranker import Ranker, builtin, considered
from services.router.learning.ranker_training import Logged
from smoa.errors import FailedPrecondition
from tests.unit.ranker_support import success_log


def _log(count: int, ranker: str, tries: str, seed: int = 0, *, hybrid: float = 0.7, other: float = 0.3) -> list[Logged]:
    """Decisions between two candidates, of which the one with the higher score is hybrid's; `tries` is tried nine times of ten."""
    rng, logged = np.random.default_rng(seed), []
    for number in range(count):
        scores = np.array([0.5, 0.45])
        features = np.array(
            [considered("a", s, 0.5, s, 0.0, Posterior(3.0, 3.0), 5.0, 1.0, 3).features for s in scores + rng.normal(0, 0.01)]
        )
        first = "hybrid" if (rng.random() < 0.9) == (tries == "hybrid") else "other"
        chance = hybrid if first == "hybrid" else other
        propensity = 0.9 if first == tries else 0.1
        order = [0, 1] if first == "hybrid" else [1, 0]
        success = float(rng.random() < chance)
        logged.append(Logged(features[order], np.array([propensity, 1 - propensity]), success, number, ranker))
    return logged


def _ranker(version: str) -> Ranker:
    return dataclasses.replace(builtin(), version=version)


def test_what_beats_hybrid_and_the_current_one_is_announced_with_the_way_back() -> None:
    current = dataclasses.replace(builtin(), version="old", weights=tuple(0.0 for _ in builtin().weights))
    step = next_step(success_log(3000), current)
    assert step.ranker is not None
    assert (step.previous, step.evidence) == (current, step.ranker.report)
    assert step.reason.endswith("to old, on 600 held out")


def test_what_is_no_better_than_the_current_one_is_not() -> None:
    first = next_step(success_log(9000), _ranker("old")).ranker
    assert first is not None
    again = next_step(success_log(9000, seed=1), first)
    assert again.ranker is None
    assert "is not sure to be better" in again.reason


@pytest.mark.parametrize("previous", [_ranker("before"), None])
def test_a_ranker_that_does_worse_than_hybrid_would_have_is_taken_back(previous: Ranker | None) -> None:
    logged = _log(400, "builtin", "hybrid") + _log(MIN_LIVE, "bad", "other", seed=1)
    step = next_step(logged, _ranker("bad"), previous)
    assert (step.ranker, step.previous) == (previous or builtin(), None)
    assert step.reason.startswith("hybrid would have done better by 0.3")
    assert step.evidence["live_outcomes"] == MIN_LIVE
    assert step.evidence["live_regret"] > 3 * step.evidence["live_regret_error"] > 0


def test_going_back_to_itself_is_going_back_to_hybrid() -> None:
    logged = _log(400, "builtin", "hybrid") + _log(MIN_LIVE, "bad", "other", seed=1)
    assert next_step(logged, _ranker("bad"), _ranker("bad")).ranker == builtin()


def test_nothing_is_announced_before_there_are_outcomes_of_what_was_announced_last() -> None:
    logged = success_log(3000)
    waiting = next_step(logged, builtin(), None, announced_at_us=2900)
    assert (waiting.ranker, waiting.reason) == (None, f"99 outcomes since builtin was announced; {MIN_LIVE} are waited for")
    assert "waited for" not in next_step(logged, builtin(), None, announced_at_us=2700).reason


def test_of_logs_in_which_nothing_matters_none_is_announced() -> None:
    announced = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        logged = [dataclasses.replace(one, success=float(rng.random() < 0.5)) for one in success_log(400, seed)]
        announced += next_step(logged, builtin()).ranker is not None
    assert announced <= 1


def test_few_outcomes_of_its_own_do_not_judge_it() -> None:
    logged = _log(400, "builtin", "hybrid") + _log(MIN_LIVE - 1, "bad", "other", seed=1)
    assert not next_step(logged, _ranker("bad"), None).reason.startswith("hybrid would have")


def test_one_that_is_as_good_is_hardly_ever_taken_back() -> None:
    taken = 0
    for seed in range(40):
        logged = _log(300, "builtin", "hybrid", seed, other=0.7) + _log(300, "new", "other", 100 + seed, other=0.7)
        taken += next_step(logged, _ranker("new"), None).reason.startswith("hybrid would have")
    assert taken <= 1


def test_without_outcomes_there_is_nothing_to_do() -> None:
    with pytest.raises(FailedPrecondition, match=r"^log: holds 0 outcomes"):
        next_step([], builtin(), None)
