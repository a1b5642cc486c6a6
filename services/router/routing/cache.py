"""Decisions that are given again, in a cache bounded in bytes. Pure."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from smoa.bounded_cache import ENTRY_BYTES, BoundedCache

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
MAX_POOLS: Final = 100_000
"""Pools whose changes are counted; at more, everything is forgotten once."""


@dataclass(frozen=True)
class _Entry(Generic[Value]):
    value: Value
    expires_at_s: float
    adapter_ids: tuple[str, ...]
    pools: tuple[str, ...]
    arrivals: tuple[int, ...]
    """In each of the pools, before it was put in."""


class RoutingCache(Generic[Key, Value]):
    """Decisions by key, for a time to live, until an adapter of theirs changes or another arrives in a pool that they were chosen from."""

    def __init__(self, max_bytes: int, ttl_s: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s, self._clock = ttl_s, clock
        self._entries: BoundedCache[Key, _Entry[Value]] = BoundedCache(max_bytes)
        self._by_adapter: defaultdict[str, set[Key]] = defaultdict(set)
        self._changes: dict[str, int] = {}
        self._arrivals: dict[str, int] = {}
        self._cleared = 0
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Bytes held, as `put` was told."""
        return self._entries.bytes

    def get(self, key: Key) -> Value | None:
        """The value, unless it is absent or has expired."""
        entry = self._entries.get(key)
        if entry is not None and (entry.expires_at_s <= self._clock() or entry.arrivals != self._arrived_in(entry.pools)):
            self._drop(key)
            entry = None
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        return entry.value

    def state_of(self, pools: Sequence[str]) -> tuple[int, ...]:
        """Counts what could make an answer from these pools stale: one worked out before it changed must not be put in after."""
        return (self._cleared, *(self._changes.get(pool, 0) for pool in pools))

    def put(self, key: Key, value: Value, adapter_ids: Sequence[str], pools: Sequence[str] = (), size: int = ENTRY_BYTES) -> None:
        """Keep a value of about `size` bytes that was chosen from these pools."""
        self._drop(key)
        for adapter_id in adapter_ids:
            self._by_adapter[adapter_id].add(key)
        entry = _Entry(value, self._clock() + self._ttl_s, tuple(adapter_ids), tuple(pools), self._arrived_in(pools))
        for gone, other in self._entries.put(key, entry, size):
            self._unlist(gone, other)
        if size > self._entries.max_bytes:
            self._unlist(key, entry)

    def adapter_changed(self, adapter_id: str, pool: str, *, arrived: bool) -> None:
        """Forget every entry that holds the adapter; if it is a new one in its pool, every entry that was chosen from there."""
        if len(self._changes) >= MAX_POOLS:
            self.clear()
        self._changes[pool] = self._changes.get(pool, 0) + 1
        if arrived:
            self._arrivals[pool] = self._arrivals.get(pool, 0) + 1
        for key in list(self._by_adapter.get(adapter_id, ())):
            self._drop(key)

    def refitted(self, pools: Sequence[str]) -> None:
        """Forget every entry that was chosen from these pools: their adapters are judged otherwise now."""
        if len(self._changes) >= MAX_POOLS:
            self.clear()
        pool = pools[0]  # the tenant's own, where it has one: others' answers from the shared one stay
        self._changes[pool] = self._changes.get(pool, 0) + 1
        self._arrivals[pool] = self._arrivals.get(pool, 0) + 1

    def clear(self) -> None:
        """Forget all."""
        self._cleared += 1
        for forgotten in (self._entries, self._by_adapter, self._changes, self._arrivals):
            forgotten.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError if the two maps disagree or the bound is passed."""
        listed = {(adapter_id, key) for adapter_id, keys in self._by_adapter.items() for key in keys}
        held = {(adapter_id, key) for key, (entry, _) in self._entries._entries.items() for adapter_id in entry.adapter_ids}
        assert listed == held, "the maps disagree"
        assert self.bytes == sum(size for _, size in self._entries._entries.values()) <= self._entries.max_bytes, "the bound is passed"
        assert all(self._by_adapter.values()), "an adapter is listed without entries"

    def _arrived_in(self, pools: Sequence[str]) -> tuple[int, ...]:
        return tuple(self._arrivals.get(pool, 0) for pool in pools)

    def _drop(self, key: Key) -> None:
        if (entry := self._entries.drop(key)) is not None:
            self._unlist(key, entry)

    def _unlist(self, key: Key, entry: _Entry[Value]) -> None:
        for adapter_id in entry.adapter_ids:
            keys = self._by_adapter.get(adapter_id, set())
            keys.discard(key)
            if not keys:
                self._by_adapter.pop(adapter_id, None)
