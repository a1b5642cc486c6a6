"""The learned re-ranker: what it may reorder, how it explores, what it learns, and what it refuses to be."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.catalogue.statistics import Statistics
from services.router.learning.contexts import Correction
from services.router.learning.posteriors import DISCOUNT, PRIOR_SUCCESS, Posterior, Posteriors
from services.router.learning.ranker import FEATURES, RISING, Considered, Ranker, builtin, considered, order
from services.router.learning.ranker_training import beats_hybrid, evaluate, fit, train
from smoa.errors import FailedPrecondition, InvalidArgument
from tests.unit.ranker_support import success_log

UNTRIED = Posterior(1.2, 0.8)


def _candidate(name: str, score: float = 0.5, best: float = 0.5, posterior: Posterior = UNTRIED) -> Considered:
    return considered(name, score, best, score, 0.0, posterior, sum(posterior) - sum(UNTRIED), 1.0, 3)


def test_unknown_adapters_are_believed_in_a_little() -> None:
    assert Posteriors().of("t", "a").mean == pytest.approx(PRIOR_SUCCESS)
    assert Posteriors().of("t", "a", Statistics(outcomes=100, successes=10)).mean == pytest.approx(0.11, abs=0.01)


def test_outcomes_move_the_posterior_and_old_ones_fade() -> None:
    posteriors = Posteriors()
    for _ in range(100):
        posteriors.observe("t", "a", True)
    assert posteriors.of("t", "a").mean > 0.95
    assert posteriors.evidence("t", "a") == pytest.approx(1 / (1 - DISCOUNT), rel=0.05)
    for _ in range(40):
        posteriors.observe("t", "a", False)
    assert posteriors.of("t", "a").mean < 0.25


def test_a_share_of_an_outcome_counts_as_much() -> None:
    posteriors = Posteriors()
    posteriors.observe("t", "a", True, 0.25)
    assert posteriors.of("t", "a").alpha == pytest.approx(2 * PRIOR_SUCCESS + 0.25)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=80))
def test_posteriors_are_distributions_of_bounded_strength(outcomes: list[tuple[bool, float]]) -> None:
    posteriors = Posteriors()
    for success, weight in outcomes:
        posteriors.observe("t", "a", success, weight)
    alpha, beta = posteriors.of("t", "a", Statistics(outcomes=10**6, successes=10**6))
    assert alpha > 0
    assert beta > 0
    assert alpha + beta < 6 + 1 / (1 - DISCOUNT) + 2


def test_untrained_it_keeps_hybrids_order() -> None:
    candidates = [_candidate("a", 0.5), _candidate("b", 0.4), _candidate("c", 0.45)]
    ranking = order(builtin(), candidates, np.random.default_rng(0), explore=False)
    assert ranking.order == (0, 2, 1)
    assert ranking.propensities == (1.0, 0.0, 0.0)


def test_untrained_it_prefers_what_succeeds_among_near_equals() -> None:
    candidates = [_candidate("a", 0.5, posterior=Posterior(2, 20)), _candidate("b", 0.49, posterior=Posterior(20, 2))]
    ranking = order(builtin(), candidates, np.random.default_rng(0))
    assert ranking.order[0] == 1
    assert ranking.propensities[1] > 0.95


def test_what_nobody_tried_is_tried_about_as_often_as_it_may_be_the_best() -> None:
    candidates = [_candidate("known", posterior=Posterior(12, 8)), _candidate("new", posterior=Posterior(1.2, 0.8))]
    firsts = [order(builtin(), candidates, np.random.default_rng(seed)) for seed in range(300)]
    share = np.mean([ranking.order[0] == 1 for ranking in firsts])
    assert 0.3 < share < 0.7
    assert np.mean([ranking.propensities[1] for ranking in firsts]) == pytest.approx(share, abs=0.08)


def test_nothing_is_explored_before_hybrids_choice_was_tried() -> None:
    candidates = [_candidate("a"), _candidate("b", 0.499, posterior=Posterior(2, 1.4))]
    for seed in range(50):
        ranking = order(builtin(), candidates, np.random.default_rng(seed))
        assert ranking.order == (0, 1)
        assert ranking.propensities == (1.0, 0.0)


def test_an_incumbent_does_not_overtake_what_was_never_tried() -> None:
    candidates = [_candidate("new"), _candidate("old", 0.499, posterior=Posterior(90, 2))]
    for explore in (False, True):
        ranking = order(builtin(), candidates, np.random.default_rng(0), explore=explore)
        assert (ranking.order, ranking.propensities) == ((0, 1), (1.0, 0.0))
        assert ranking.log_odds[0] >= ranking.log_odds[1], "the weights follow the order"


def test_what_outcomes_said_of_such_queries_reorders_what_hybrid_expects() -> None:
    tried = Posterior(12, 8)
    candidates = [
        dataclasses.replace(_candidate("a", posterior=tried), correction=Correction(-0.6, 0.2)),
        dataclasses.replace(_candidate("b", 0.0, posterior=tried), correction=Correction(0.5, 0.2)),
    ]
    ranking = order(builtin(), candidates, np.random.default_rng(0), explore=False)
    assert ranking.order == (1, 0)
    assert sum(ranking.expected) == pytest.approx(1)
    assert ranking.expected[0] > ranking.expected[1], "what is learned from is what was expected without them"


def test_where_hybrid_is_sure_nothing_is_tried_for_not_being_known_there() -> None:
    tried = Posterior(190, 10)
    candidates = [_candidate("a", 9.0, best=9.0, posterior=tried), _candidate("b", 0.0, best=9.0, posterior=tried)]
    assert all(order(builtin(), candidates, np.random.default_rng(seed)).order == (0, 1) for seed in range(100))


def test_what_acted_never_has_no_propensity() -> None:
    candidates = [_candidate("a", 0.5), _candidate("b", 0.4)]
    for seed in range(200):
        ranking = order(builtin(), candidates, np.random.default_rng(seed))
        assert ranking.propensities[ranking.order[0]] > 0


def test_an_artefact_comes_back_as_it_was() -> None:
    made = dataclasses.replace(builtin(), version="x", report={"outcomes": 5.0})
    assert Ranker.from_bytes(made.to_bytes()) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "was trained for other features"),
        ({"features": ["score"]}, "was trained for other features"),
        ({"weights": [1.0]}, "holds numbers that cannot be used"),
        ({"weights": [float("nan")] * len(FEATURES)}, "holds numbers that cannot be used"),
        ({"scale": [0.0] * len(FEATURES)}, "holds numbers that cannot be used"),
        ({"bias": "much"}, "is not an artefact"),
        ({"report": 3}, "is not an artefact"),
    ],
)
def test_bad_artefacts_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^ranker: {message}"):
        Ranker.from_bytes(json.dumps({**json.loads(builtin().to_bytes()), **change}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff"])
def test_what_is_no_artefact_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"^ranker: is not an artefact"):
        Ranker.from_bytes(data)


def test_training_finds_what_success_hangs_on() -> None:
    ranker = train(success_log(3000))
    weights = dict(zip(FEATURES, ranker.weights, strict=True))
    assert weights["success"] > 3 * abs(weights["log_odds"])
    assert ranker.report["learned_success"] > ranker.report["hybrid_success"] + 0.05
    assert ranker.report["lead"] > 3 * ranker.report["lead_error"] > 0
    assert beats_hybrid(ranker)
    assert train(success_log(3000)) == ranker, "the same log gives the same ranker"


def test_luck_is_not_published() -> None:
    """Of logs in which nothing matters, few rankers may seem better than hybrid."""
    published = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ranker = train([dataclasses.replace(one, success=float(rng.random() < 0.5)) for one in success_log(400, seed)])
        published += beats_hybrid(ranker)
    assert published <= 3


def test_a_weight_never_turns_against_what_its_feature_means() -> None:
    ranker = fit(success_log(2000, against=True))
    assert all(weight >= 0 for name, weight in zip(FEATURES, ranker.weights, strict=True) if name in RISING)


def test_the_estimate_of_another_policy_is_about_right() -> None:
    logged, ranker = success_log(6000), fit(success_log(3000, seed=1))
    best = np.mean([max(1 / (1 + np.exp(-one.features[:, FEATURES.index("success")]))) for one in logged])
    found = evaluate(ranker, logged, ranker)
    assert found.success == pytest.approx(best, abs=4 * found.error + 0.02)


def test_too_little_is_not_learned_from() -> None:
    with pytest.raises(FailedPrecondition, match=r"^log: holds 10 outcomes .* 200 are needed"):
        train(success_log(10))
    with pytest.raises(FailedPrecondition, match=r"^log: every outcome in it is the same"):
        train([dataclasses.replace(one, success=1.0) for one in success_log(300)])
