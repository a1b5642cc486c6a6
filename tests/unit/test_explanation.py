"""Each candidate has the one reason that decided."""

from __future__ import annotations

import pytest

from services.router.catalogue.records import AdapterRef, Candidate
from services.router.routing.explanation import Explanation, Fit, Limits, explain
from services.router.routing.scoring import Chosen, Scored

LIMITS = Limits(score=0.15, top_k=3, confidence=0.45, min_weight=0.1)


def _fit(name: str, score: float, confidence: float = 0.9) -> Fit:
    return Fit(Scored(score, Candidate(AdapterRef(name, 1, "d"), score)), confidence, score, 0.0)


def _reasons(explained: list[Explanation]) -> dict[str, tuple[float, str]]:
    return {one.fit.scored.candidate.ref.adapter_id: (one.weight, one.reason) for one in explained}


def test_every_reason() -> None:
    fits = [_fit("a", 0.9), _fit("b", 0.8, 0.2), _fit("c", 0.7), _fit("d", 0.6), _fit("e", 0.1)]
    chosen = [Chosen(AdapterRef("a", 1, "d"), 0.9, 1.0)]
    assert _reasons(explain(fits, chosen, LIMITS, {})) == {
        "a": (1.0, "chosen"),
        "b": (0.0, "the query is in its scope with a probability of 0.20, under 0.45"),
        "c": (0.0, "its share of the weight was under 0.1"),
        "d": (0.0, "3 score higher, and 3 are looked at"),
        "e": (0.0, "its score is under the threshold of 0.15"),
    }


def test_a_caller_who_set_a_threshold_is_taken_at_its_word() -> None:
    (only,) = explain([_fit("b", 0.8, 0.2)], [], LIMITS._replace(confidence=None), {})
    assert only.reason == "its share of the weight was under 0.1"


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ("child", "its merge's child child is on trial and answers in its place"),
        ("other", "its share of the weight was under 0.1"),
    ],
)
def test_a_parent_whose_child_is_on_trial(chosen: str, reason: str) -> None:
    (only,) = explain([_fit("parent", 0.8)], [Chosen(AdapterRef(chosen, 1, "d"), 0.8, 1.0)], LIMITS, {"parent": "child"})
    assert only.reason == reason
