"""Examples: which are kept, for how long and in how much memory; and what an outcome gives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.control.gate import MIN_EXAMPLES, Finding
from services.optimizer.stream.counting import EXAMPLES_OF, CountPartition
from services.optimizer.stream.examples import MOST, MOST_FAILURES, SET_BYTES, ExamplePartition
from services.optimizer.stream.joining import JoinPartition
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, EXAMPLES, OUTCOMES, Event, Received, event
from smoa.v1.common_pb2 import WeightedAdapter
from smoa.v1.events_pb2 import Example
from smoa.v1.feedback_pb2 import Outcome
from smoa.v1.router_pb2 import Decision

NOW_US = 1_700_000_000_000_000
WEEK_S = 7 * 86400.0
ROOM = 1_000_000


def _example(number: int, key: str = "a", age_s: float = 0.0, text: str = "in") -> Example:
    at_us = NOW_US - int(age_s * 1e6) + number - 1000
    return Example(key=key, decision_id=f"d{number}", tenant="t", input=text, output=str(number), occurred_at_us=at_us)


def _ids(examples: Sequence[Example]) -> set[str]:
    return {one.decision_id for one in examples}


def _taken(part: ExamplePartition, examples: Sequence[Example], now_us: int = NOW_US) -> dict[str, bytes | None]:
    plan = part.plan(examples, now_us)
    part.apply(plan)
    return plan


@given(st.permutations(range(60)), st.integers(1, 60))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_same_sample_in_any_order_and_however_often_they_come(order: list[int], cut: int) -> None:
    straight, shuffled = ExamplePartition(ROOM, WEEK_S, {}), ExamplePartition(ROOM, WEEK_S, {})
    _taken(straight, [_example(one) for one in range(60)])
    _taken(shuffled, [_example(one) for one in order[:cut]])
    _taken(shuffled, [_example(one) for one in order[: cut // 2]])
    _taken(shuffled, [_example(one) for one in order[cut:]])
    assert straight.get("a", NOW_US) == shuffled.get("a", NOW_US)
    assert len(straight.get("a", NOW_US)) == MOST


def test_the_sample_is_of_all_and_not_of_the_first_or_last() -> None:
    part = ExamplePartition(ROOM, WEEK_S, {})
    _taken(part, [_example(one) for one in range(1000)])
    numbers = [int(one.output) for one in part.get("a", NOW_US)]
    assert 300 < sum(numbers) / len(numbers) < 700


def test_a_tenants_failures_are_kept_in_greater_number() -> None:
    part = ExamplePartition(ROOM, WEEK_S, {})
    _taken(part, [_example(one, "failures/t") for one in range(400)])
    assert len(part.get("failures/t", NOW_US)) == MOST_FAILURES


def test_what_is_known_already_changes_nothing() -> None:
    part = ExamplePartition(ROOM, WEEK_S, {})
    assert _taken(part, [_example(1)]) != {}
    assert part.plan([_example(1), _example(1)], NOW_US) == {}


def test_old_examples_are_neither_given_nor_written_again() -> None:
    part = ExamplePartition(ROOM, WEEK_S, {})
    _taken(part, [_example(1, age_s=WEEK_S - 60), _example(2)])
    later = NOW_US + 120_000_000
    assert _ids(part.get("a", later)) == {"d2"}
    _taken(part, [_example(3)], later)
    assert _ids(part.get("a", NOW_US)) == {"d2", "d3"}


def test_past_its_room_the_set_that_changed_longest_ago_goes() -> None:
    one_set = len(ExamplePartition(ROOM, WEEK_S, {}).plan([_example(1, "a", text="x" * 1000)], NOW_US)["a"] or b"")
    part = ExamplePartition(int(2.5 * one_set), WEEK_S, {})
    for number, key in enumerate(("a", "b", "a")):
        _taken(part, [_example(number, key, text="x" * (1000 if number < 2 else 100))])
    plan = _taken(part, [_example(9, "c", text="x" * 1000)])
    assert (plan["b"], sorted(plan)) == (None, ["b", "c"])
    assert [len(part.get(key, NOW_US)) for key in "abc"] == [2, 0, 1]


def test_counts_and_examples_come_back_from_their_names() -> None:
    part = CountPartition(1.0, {}, ROOM, WEEK_S)
    example = _example(1, "a/t")
    plan = part.plan([Received(EXAMPLES, 0, 0, 0, b"a/t", example.SerializeToString(), "", 0)], NOW_US)
    assert list(plan.values) == [f"{EXAMPLES_OF}a/t"]
    again = CountPartition(1.0, {name: value for name, value in plan.values.items() if value}, ROOM, WEEK_S)
    assert (again.examples.get("a/t", NOW_US), list(again)) == ([example], [])


def _joined(
    outcome: Outcome,
    *,
    early: bool = False,
    no_examples: str = "",
    adapters: Sequence[tuple[str, float]] = (("a", 0.4), ("b", 0.6)),
) -> list[Example]:
    """The examples of a decision and its outcome, whichever comes first; each event has the same effects when it comes again."""
    part = JoinPartition[int](0, 1, (), frozenset(no_examples.split(",")))
    chosen = [WeightedAdapter(adapter_id=name, weight=weight) for name, weight in adapters]
    decision = Decision(decision_id="d", tenant="t", adapters=chosen, decided_at_us=NOW_US)
    said = [event(OUTCOMES, "d", outcome), event(DECISIONS, "d", decision)]
    effects: list[Event] = []
    for name, one in enumerate(said if early else reversed(said)):
        received = Received(one.topic, 0, 0, 0, one.key, one.value, "", 0)
        plan = part.plan([received], NOW_US)
        assert not plan.refused
        part.apply(name, list(plan.entries.values()))
        assert part.plan([received], NOW_US).effects == plan.effects
        effects += plan.effects
    assert len([one for one in effects if one.topic == ADAPTER_OUTCOMES]) == (1 if early else 2) * len(adapters)
    return [Example.FromString(one.value) for one in effects if one.topic == EXAMPLES]


def _outcome(success: bool, **texts: str) -> Outcome:
    outcome = Outcome(decision_id="d", tenant="t", success=success, reported_at_us=NOW_US)
    for field, text in texts.items():
        setattr(outcome, field, text)
    return outcome


@pytest.mark.parametrize("early", [False, True])
def test_a_success_is_an_example_of_the_adapter_with_most_weight(early: bool) -> None:
    [example] = _joined(_outcome(True, input="in", output="out", corrected_output="other"), early=early)
    assert example == Example(key="b/t", decision_id="d", tenant="t", input="in", output="out", occurred_at_us=NOW_US)


@pytest.mark.parametrize("early", [False, True])
def test_a_corrected_failure_is_the_tenants_and_names_who_failed(early: bool) -> None:
    [example] = _joined(_outcome(False, input="in", output="bad", corrected_output="good"), early=early)
    assert (example.key, example.output, list(example.adapter_ids)) == ("failures/t", "good", ["a", "b"])
    [nobody] = _joined(_outcome(False, input="in", corrected_output="good"), adapters=())
    assert list(nobody.adapter_ids) == []


@pytest.mark.parametrize(
    "outcome", [_outcome(True, input="in"), _outcome(True, output="out"), _outcome(False, input="in", output="out"), _outcome(True)]
)
def test_without_both_texts_there_is_no_example(outcome: Outcome) -> None:
    assert _joined(outcome) == []


@pytest.mark.parametrize("forbidding", ["t", "other,t", "*"])
def test_a_tenant_that_forbids_it_has_no_examples(forbidding: str) -> None:
    assert _joined(_outcome(True, input="in", output="out"), no_examples=forbidding) == []
    assert _joined(_outcome(True, input="in", output="out"), early=True, no_examples=forbidding) == []
    part = JoinPartition[int](0, 1, (), frozenset(forbidding.split(",")))
    one = event(OUTCOMES, "d", _outcome(True, input="in", output="out"))
    [entry] = part.plan([Received(OUTCOMES, 0, 0, 0, one.key, one.value, "", 0)], NOW_US).entries.values()
    assert (entry.verdicts[0].input, entry.verdicts[0].output) == ("", "")


def test_texts_that_wait_do_not_push_out_what_is_to_be_counted() -> None:
    part = JoinPartition[int](0, 1, (), text_room=1000)
    for number in range(3):
        said = Outcome(decision_id=f"d{number}", tenant="t", success=True, input="x" * 900, output="out")
        one = event(OUTCOMES, said.decision_id, said)
        plan = part.plan([Received(OUTCOMES, 0, number, 0, one.key, one.value, "", 0)], NOW_US)
        part.apply(number, list(plan.entries.values()))
    assert len(part) == 3
    assert part.held_bytes < 3000
    assert [len(Outcome.FromString(late.value).input) for late in part.unmatched(NOW_US + 1)] == [900, 0, 0]


def test_an_outcome_without_a_time_has_its_decisions() -> None:
    outcome = _outcome(True, input="in", output="out")
    outcome.reported_at_us = 0
    assert _joined(outcome)[0].occurred_at_us == NOW_US


def test_an_outcome_whose_decision_never_came_is_put_aside_with_its_texts() -> None:
    part, outcome = JoinPartition[int](0, 1, ()), _outcome(False, input="in", output="bad", corrected_output="good")
    one = event(OUTCOMES, "d", outcome)
    plan = part.plan([Received(OUTCOMES, 0, 0, 0, one.key, one.value, "", 0)], NOW_US)
    part.apply(0, list(plan.entries.values()))
    assert [Outcome.FromString(late.value) for late in part.unmatched(NOW_US + 1)] == [outcome]


def test_a_text_that_is_too_long_is_put_aside_with_the_reason() -> None:
    outcome = event(OUTCOMES, "d", _outcome(True, input="x" * 8193, output="out"))
    plan = JoinPartition[int](0, 1, ()).plan([Received(OUTCOMES, 0, 0, 0, outcome.key, outcome.value, "", 0)], NOW_US)
    assert [str(error) for _, error in plan.refused] == ["input: has 8,193 characters; give at most 8,192, or leave the texts out"]


def test_the_gate_refuses_a_child_that_is_less_sure_and_only_on_enough_examples() -> None:
    assert Finding({"a": (1.0,) * (MIN_EXAMPLES - 1)}).refusal(0.1) == ""
    assert Finding({"a": (0.2, -0.2) * 4}).refusal(0.1) == ""
    assert Finding({"a": (0.5, 0.1) * 4}).refusal(0.1) == "on 8 right answers of a the child is 0.300 nats a token less sure, over 0.1"
    assert Finding({"a": (0.5, 0.1) * 4}).evidence == {"gate_examples": 8.0, "gate_loss": pytest.approx(0.3)}
    assert Finding({}).worst == ("", 0.0, 0)


def test_what_a_child_gained_for_one_parent_does_not_make_up_for_another() -> None:
    assert Finding({"a": (-1.0,) * 8, "b": (1.0,) * 8, "c": (9.0,)}).worst == ("b", 1.0, 8)


def test_a_set_is_no_larger_than_a_broker_takes() -> None:
    part = ExamplePartition(2**30, WEEK_S, {})
    wide = "\U0001f600" * 8192
    for number in range(20):
        _taken(part, [_example(number, "failures/t", text=wide)])
    assert 0 < part.held_bytes <= SET_BYTES + 4096


def test_a_clock_that_is_ahead_does_not_keep_an_example_for_ever() -> None:
    part = ExamplePartition(ROOM, WEEK_S, {})
    _taken(part, [_example(1, age_s=-10 * WEEK_S)])
    assert part.get("a", NOW_US + int(1.1 * WEEK_S * 1e6)) == []


def test_what_has_faded_goes_and_so_does_what_a_tenant_no_longer_allows() -> None:
    part = ExamplePartition(ROOM, WEEK_S, {})
    value = _taken(part, [_example(1), _example(2, "b", age_s=WEEK_S - 60)])
    assert part.faded(NOW_US) == {}
    assert part.faded(NOW_US + 120_000_000) == {"b": None}
    held = {key: one for key, one in value.items() if one is not None}
    silent = ExamplePartition(ROOM, WEEK_S, held, frozenset({"t"}))
    assert (silent.get("a", NOW_US), silent.faded(NOW_US)) == ([], {"a": None, "b": None})
    assert silent.plan([_example(3)], NOW_US) == {}
