"""The host tier keeps its budget, what is held stays, and the least recently used goes first."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.executor.adapters.host_memory import HostMemory

KEYS = st.sampled_from("abcdefgh")
SIZES = {key: 10 * number for number, key in enumerate("abcdefgh", 1)}


def test_the_least_recently_used_goes_first() -> None:
    memory: HostMemory[str] = HostMemory(100)
    memory.keep("a", "A", 40)
    memory.keep("b", "B", 40)
    assert memory.get("a") == "A"
    memory.keep("c", "C", 40)
    assert (memory.get("b"), memory.get("a"), memory.evictions) == (None, "A", 1)


def test_what_is_held_stays_and_leaves_no_room_for_other_holds() -> None:
    memory: HostMemory[str] = HostMemory(100)
    assert memory.hold({"a": ("A", 60)})
    memory.keep("b", "B", 40)
    memory.keep("c", "C", 40)
    assert ("a" in memory, "b" in memory, "c" in memory) == (True, False, True)
    assert not memory.hold({"b": ("B", 50)})
    assert memory.hold({"a": ("A", 60), "d": ("D", 40)})
    memory.release({"a": 0})
    memory.release({"a": 0, "d": 0})
    assert memory.held_bytes == 0
    assert memory.hold({"b": ("B", 50)})


class Model(RuleBasedStateMachine):
    """Any order of calls: the budget is kept, and every hold is."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: HostMemory[str] = HostMemory(150)
        self.holds: list[dict[str, tuple[str, int]]] = []
        self.reserved: list[int] = []

    @rule(key=KEYS)
    def keep(self, key: str) -> None:
        self.memory.keep(key, key, SIZES[key])

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        assert self.memory.get(key) in (None, key)

    @rule(keys=st.sets(KEYS, max_size=3))
    def hold(self, keys: set[str]) -> None:
        items = {key: (key, SIZES[key]) for key in keys}
        held = {key for hold in self.holds for key in hold}
        total = sum(size for _, size in items.values())
        if total > 150:
            return
        fits = not keys - held or sum(SIZES[key] for key in held | keys) + sum(self.reserved) <= 150
        assert self.memory.hold(items) is fits
        if fits:
            self.holds.append(items)

    @rule(nbytes=st.integers(1, 100))
    def reserve(self, nbytes: int) -> None:
        held = {key for hold in self.holds for key in hold}
        fits = sum(SIZES[key] for key in held) + sum(self.reserved) + nbytes <= 150
        assert self.memory.reserve(nbytes) is fits
        if fits:
            self.reserved.append(nbytes)

    @precondition(lambda self: self.reserved)
    @rule()
    def unreserve(self) -> None:
        self.memory.unreserve(self.reserved.pop())

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.memory.release(self.holds.pop(data.draw(st.integers(0, len(self.holds) - 1))))

    @invariant()
    def held_items_are_there(self) -> None:
        assert all(key in self.memory for hold in self.holds for key in hold)
        self.memory.check_integrity()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, deadline=None, derandomize=True)
