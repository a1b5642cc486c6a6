"""The slot pool against a simple model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.executor.slots import SlotPool


def test_missing_keys_get_slots_and_resident_keys_keep_theirs() -> None:
    pool = SlotPool(3)
    first = pool.acquire(["a", "b"])
    second = pool.acquire(["b", "c", "b"])
    assert first is not None
    assert second is not None
    assert (first.missing, second.missing, second.evicted) == (("a", "b"), ("c",), ())
    assert second.slots["b"] == first.slots["b"]
    assert (pool.hits, pool.misses, pool.evictions) == (1, 3, 0)


def test_least_recently_used_is_evicted() -> None:
    pool = SlotPool(2)
    for key in ("a", "b", "a"):
        pool.acquire([key])
        pool.release([key])
    third = pool.acquire(["c"])
    assert third is not None
    assert third.evicted == ("b",)
    assert pool.residents() == [("a", 0), ("c", 1)]


def test_leased_slots_are_never_evicted_and_nothing_is_leased_in_part() -> None:
    pool = SlotPool(2)
    pool.acquire(["a"])
    assert pool.acquire(["b", "c"]) is None
    assert pool.residents() == [("a", 1)]
    assert (pool.hits, pool.misses) == (0, 1)


def test_more_keys_than_slots_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^3 adapters do not fit 2 slots$"):
        SlotPool(2).acquire(["a", "b", "c"])


def test_forget_leaves_leased_keys() -> None:
    pool = SlotPool(1)
    pool.acquire(["a"])
    pool.forget("a")
    assert pool.residents() == [("a", 1)]
    pool.release(["a"])
    pool.forget("a")
    pool.forget("absent")
    assert pool.residents() == []
    pool.check_integrity()


SLOTS = 4


class SlotMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = SlotPool(SLOTS)
        self.resident: list[str] = []  # least recently used first
        self.leases: list[list[str]] = []

    def leased(self) -> set[str]:
        return {key for lease in self.leases for key in lease}

    @rule(keys=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4))
    def acquire(self, keys: list[str]) -> None:
        before = dict(self.pool._slot_of)
        wanted = list(dict.fromkeys(keys))
        missing = [key for key in wanted if key not in self.resident]
        idle = [key for key in self.resident if key not in self.leased() and key not in wanted]
        needed = max(0, len(self.resident) + len(missing) - SLOTS)
        found = self.pool.acquire(keys)
        if needed > len(idle):
            assert found is None
            return
        assert found is not None
        assert (found.missing, found.evicted) == (tuple(missing), tuple(idle[:needed]))
        assert not set(found.evicted) & self.leased()
        assert list(found.slots) == wanted
        assert all(found.slots[key] == before[key] for key in wanted if key in before)
        self.resident = [key for key in self.resident if key not in idle[:needed] and key not in wanted] + wanted
        self.leases.append(keys)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))))

    @rule(key=st.sampled_from("abcdefgh"))
    def forget(self, key: str) -> None:
        self.pool.forget(key)
        if key in self.resident and key not in self.leased():
            self.resident.remove(key)

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity()
        assert self.pool.residents() == [(key, sum(key in lease for lease in self.leases)) for key in self.resident]


SlotMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
TestSlots = SlotMachine.TestCase
