"""The slot pool against a simple model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.executor.adapters.slots import SlotPool


def sized(keys: str) -> dict[str, int]:
    """Each key with the bytes it always has here."""
    return {key: 1 + ord(key) % 4 for key in keys}


def test_missing_keys_get_slots_and_resident_keys_keep_theirs() -> None:
    pool = SlotPool(3, 100)
    first, second = pool.acquire(sized("ab")), pool.acquire(sized("bc"))
    assert first is not None
    assert second is not None
    assert (first.missing, second.missing, second.evicted) == (("a", "b"), ("c",), ())
    assert (pool.hits, pool.misses, pool.evictions) == (1, 3, 0)
    assert "b" in pool
    assert "d" not in pool


def test_least_recently_used_is_evicted() -> None:
    pool = SlotPool(2, 100)
    for key in ("a", "b", "a"):
        pool.acquire(sized(key))
        pool.release(sized(key))
    third = pool.acquire(sized("c"))
    assert third is not None
    assert third.evicted == ("b",)
    assert pool.residents() == [("a", 0), ("c", 1)]


def test_bytes_are_a_bound_too() -> None:
    pool = SlotPool(10, 10)
    for key in "ab":
        pool.acquire({key: 4})
        pool.release({key: 4})
    third = pool.acquire({"c": 6})
    assert third is not None
    assert (third.evicted, pool.used_bytes) == (("a",), 10)
    assert pool.acquire({"d": 5}) is None


def test_leased_slots_are_never_evicted_and_nothing_is_leased_in_part() -> None:
    pool = SlotPool(2, 100)
    pool.acquire(sized("a"))
    assert pool.acquire(sized("bc")) is None
    assert pool.residents() == [("a", 1)]
    assert (pool.hits, pool.misses) == (0, 1)


def test_what_can_never_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^3 adapters of 9 bytes do not fit 2 slots of 50 bytes$"):
        SlotPool(2, 50).acquire(sized("abc"))
    with pytest.raises(ValueError, match=r"^1 adapters of 51 bytes do not fit 2 slots of 50 bytes$"):
        SlotPool(2, 50).acquire({"a": 51})


def test_forget_leaves_leased_keys() -> None:
    pool = SlotPool(1, 100)
    pool.acquire(sized("a"))
    pool.forget("a")
    assert pool.residents() == [("a", 1)]
    pool.release(sized("a"))
    pool.forget("a")
    pool.forget("absent")
    assert pool.residents() == []
    pool.check_integrity()


SLOTS, BYTES = 4, 9


class SlotMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = SlotPool(SLOTS, BYTES)
        self.resident: list[str] = []  # least recently used first
        self.leases: list[dict[str, int]] = []

    @rule(keys=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4, unique=True))
    def acquire(self, keys: list[str]) -> None:
        sizes = sized("".join(keys))
        if sum(sizes.values()) > BYTES:
            return
        leased = {key for lease in self.leases for key in lease}
        missing = [key for key in keys if key not in self.resident]
        kept, evicted = self.resident + missing, []
        for key in self.resident:
            if (len(kept) > SLOTS or sum(sized("".join(kept)).values()) > BYTES) and key not in leased and key not in keys:
                kept.remove(key)
                evicted.append(key)
        found = self.pool.acquire(sizes)
        if len(kept) > SLOTS or sum(sized("".join(kept)).values()) > BYTES:
            assert found is None
            return
        assert found is not None
        assert (found.missing, found.evicted) == (tuple(missing), tuple(evicted))
        self.resident = [key for key in kept if key not in keys] + keys
        self.leases.append(sizes)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))))

    @rule(key=st.sampled_from("abcdefgh"))
    def forget(self, key: str) -> None:
        self.pool.forget(key)
        if key in self.resident and not any(key in lease for lease in self.leases):
            self.resident.remove(key)

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity()
        assert self.pool.residents() == [(key, sum(key in lease for lease in self.leases)) for key in self.resident]


SlotMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
TestSlots = SlotMachine.TestCase
