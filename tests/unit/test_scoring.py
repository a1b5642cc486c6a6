"""Scoring: the order, the shares and the weights that the router promises."""

from __future__ import annotations

import math
from collections.abc import Iterable
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.catalogue.port import Catalogue
from services.router.catalogue.records import AdapterRecord, Candidate, labels_of
from services.router.routing.scoring import MAX_MIXED, Chosen, Hints, Scored, effective, softmax, task_score, weigh
from services.router.routing.strategies.hierarchical import Hierarchical
from services.router.routing.strategies.hybrid import Hybrid
from services.router.routing.strategies.learned import Learned
from services.router.routing.strategies.mixture import Mixture, mix
from services.router.routing.strategies.semantic import Semantic
from services.router.routing.strategies.strategy import Strategy
from services.router.routing.strategies.task import Task
from smoa.errors import InvalidArgument, SmoaError

EVERY: dict[str, Strategy] = {
    one.name: one for one in (Semantic(), Hybrid(), Hierarchical(), Mixture(), Task(), Learned(Mock(spec=Catalogue)))
}
STRATEGIES = ("semantic", "hybrid", "hierarchical", "mixture", "learned")


def check_strategy(strategy: str, hints: Hints) -> None:
    EVERY[strategy].check(hints)


def rank(strategy: str, candidates: Iterable[Candidate], hints: Hints, temperature: float = 0.01) -> list[Scored]:
    return EVERY[strategy].rank(list(candidates), hints, temperature, None)


def score(strategy: str, candidate: Candidate, hints: Hints) -> float:
    return EVERY[strategy].score(candidate, hints)


def _record(adapter_id: str, tags: tuple[str, ...] = (), specialization: str = "task") -> AdapterRecord:
    return AdapterRecord(
        adapter_id=adapter_id,
        version=1,
        digest="d",
        tenant="t",
        name=f"name-{adapter_id}",
        kind="lora_xs",
        granularity="NANO",
        specialization=specialization,
        base_model="b",
        rank=1,
        modules=("q",),
        parameter_count=1,
        file_bytes=1,
        tags=tags,
    )


def _candidate(record: AdapterRecord, cosine: float) -> Candidate:
    return Candidate(record.ref, cosine, labels_of(record))


def _candidates(**cosines: float) -> list[Candidate]:
    return [_candidate(_record(name), cosine) for name, cosine in cosines.items()]


def choose(
    strategy: str, candidates: list[Candidate], hints: Hints, top_k: int, threshold: float, temperature: float, min_weight: float
) -> list[Chosen]:
    ranked = [one for one in rank(strategy, candidates, hints, temperature) if one.score >= threshold][:top_k]
    return weigh(ranked, [one.log_odds for one in ranked], min_weight)


def _ids(
    candidates: list[Candidate], top_k: int = 9, threshold: float = -1.0, temperature: float = 0.1, min_weight: float = 0.0
) -> list[str]:
    chosen = choose("semantic", candidates, Hints(), top_k, threshold, temperature, min_weight)
    return [item.ref.adapter_id for item in chosen]


def test_best_first() -> None:
    assert _ids(_candidates(a=0.2, b=0.9, c=0.5)) == ["b", "c", "a"]


def test_ties_are_ordered_by_id() -> None:
    assert _ids(_candidates(c=0.5, a=0.5, b=0.5)) == ["a", "b", "c"]


def test_threshold_is_inclusive() -> None:
    assert _ids(_candidates(a=0.3, b=0.29, c=0.31), threshold=0.3) == ["c", "a"]


def test_top_k_bounds_the_number() -> None:
    assert _ids(_candidates(a=0.1, b=0.2, c=0.3), top_k=2) == ["c", "b"]


def test_nothing_over_the_threshold_is_nothing() -> None:
    assert _ids(_candidates(a=0.1), threshold=0.2) == []


def test_no_candidates_is_nothing() -> None:
    assert _ids([]) == []


def test_slivers_are_dropped_and_the_rest_sums_to_one() -> None:
    chosen = choose("semantic", _candidates(a=0.9, b=0.9, c=0.6), Hints(), 3, 0.0, 0.1, 0.1)
    assert [(item.ref.adapter_id, item.weight) for item in chosen] == [("a", 0.5), ("b", 0.5)]
    near, far = _candidates(a=0.5, b=0.5 - 0.1 * math.log(1.9)), _candidates(a=0.5, b=0.5 - 0.1 * math.log(2.1))
    assert [len(choose("semantic", ones, Hints(), 3, 0.0, 0.1, 0.5)) for ones in (near, far)] == [2, 1]


def test_weights_are_the_softmax_of_scores() -> None:
    chosen = choose("semantic", _candidates(a=0.5, b=0.4), Hints(), 3, 0.0, 0.1, 0.0)
    assert chosen[0].weight == pytest.approx(math.e / (math.e + 1))
    assert [item.score for item in chosen] == [0.5, 0.4]


@pytest.mark.parametrize("count", [1, 2, 11])
def test_of_equals_all_stay(count: int) -> None:
    chosen = choose("semantic", _candidates(**{f"a{n:02}": 0.5 for n in range(count)}), Hints(), count, 0.0, 0.1, 1.0)
    assert [one.weight for one in chosen] == pytest.approx([1 / count] * count)


def test_hybrid_is_six_tenths_semantic_and_four_tenths_task() -> None:
    candidate = _candidate(_record("a", tags=("x", "y")), 0.5)
    assert score("hybrid", candidate, Hints(tags=("x", "z"))) == pytest.approx(0.6 * 0.5 + 0.4 * 0.5, abs=1e-15)
    assert score("hybrid", candidate, Hints(tags=("x",))) == pytest.approx(0.7, abs=1e-15)


