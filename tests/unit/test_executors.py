"""Executors: residency before load before hashing, and nobody who is silent, full or of another model."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.routing.executors import STALE_S, Executor, ExecutorDirectory
from smoa.model_shape import ModelShape

NOW = 1_000_000_000


def _executor(
    address: str, *, base: str = "b", free: int = 0, active: str = "", hosted: str = "", load: float = 0.0, age_s: float = 0
) -> Executor:
    return Executor(address, base, free, frozenset(active), frozenset(hosted), load, NOW - int(age_s * 1e6))


def _directory(*given: Executor) -> ExecutorDirectory:
    executors = ExecutorDirectory()
    for executor in given:
        executors.report(executor, NOW)
    return executors


def test_active_before_a_free_slot_before_host_memory_before_none() -> None:
    ladder = [_executor("active", active="a"), _executor("free", free=1), _executor("host", hosted="a"), _executor("cold")]
    for place in range(len(ladder)):
        assert _directory(*reversed(ladder[place:])).choose("b", ["a"], NOW) == ladder[place].address


def test_a_free_slot_is_counted_once() -> None:
    executors = _directory(_executor("one", free=1), _executor("two", free=2))
    assert executors.choose("b", ["a", "c"], NOW) == "two"


def test_the_less_loaded_of_equals() -> None:
    assert _directory(_executor("busy", active="a", load=0.9), _executor("idle", active="a", load=0.1)).choose("b", ["a"], NOW) == "idle"


def test_a_full_queue_is_avoided_while_another_is_there() -> None:
    full = _executor("full", active="a", load=3)
    assert _directory(full, _executor("cold")).choose("b", ["a"], NOW) == "cold"
    assert _directory(full).choose("b", ["a"], NOW) == "full"


def test_other_models_the_silent_and_those_that_left_are_not_chosen() -> None:
    executors = _directory(_executor("other", base="c"), _executor("silent", age_s=STALE_S + 1), _executor("left"))
    executors.leave("left")
    assert executors.choose("b", ["a"], NOW) == ""


def test_those_that_fell_silent_are_forgotten() -> None:
    executors = _directory(_executor("dead"), _executor("dead too"), _executor("alive"))
    later = NOW + int((STALE_S + 1) * 1e6)
    executors.report(dataclasses.replace(_executor("alive"), reported_at_us=later), later)
    assert len(executors) == 1
    assert executors.choose("b", ["a"], later) == "alive"


def test_a_clock_that_is_ahead_keeps_nobody_fresh_and_hides_nothing_that_comes_later() -> None:
    executors = _directory(_executor("one", active="a", age_s=-3600), _executor("two", free=1))
    assert executors.choose("b", ["a"], NOW) == "one"
    later = NOW + int(1e6)
    executors.report(dataclasses.replace(_executor("one"), reported_at_us=later), later)
    assert executors.choose("b", ["a"], later) == "two", "what it said last is what counts"
    gone = NOW + int((STALE_S + 2) * 1e6)
    assert executors.choose("b", ["a"], gone) == ""


def test_an_older_status_does_not_replace_a_later_one() -> None:
    executors = _directory(_executor("one", active="a"), _executor("one", age_s=5), _executor("two", free=1))
    assert executors.choose("b", ["a"], NOW) == "one"


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=2, max_size=6, unique=True), st.text("xyz", min_size=1, max_size=8))
def test_the_same_adapters_stay_where_they_are_when_another_executor_goes(addresses: list[str], adapters: str) -> None:
    executors = _directory(*(_executor(address, free=9) for address in addresses))
    chosen = executors.choose("b", list(adapters), NOW)
    assert executors.choose("b", list(reversed(adapters)), NOW) == chosen
    for other in addresses:
        if other != chosen:
            executors.leave(other)
            assert executors.choose("b", list(adapters), NOW) == chosen


def test_what_an_adapter_must_fit_is_what_live_executors_of_its_base_model_said() -> None:
    small, large = (
        ModelShape(layers=1, modules={"q_proj": (4, 4)}, max_rank=rank, max_lora_xs_rank=8, max_adapter_bytes=100, weight_bytes=2)
        for rank in (8, 64)
    )
    said = [("a", small), ("b", large), ("c", small), ("d", None)]
    executors = _directory(*(dataclasses.replace(_executor(address), shape=shape) for address, shape in said))
    executors.report(dataclasses.replace(_executor("e", base="other"), shape=large), NOW)
    assert executors.shapes_of("b", NOW) == [small, large]
    assert executors.shapes_of("other", NOW) == [large]
    assert executors.shapes_of("b", NOW + int(STALE_S * 1e6)) == []
