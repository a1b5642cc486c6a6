"""The routing cache: bounded, least recently used first out, with a time to live, and emptied of what has changed. Pure."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

Value = TypeVar("Value")


class CacheKey(NamedTuple):
    """What makes two queries the same question."""

    tenant: str
    base_model: str
    strategy: str
    query_hash: str
    top_k: int


@dataclass(frozen=True)
class _Entry(Generic[Value]):
    value: Value
    expires_at_s: float
    adapter_ids: tuple[str, ...]


class RoutingCache(Generic[Value]):
    """Decisions by key, and which keys each adapter is in."""

    def __init__(self, max_entries: int, ttl_s: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entries, self._ttl_s, self._clock = max_entries, ttl_s, clock
        self._entries: OrderedDict[Hashable, _Entry[Value]] = OrderedDict()
        self._by_adapter: defaultdict[str, set[Hashable]] = defaultdict(set)
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: CacheKey) -> Value | None:
        """The value, unless it is absent or has expired."""
        entry = self._entries.get(key)
        if entry is not None and entry.expires_at_s <= self._clock():
            self._drop(key)
            entry = None
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return entry.value

    def put(self, key: CacheKey, value: Value, adapter_ids: Sequence[str]) -> None:
        """Keep a value; the least recently used goes when there are too many."""
        self._drop(key)
        self._entries[key] = _Entry(value, self._clock() + self._ttl_s, tuple(adapter_ids))
        for adapter_id in adapter_ids:
            self._by_adapter[adapter_id].add(key)
        while len(self._entries) > self._max_entries:
            self._drop(next(iter(self._entries)))

    def drop_adapter(self, adapter_id: str) -> None:
        """Forget every entry that holds the adapter."""
        for key in list(self._by_adapter.get(adapter_id, ())):
            self._drop(key)

    def clear(self) -> None:
        """Forget all: a new adapter may belong in any of them."""
        self._entries.clear()
        self._by_adapter.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError if the two maps disagree or the bound is passed."""
        listed = {(adapter_id, key) for adapter_id, keys in self._by_adapter.items() for key in keys}
        held = {(adapter_id, key) for key, entry in self._entries.items() for adapter_id in entry.adapter_ids}
        assert listed == held, "the maps disagree"
        assert len(self._entries) <= self._max_entries, "the bound is passed"
        assert all(self._by_adapter.values()), "an adapter is listed without entries"

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        for adapter_id in entry.adapter_ids if entry else ():
            keys = self._by_adapter.get(adapter_id, set())
            keys.discard(key)
            if not keys:
                self._by_adapter.pop(adapter_id, None)
