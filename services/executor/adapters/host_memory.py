"""The host tier: what is kept in memory beside the slots, within a budget. Pure bookkeeping: no loading, no waiting."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")


class HostMemory(Generic[Item]):
    """Items by key with their bytes, least recently used out first, never one that is held."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = self.held_bytes = self.reserved_bytes = self.evictions = 0
        self._items: OrderedDict[str, tuple[Item, int]] = OrderedDict()
        self._holds: dict[str, int] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def is_held(self, key: str) -> bool:
        """Whether somebody holds it: holding it too takes no room."""
        return key in self._holds

    def latest(self, count: int) -> list[Item]:
        """The most recently used items, the last one first."""
        return [item for item, _ in islice(reversed(self._items.values()), count)]

    def get(self, key: str) -> Item | None:
        """An item, now the most recently used."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key][0]

    def keep(self, key: str, item: Item, nbytes: int) -> None:
        """Take an item in, if only until the next."""
        if key not in self._items:
            self._items[key] = (item, nbytes)
            self.used_bytes += nbytes
        self._items.move_to_end(key)
        self._trim()

    def hold(self, items: Mapping[str, tuple[Item, int]]) -> bool:
        """Keep all of these until they are released; False, and nothing is held, when what is held already leaves no room.

        Raises:
            ValueError: they are over the budget by themselves.
        """
        if sum(nbytes for _, nbytes in items.values()) > self.max_bytes:
            raise ValueError("more bytes than there are")
        added = sum(nbytes for key, (_, nbytes) in items.items() if key not in self._holds)
        if self.held_bytes + self.reserved_bytes + added > self.max_bytes:
            return False
        self.held_bytes += added
        for key in items:
            self._holds[key] = self._holds.get(key, 0) + 1
        for key, (item, nbytes) in items.items():
            self.keep(key, item, nbytes)
        return True

    def reserve(self, nbytes: int) -> bool:
        """Keep room for a `hold` of so many bytes, until `unreserve`; False while what is held leaves none."""
        if self.held_bytes + self.reserved_bytes + nbytes > self.max_bytes:
            return False
        self.reserved_bytes += nbytes
        return True

    def unreserve(self, nbytes: int) -> None:
        """End one `reserve`."""
        self.reserved_bytes -= nbytes

    def release(self, keys: Iterable[str]) -> None:
        """End one `hold`."""
        for key in keys:
            self._holds[key] -= 1
            if not self._holds[key]:
                del self._holds[key]
                self.held_bytes -= self._items[key][1]

    def _trim(self) -> None:
        for key in list(self._items):
            if self.used_bytes <= self.max_bytes:
                return
            if key not in self._holds:
                self.used_bytes -= self._items.pop(key)[1]
                self.evictions += 1

    def check_integrity(self) -> None:
        """Raise AssertionError if bytes are miscounted, over the budget, or held of what is not there."""
        assert self.used_bytes == sum(nbytes for _, nbytes in self._items.values()), "host bytes are miscounted"
        assert self.used_bytes <= self.max_bytes, "the host tier is over its budget"
        assert set(self._holds) <= set(self._items), "an absent item is held"
        assert self.held_bytes == sum(self._items[key][1] for key in self._holds), "held bytes are miscounted"
        assert all(count > 0 for count in self._holds.values()), "a hold count is not positive"
        assert 0 <= self.reserved_bytes <= self.max_bytes - self.held_bytes, "more is reserved than there is"
