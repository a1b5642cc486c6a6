"""The demo's referee itself: a good result passes, and each broken promise is named."""

import copy

import pytest

from tests.check_demo import problems

GOOD = {
    "queries": 224,
    "route_top1": 0.9,
    "exact_match": {"base": 0.0, "routed": 0.88, "oracle": 0.95, "random": 0.0, "uniform": 0.02},
    "control_queries": 32,
    "told_queries": 16,
    "base_told_in_words": 0.2,
    "events": {"sent": 10, "counted": 10},
    "pruned": ["garden_task", "recipe_cuisine", "sports_result", "star_sign"],
    "merged": [["med_department-copy", "med_department"], ["support_intent", "support_intent-copy"]],
    "useful_pruned": [],
    "seconds": 100,
    "avx512": True,
}


def test_a_good_result_passes() -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("route_top1",), 0.8, "route_top1 >= 0.85"),
        (("exact_match", "routed"), 0.85, "routed >= 0.9 x oracle"),
        (("base_told_in_words",), 0.6, "routed over 1.5 x the fair base"),
        (("control_queries",), 0, "controls of at least 30 queries, a fair base of 16"),
        (("events", "counted"), 9, "every event counted once"),
        (("pruned",), [], "failing and unneeded decoys pruned"),
        (("useful_pruned",), ["log_severity"], "no useful adapter pruned"),
        (("seconds",), 241, "under 4 minutes, 12 without AVX-512"),
    ],
)
def test_a_broken_promise_is_named(path: tuple[str, ...], value: object, named: str) -> None:
    result = copy.deepcopy(GOOD)
    place: dict[str, object] = result
    for key in path[:-1]:
        place = place[key]  # type: ignore[assignment]
    place[path[-1]] = value
    assert problems(result) == [named]
