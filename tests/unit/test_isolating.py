"""Events that nothing can be made of are found, and the others are counted as if they had never come."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.stream import counting, effects, joining
from services.optimizer.stream.counting import CountPartition
from services.optimizer.stream.isolating import without_failing
from services.optimizer.stream.joining import JoinPartition
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, Received
from smoa.v1 import common_pb2, router_pb2
from smoa.v1.events_pb2 import AdapterOutcome


def _received(number: int, topic: str = DECISIONS, key: str = "", value: bytes = b"") -> Received:
    return Received(topic, 0, number, 0, key.encode(), value, "", 0)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(count=st.integers(0, 60), failing=st.sets(st.integers(0, 59), max_size=5))
def test_exactly_the_failing_ones_are_left_out(count: int, failing: set[int]) -> None:
    events = [_received(number) for number in range(count)]

    def plan(these: Sequence[Received]) -> list[int]:
        if bad := failing & {one.offset for one in these}:
            raise ZeroDivisionError(bad)
        return [one.offset for one in these]

    planned, left_out = without_failing(plan, events)
    assert planned == [number for number in range(count) if number not in failing]
    assert {one.offset for one, _ in left_out} == failing & set(range(count))
    assert all(str(why).startswith("event: cannot be used (ZeroDivisionError") for _, why in left_out)


def test_what_fails_without_any_event_and_what_lacks_memory_is_nobodys_fault() -> None:
    def broken(these: Sequence[Received]) -> None:
        raise ValueError("always")

    with pytest.raises(ValueError, match="always"):
        without_failing(broken, [])

    def full(these: Sequence[Received]) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        without_failing(full, [_received(1)])

    def full_with_one(these: Sequence[Received]) -> None:
        if any(one.offset == 1 for one in these):
            raise MemoryError

    with pytest.raises(MemoryError):
        without_failing(full_with_one, [_received(0), _received(1)])

    def full_while_it_looks(these: Sequence[Received]) -> None:
        if len(these) == 1:
            raise MemoryError
        if these:
            raise ValueError

    with pytest.raises(MemoryError):
        without_failing(full_while_it_looks, [_received(0), _received(1)])


def test_a_join_and_a_count_go_on_without_an_event_that_finds_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    decide, count = effects.join_decision, counting.count_outcome

    def deciding(entry: object, decision: router_pb2.Decision, *rest: object) -> object:
        if decision.decision_id == "d1":
            raise RecursionError
        return decide(entry, decision, *rest)  # type: ignore[arg-type]

    def counting_one(counts: object, effect: AdapterOutcome, *rest: object, **more: object) -> object:
        if effect.decision_id == "d1":
            raise OverflowError
        return count(counts, effect, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(joining, "join_decision", deciding)
    monkeypatch.setattr(counting, "count_outcome", counting_one)
    adapters = [common_pb2.WeightedAdapter(adapter_id="a", weight=1.0)]
    decisions = [router_pb2.Decision(decision_id=f"d{number}", tenant="t", adapters=adapters) for number in range(3)]
    plan = JoinPartition[str](0, 1, []).plan(
        [_received(number, DECISIONS, one.decision_id, one.SerializeToString()) for number, one in enumerate(decisions)], 1
    )
    assert sorted(plan.entries) == ["d0", "d2"]
    assert [one.key for one, _ in plan.refused] == [b"d1"]
    made = [
        AdapterOutcome(adapter_id="a", decision_id=f"d{number}", tenant="t", source_topic=DECISIONS, source_position=number, used=True)
        for number in range(3)
    ]
    counted = CountPartition(1.0, {}).plan(
        [_received(number, ADAPTER_OUTCOMES, "a", one.SerializeToString()) for number, one in enumerate(made)], 1
    )
    assert counted.counts["a"].tenants["t"].uses == 2
    assert len(counted.refused) == 1
