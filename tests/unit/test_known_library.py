"""What a worker knows of the library between passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.control.library import LOOK_BACK_S, READ_ANEW_S, Away, Library
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

_AWAY = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())


class _Registry:
    """Lists what was given to it, and remembers since when it was asked."""

    def __init__(self) -> None:
        self.written: list[registry_pb2.Adapter] = []
        self.since_us: list[int] = []
        self.error: grpc.aio.AioRpcError | None = None

    async def list_all(self, *, written_since_us: int, **_: Any) -> AsyncIterator[registry_pb2.Adapter]:
        self.since_us.append(written_since_us)
        for one in self.written:
            yield one
        if self.error is not None:
            raise self.error


def _adapter(name: str, state: common.AdapterState = common.ADAPTER_STATE_ACTIVE, reason: str = "") -> registry_pb2.Adapter:
    return registry_pb2.Adapter(adapter_id=name, tenant="t", state=state, state_reason=reason, updated_at_us=7)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which the test sets."""
    now = [10_000_000.0]
    monkeypatch.setattr("services.optimizer.control.library.time.time_ns", lambda: int(now[0] * 1e9))
    return now


async def test_all_is_read_once_and_then_what_was_written_since_with_a_minute_to_spare(clock: list[float]) -> None:
    registry = _Registry()
    library = Library(registry, 100.0)  # type: ignore[arg-type]
    registry.written = [_adapter("b"), _adapter("a", common.ADAPTER_STATE_CANARY), _adapter("c", common.ADAPTER_STATE_RETIRED, "by hand")]
    await library.refresh()
    assert (sorted([*library, *library.canaries]), dict(library.away)) == (["a", "b"], {})
    clock[0] += 60
    registry.written = [_adapter("b", common.ADAPTER_STATE_RETIRED, "pruned: fails"), _adapter("aa")]
    await library.refresh()
    assert sorted([*library, *library.canaries]) == ["a", "aa"]
    assert library.away["b"] == Away("t", 7, "pruned: fails", is_archived=False)
    registry.written = [_adapter("b", common.ADAPTER_STATE_PURGED, "pruned: fails")]
    clock[0] += 60
    await library.refresh()
    assert (dict(library.away), library.purged()) == ({}, ["b"])
    assert registry.since_us == [0, int((10_000_000 - LOOK_BACK_S) * 1e6), int((10_000_060 - LOOK_BACK_S) * 1e6)]
    clock[0] += READ_ANEW_S
    registry.written = [_adapter("z")]
    await library.refresh()
    assert (registry.since_us[-1], sorted([*library, *library.canaries])) == (0, ["z"])


async def test_a_listing_that_breaks_off_is_asked_for_again_from_where_it_was(clock: list[float]) -> None:
    registry = _Registry()
    library = Library(registry, 100.0)  # type: ignore[arg-type]
    registry.written = [_adapter("a")]
    await library.refresh()
    clock[0] += 600
    registry.written, registry.error = (
        [_adapter("b")],
        _AWAY,
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await library.refresh()
    assert sorted([*library, *library.canaries]) == ["a", "b"], "what it said is so"
    clock[0] += 600
    registry.error = None
    await library.refresh()
    assert sorted([*library, *library.canaries]) == ["a", "b"]
    assert registry.since_us[1] == registry.since_us[2]


async def test_of_a_listing_of_all_that_breaks_off_nothing_is_taken_away(clock: list[float]) -> None:
    registry = _Registry()
    library = Library(registry, 100.0)  # type: ignore[arg-type]
    registry.written = [_adapter("a"), _adapter("b", common.ADAPTER_STATE_CANARY), _adapter("c", common.ADAPTER_STATE_RETIRED, "pruned: ")]
    await library.refresh()
    clock[0] += READ_ANEW_S
    registry.written, registry.error = [], _AWAY
    with pytest.raises(grpc.aio.AioRpcError):
        await library.refresh()
    assert (list(library), list(library.canaries), list(library.away)) == (["a"], ["b"], ["c"])
    registry.error = None
    await library.refresh()
    assert (list(library), list(library.canaries), list(library.away)) == ([], [], [])


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["active", "canary", "retired"]), st.integers(1, 99))))
def test_whatever_comes_and_goes_each_has_its_own_numbers(written: list[tuple[str, str, int]]) -> None:
    states = {
        "active": common.ADAPTER_STATE_ACTIVE,
        "canary": common.ADAPTER_STATE_CANARY,
        "retired": common.ADAPTER_STATE_RETIRED,
    }
    registry = _Registry()
    library = Library(registry, 100.0)  # type: ignore[arg-type]
    for name, state, number in written:
        one = _adapter(name, states[state])
        one.name, one.digest, one.rank, one.statistics.uses = f"name {number}", f"{number:064x}", number % 3, number
        registry.written.append(one)
    asyncio.run(library.refresh())
    last = {name: (state, number) for name, state, number in written}
    active = {name: number for name, (state, number) in last.items() if state == "active"}
    assert len(library) == len(active) == len({*library})
    assert {*library.canaries} == {name for name, (state, _) in last.items() if state == "canary"}
    for name, number in active.items():
        facts = library.facts(name)
        assert (facts.name, facts.digest, facts.family.rank) == (f"name {number}", f"{number:064x}", number % 3)
        assert facts.numbers.uses == number
    for row, name in enumerate(library):
        assert library.member(row)[:2] == (name, f"{active[name]:064x}")
    names = list(active.values())
    assert set(library.versions()) == {name for name, number in active.items() if names.count(number) > 1}


async def test_what_was_purged_long_ago_is_said_once_and_families_of_nobody_are_forgotten(clock: list[float]) -> None:
    registry = _Registry()
    library = Library(registry, 100.0)  # type: ignore[arg-type]
    old, new = (_adapter(name, common.ADAPTER_STATE_PURGED) for name in ("old", "new"))
    old.updated_at_us = int((clock[0] - 15 * 86400) * 1e6)
    new.updated_at_us = int((clock[0] - 13 * 86400) * 1e6)
    registry.written = [_adapter("a"), _adapter("b"), old, new]
    registry.written[0].rank = 1
    await library.refresh()
    assert (library.purged(), library.purged()) == (["old"], [])
    assert len(library.families) == 2
    clock[0] += READ_ANEW_S
    registry.written = [_adapter("b")]
    await library.refresh()
    assert (list(library), library.families) == (["b"], [library.facts("b").family])


async def test_versions_are_those_of_now(clock: list[float]) -> None:
    registry = _Registry()
    library = Library(registry, 100.0)  # type: ignore[arg-type]
    registry.written = [_adapter("a"), _adapter("b")]
    for one, examples in zip(registry.written, ("01", "02"), strict=True):
        one.name, one.examples_digest = f"name {one.adapter_id}", examples
    await library.refresh()
    assert library.versions() == []
    registry.written[1].examples_digest = "01"
    await library.refresh()
    assert library.versions() == ["a", "b"]
    registry.written[1].examples_digest, registry.written[1].name = "02", "name a"
    await library.refresh()
    assert library.versions() == ["a", "b"]
    registry.written[1].name = "name b"
    await library.refresh()
    assert library.versions() == []
