"""Which adapter is in which slot. Pure bookkeeping: no tensors, no waiting."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Acquired:
    """Leases on all the keys asked for. Those in `missing` must be loaded into their slots; `evicted` slots were emptied for them."""

    slots: dict[str, int]
    missing: tuple[str, ...]
    evicted: tuple[str, ...]


class SlotPool:
    """A fixed number of slots, least recently used out first, never one that is leased."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free = list(range(slots - 1, -1, -1))
        self._slot_of: OrderedDict[str, int] = OrderedDict()
        self._leases: dict[str, int] = {}
        self.hits = self.misses = self.evictions = 0

    def acquire(self, keys: Sequence[str]) -> Acquired | None:
        """Lease all keys at once, or none (None: too many slots are leased by others). All at once, so two requests cannot deadlock.

        Raises:
            ValueError: more keys than slots.
        """
        wanted = list(dict.fromkeys(keys))
        if len(wanted) > self.slots:
            raise ValueError(f"{len(wanted)} adapters do not fit {self.slots} slots")
        missing = [key for key in wanted if key not in self._slot_of]
        idle = [key for key in self._slot_of if key not in self._leases and key not in wanted]
        evicted = idle[: max(0, len(missing) - len(self._free))]
        if len(missing) > len(self._free) + len(evicted):
            return None
        for key in evicted:
            self._free.append(self._slot_of.pop(key))
        for key in missing:
            self._slot_of[key] = self._free.pop()
        for key in wanted:
            self._leases[key] = self._leases.get(key, 0) + 1
            self._slot_of.move_to_end(key)
        self.hits += len(wanted) - len(missing)
        self.misses += len(missing)
        self.evictions += len(evicted)
        return Acquired({key: self._slot_of[key] for key in wanted}, tuple(missing), tuple(evicted))

    def release(self, keys: Sequence[str]) -> None:
        """End the leases of one `acquire`."""
        for key in dict.fromkeys(keys):
            self._leases[key] -= 1
            if not self._leases[key]:
                del self._leases[key]

    def forget(self, key: str) -> None:
        """Empty an unleased slot (its load failed)."""
        if key in self._slot_of and key not in self._leases:
            self._free.append(self._slot_of.pop(key))

    def residents(self) -> list[tuple[str, int]]:
        """(key, leases), least recently used first."""
        return [(key, self._leases.get(key, 0)) for key in self._slot_of]

    def check_integrity(self) -> None:
        """Raise AssertionError if a slot is lost, shared or leased while empty."""
        used = list(self._slot_of.values())
        assert sorted(used + self._free) == list(range(self.slots)), "a slot is lost or shared"
        assert set(self._leases) <= set(self._slot_of), "an absent adapter is leased"
        assert all(count > 0 for count in self._leases.values()), "a lease count is not positive"