def test_hybrid_without_hints_is_semantic() -> None:
    assert score("hybrid", _candidate(_record("a"), 0.37), Hints()) == 0.37


def test_semantic_ignores_hints() -> None:
    assert score("semantic", _candidate(_record("a", tags=("x",)), 0.37), Hints(tags=("x",))) == 0.37


def test_task_ignores_the_cosine() -> None:
    assert score("task", _candidate(_record("a", tags=("x",)), -0.9), Hints(tags=("x",))) == 1.0


@pytest.mark.parametrize(
    ("hints", "wanted"),
    [
        (Hints(task_id="x"), 1.0),
        (Hints(task_id="name-a"), 1.0),
        (Hints(task_id="x", tags=("no",), specialization="no"), 1.0),
        (Hints(task_id="other"), 0.0),
        (Hints(task_id="other", tags=("x",)), 0.5),
        (Hints(tags=("x", "x", "no")), 0.5),
        (Hints(tags=("name-a",)), 1.0),
        (Hints(specialization="task"), 1.0),
        (Hints(specialization="style"), 0.0),
        (Hints(tags=("x", "no"), specialization="task"), 0.75),
        (Hints(), 0.0),
    ],
)
def test_task_score(hints: Hints, wanted: float) -> None:
    assert task_score(labels_of(_record("a", tags=("x", "y"))), hints) == wanted


def test_labels_of_hints() -> None:
    assert Hints(("a", "b"), "style", "job").labels == (("job",), ("a", "b"), ("style",))
    assert Hints(("a",)).labels == (("a",),)


def test_task_without_hints_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^tags: are empty and so are specialization and task_id; "):
        check_strategy("task", Hints())


@pytest.mark.parametrize(("strategy", "hints"), [(one, Hints()) for one in STRATEGIES] + [("task", Hints(task_id="x"))])
def test_other_strategies_need_no_hint(strategy: str, hints: Hints) -> None:
    refusals: list[str] = []
    try:
        check_strategy(strategy, hints)
    except SmoaError as refused:
        refusals.append(str(refused))
    assert refusals == []


@pytest.mark.parametrize("strategy", ["mixture", "learned"])
def test_mixture_and_learned_start_from_the_hybrid_score(strategy: str) -> None:
    candidate = _candidate(_record("a", tags=("x", "y")), 0.5)
    assert score(strategy, candidate, Hints(tags=("x",))) == pytest.approx(0.7, abs=1e-15)
    assert score(strategy, candidate, Hints()) == 0.5


def test_hierarchical_ranks_by_the_cosine() -> None:
    assert score("hierarchical", _candidate(_record("a", tags=("x",)), 0.37), Hints(tags=("x",))) == 0.37


def _mixed(cosines: list[float], top_k: int, temperature: float = 0.05) -> list[float]:
    ranked = rank("mixture", [_candidate(_record(f"a{n:02}"), cosine) for n, cosine in enumerate(cosines)], Hints(), temperature=1)
    return [item.weight for item in mix(ranked, top_k, temperature)]


def test_a_mixture_reaches_past_top_k_with_small_weights() -> None:
    weights = _mixed([0.5, 0.44, 0.43, 0.42, 0.41], 3)
    assert len(weights) == 5
    assert effective(weights) <= 3


def test_equals_in_a_mixture_are_cut_at_the_cap() -> None:
    assert _mixed([0.5] * 9, 3) == pytest.approx([1 / 3] * 3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.integers(1, 9), st.floats(0.001, 1))
def test_mixtures_are_capped_and_sum_to_one(cosines: list[float], top_k: int, temperature: float) -> None:
    weights = _mixed(cosines, top_k, temperature)
    assert sum(weights) == pytest.approx(1)
    assert effective(weights) <= top_k + 1e-6
    assert weights == sorted(weights, reverse=True)
    assert len(weights) <= MAX_MIXED


VALUES = st.lists(st.floats(-1, 1), min_size=1, max_size=20)


def test_softmax_of_nothing() -> None:
    assert softmax([], 1.0) == []


@settings(max_examples=200, deadline=None, derandomize=True)
@given(VALUES, st.floats(0.001, 10), st.floats(-5, 5))
def test_softmax_invariants(values: list[float], temperature: float, shift: float) -> None:
    weights = softmax(values, temperature)
    assert sum(weights) == pytest.approx(1)
    assert all(0 <= weight <= 1 for weight in weights)
    for i, first in enumerate(values):
        for j, second in enumerate(values):
            if first >= second:
                assert weights[i] >= weights[j]
    assert softmax([value + shift for value in values], temperature) == pytest.approx(weights, abs=1e-9)
    assert softmax(values[::-1], temperature) == pytest.approx(weights[::-1])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(VALUES, st.integers(1, 9), st.floats(-1, 1), st.floats(0.001, 1), st.floats(0, 0.1))
def test_chosen_weights_sum_to_one_in_falling_order(cosines: list[float], k: int, threshold: float, heat: float, least: float) -> None:
    candidates = [_candidate(_record(f"a{n:02}"), cosine) for n, cosine in enumerate(cosines)]
    chosen = choose("semantic", candidates, Hints(), k, threshold, heat, least)
    weights = [item.weight for item in chosen]
    assert len(chosen) <= k
    assert weights == sorted(weights, reverse=True)
    assert all(item.score >= threshold for item in chosen)
    assert bool(chosen) == any(cosine >= threshold for cosine in cosines)
    if chosen:
        assert sum(weights) == pytest.approx(1)
