"""Which versions are tried against each other."""

from __future__ import annotations

import dataclasses

from services.optimizer.policy.library_policy import AdapterView, Rules
from services.optimizer.policy.versions import supersedes

RULES = Rules()


def _view(adapter_id: str, name: str, age_days: float, uses: int = 100, examples: str = "") -> AdapterView:
    return AdapterView(
        adapter_id=adapter_id,
        digest=adapter_id,
        tenant="t",
        name=name,
        kind="lora",
        base_model="b",
        rank=8,
        modules=("q",),
        age_s=age_days * 86400,
        uses=uses,
        outcomes=0,
        successes=0.0,
        recent_uses=uses,
        examples_digest=examples,
    )


def _pairs(*views: AdapterView, decided: frozenset[tuple[str, str]] = frozenset()) -> list[tuple[str, str]]:
    return [(one.younger.adapter_id, one.older.adapter_id) for one in supersedes(views, RULES, decided)]


def test_the_youngest_of_a_name_is_tried_against_the_next_older() -> None:
    three = (_view("c", "router", 1), _view("a", "router", 30), _view("b", "router", 10), _view("d", "other", 5))
    assert _pairs(*three) == [("c", "b")]
    assert _pairs(*three, decided=frozenset({("b", "c")})) == [("b", "a")]
    assert _pairs(*three, decided=frozenset({("b", "c"), ("a", "b")})) == []


def test_a_version_of_an_hour_is_tried_at_once_whatever_it_was_not_asked() -> None:
    assert _pairs(_view("b", "router", 0.04, uses=0), _view("a", "router", 30)) == [("b", "a")]


def test_against_one_that_nobody_asks_nothing_can_be_shown() -> None:
    assert _pairs(_view("b", "router", 1), _view("a", "router", 30, uses=0)) == []


def test_the_same_examples_under_another_name_count_after_a_day_for_till_then_they_may_be_merged() -> None:
    older = _view("a", "router", 30, examples="e")
    assert _pairs(_view("b", "switch", 0.5, examples="e"), older) == []
    assert _pairs(_view("b", "switch", 1.5, examples="e"), older) == [("b", "a")]
    assert _pairs(_view("b", "switch", 1.5, examples="f"), older) == []
    assert _pairs(_view("b", "switch", 1.5), dataclasses.replace(older, examples_digest="")) == []


def test_what_is_protected_or_somebody_elses_is_left_alone() -> None:
    younger, older = _view("b", "router", 1), _view("a", "router", 30)
    assert _pairs(dataclasses.replace(younger, protected="pinned"), older) == []
    for apart in ({"tenant": "u"}, {"shared": True}, {"base_model": "c"}):
        assert _pairs(dataclasses.replace(younger, **apart), older) == []
