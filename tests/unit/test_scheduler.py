"""The scheduler: bounded, first come first served, and no row is ever lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.scheduler import Scheduler
from smoa.errors import ResourceExhausted


def _scheduler(rows: int, names: str, max_waiting: int = 10) -> Scheduler[str]:
    scheduler: Scheduler[str] = Scheduler(rows, max_waiting)
    for name in names:
        scheduler.add(name)
    return scheduler


def test_queue_is_bounded() -> None:
    scheduler = _scheduler(1, "ab", 2)
    with pytest.raises(ResourceExhausted) as caught:
        scheduler.add("c")
    assert str(caught.value) == "queue: 2 requests wait; retry with backoff or add executors"
    scheduler.admit()
    scheduler.add("c")
    assert scheduler.waiting == 2


def test_first_come_first_served() -> None:
    scheduler = _scheduler(2, "abc")
    assert scheduler.admit() == [("a", 0), ("b", 1)]
    assert scheduler.admit() == []
    assert (scheduler.running, scheduler.waiting) == ([("a", 0), ("b", 1)], 1)


def test_rows_are_used_again() -> None:
    scheduler = _scheduler(2, "abc")
    scheduler.admit()
    scheduler.remove("a")
    assert scheduler.admit() == [("c", 0)]
    assert scheduler.running == [("b", 1), ("c", 0)]


def test_remove_while_waiting() -> None:
    scheduler = _scheduler(1, "abc")
    scheduler.remove("a")
    scheduler.remove("absent")
    assert scheduler.admit() == [("b", 0)]
    assert scheduler.waiting == 1


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(0, 5), st.lists(st.one_of(st.just("add"), st.just("admit"), st.integers(0, 12)), max_size=60))
def test_integrity_against_a_model(rows: int, bound: int, steps: list[str | int]) -> None:
    scheduler: Scheduler[int] = Scheduler(rows, bound)
    waiting: list[int] = []
    running: list[int] = []
    count = 0
    for step in steps:
        if step == "admit":
            moved = waiting[: rows - len(running)]
            assert [name for name, _ in scheduler.admit()] == moved
            running, waiting = running + moved, waiting[len(moved) :]
        elif step == "add":
            if len(waiting) >= bound:
                with pytest.raises(ResourceExhausted):
                    scheduler.add(count)
            else:
                scheduler.add(count)
                waiting.append(count)
                count += 1
        elif isinstance(step, int):
            scheduler.remove(step)
            running, waiting = [n for n in running if n != step], [n for n in waiting if n != step]
        scheduler.check_integrity()
        assert ([name for name, _ in scheduler.running], scheduler.waiting) == (running, len(waiting))
