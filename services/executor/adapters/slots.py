"""Which adapter is in which slot. Pure bookkeeping: no tensors, no waiting."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Acquired:
    """Leases on all the keys asked for. Those in `missing` must be put on the device; `evicted` ones were taken off it for them."""

    missing: tuple[str, ...]
    evicted: tuple[str, ...]


class SlotPool:
    """A fixed number of slots and of bytes in them, least recently used out first, never one that is leased."""

    def __init__(self, slots: int, max_bytes: int) -> None:
        self.slots, self.max_bytes = slots, max_bytes
        self._bytes_of: OrderedDict[str, int] = OrderedDict()
        self._leases: dict[str, int] = {}
        self.hits = self.misses = self.evictions = 0

    def __contains__(self, key: str) -> bool:
        return key in self._bytes_of

    @property
    def used(self) -> int:
        """Slots that hold something."""
        return len(self._bytes_of)

    @property
    def used_bytes(self) -> int:
        """Bytes in the slots."""
        return sum(self._bytes_of.values())

    def acquire(self, sizes: Mapping[str, int]) -> Acquired | None:
        """Lease all keys (key -> bytes) at once, or none (None: others lease too much). All at once, so two requests cannot deadlock.

        Raises:
            ValueError: more keys than slots, or more bytes than they hold.
        """
        if len(sizes) > self.slots or sum(sizes.values()) > self.max_bytes:
            raise ValueError(
                f"{len(sizes)} adapters of {sum(sizes.values())} bytes do not fit {self.slots} slots of {self.max_bytes} bytes"
            )
        missing = [key for key in sizes if key not in self._bytes_of]
        slots = len(self._bytes_of) + len(missing)
        held = self.used_bytes + sum(sizes[key] for key in missing)
        evicted: list[str] = []
        for key, size in self._bytes_of.items():
            if slots <= self.slots and held <= self.max_bytes:
                break
            if key not in self._leases and key not in sizes:
                evicted.append(key)
                slots, held = slots - 1, held - size
        if slots > self.slots or held > self.max_bytes:
            return None
        for key in evicted:
            del self._bytes_of[key]
        for key, size in sizes.items():
            self._bytes_of.setdefault(key, size)
            self._bytes_of.move_to_end(key)
            self._leases[key] = self._leases.get(key, 0) + 1
        self.hits += len(sizes) - len(missing)
        self.misses += len(missing)
        self.evictions += len(evicted)
        return Acquired(tuple(missing), tuple(evicted))

    def release(self, sizes: Mapping[str, int]) -> None:
        """End the leases of one `acquire`."""
        for key in sizes:
            self._leases[key] -= 1
            if not self._leases[key]:
                del self._leases[key]

    def forget(self, key: str) -> None:
        """Empty an unleased slot (its load failed)."""
        if key not in self._leases:
            self._bytes_of.pop(key, None)

    def residents(self) -> list[tuple[str, int]]:
        """(key, leases), least recently used first."""
        return [(key, self._leases.get(key, 0)) for key in self._bytes_of]

    def check_integrity(self) -> None:
        """Raise AssertionError if the slots hold too much, or an empty one is leased."""
        assert len(self._bytes_of) <= self.slots, "more adapters than slots"
        assert self.used_bytes <= self.max_bytes, "more bytes than the slots hold"
        assert set(self._leases) <= set(self._bytes_of), "an absent adapter is leased"
        assert all(count > 0 for count in self._leases.values()), "a lease count is not positive"
