"""Each candidate has the one reason that decided."""

from __future__ import annotations

import math

import pytest

from services.router.catalogue.records import AdapterRef, Candidate
from services.router.routing.explanation import Explanation, Judged, Limits, explain
from services.router.routing.scoring import Chosen, Scored

LIMITS = Limits(score=None, top_k=3, min_weight=0.1)


def _judged(name: str, score: float, *, fits: bool = True) -> Judged:
    return Judged(Scored(score, Candidate(AdapterRef(name, 1, "d"), score), 10 * score), fits, 0.9, score, 0.0)


def _reasons(explained: list[Explanation]) -> dict[str, tuple[float, str]]:
    return {one.judged.scored.candidate.ref.adapter_id: (one.weight, one.reason) for one in explained}


def test_every_reason() -> None:
    near = [_judged("a", 0.9), _judged("b", 0.8, fits=False), _judged("c", 0.7), _judged("d", 0.6)]
    chosen = [Chosen(AdapterRef("a", 1, "d"), 0.9, 1.0)]
    explained = explain(near, chosen, LIMITS, {})
    assert _reasons(explained) == {
        "a": (1.0, "chosen"),
        "b": (0.0, "the query is less like its examples than queries in its scope are"),
        "c": (0.0, "its weight was less than 0.1 of the largest"),
        "d": (0.0, "3 are likelier, and 3 are looked at"),
    }
    assert sum(one.probability for one in explained) == pytest.approx(1)
    assert explained[0].probability / explained[1].probability == pytest.approx(math.e)


def test_where_the_likeliest_does_not_fit_none_answers() -> None:
    explained = explain([_judged("a", 0.9, fits=False), _judged("b", 0.8)], [], LIMITS, {})
    assert [one.reason for one in explained] == [
        "the query is less like its examples than queries in its scope are",
        "the query is not in the scope of the likeliest, so that no adapter answers",
    ]


def test_a_caller_who_set_a_threshold_is_taken_at_its_word() -> None:
    explained = explain([_judged("b", 0.8, fits=False), _judged("e", 0.1)], [], LIMITS._replace(score=0.15), {})
    assert [one.reason for one in explained] == [
        "its weight was less than 0.1 of the largest",
        "its score is under the threshold of 0.15",
    ]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ("child", "its merge's child child is on trial and answers in its place"),
        ("other", "its weight was less than 0.1 of the largest"),
    ],
)
def test_a_parent_whose_child_is_on_trial(chosen: str, reason: str) -> None:
    (only,) = explain([_judged("parent", 0.8)], [Chosen(AdapterRef(chosen, 1, "d"), 0.8, 1.0)], LIMITS, {"parent": "child"})
    assert only.reason == reason
