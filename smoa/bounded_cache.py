"""A cache bounded in bytes. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
ENTRY_BYTES = 300
"""What an entry takes beside its value: key, links, bookkeeping."""


class BoundedCache(Generic[Key, Value]):
    """Values by key within a number of bytes, as their owner counts them; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self.bytes = self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """The value, unless it is absent."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Key, value: Value, size: int) -> list[tuple[Key, Value]]:
        """Keep a value of `size` bytes; returns what had to go for it. One that is larger than the whole cache is not kept."""
        gone = self.drop(key)
        removed = [(key, gone)] if gone is not None else []
        if size > self.max_bytes:
            return removed
        self._entries[key] = (value, size)
        self.bytes += size
        while self.bytes > self.max_bytes:
            oldest, (old, old_size) = self._entries.popitem(last=False)
            self.bytes -= old_size
            removed.append((oldest, old))
        return removed

    def drop(self, key: Key) -> Value | None:
        """Forget a value and return it."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self.bytes -= entry[1]
        return entry[0]

    def values(self) -> list[Value]:
        """All of them."""
        return [value for value, _ in self._entries.values()]

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self.bytes = 0
