"""Examples of what an adapter answered rightly, and of what a tenant had to correct: a uniform sample of each, in bounded memory. Pure.

Those whose decision's hash is least are kept (bottom-k sampling: Cohen and Kaplan, "Summarizing data using bottom-k sketches", PODC 2007):
the same ones in whatever order and however often events come, so nothing here needs to know what was counted before.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping
from typing import Final

from services.optimizer.stream.effects import FAILURES, is_silent
from smoa.v1.events_pb2 import Example
from smoa.v1.state_pb2 import ExampleSet

MOST: Final = 16
"""Of an adapter."""
MOST_FAILURES: Final = 256
"""Of a tenant."""
SET_BYTES: Final = 128 * 1024
"""Of a set, which is one record of the changelog, written whole when it changes; a broker takes a megabyte."""


class ExamplePartition:
    """The examples of one partition, in sets: a tenant's of an adapter, or of its failures."""

    def __init__(self, most_bytes: int, retention_s: float, values: Mapping[str, bytes], silent: Container[str] = frozenset()) -> None:
        """`silent`: tenants of whose texts nothing is kept or given; `*` is all of them."""
        self._most_bytes, self._retention_us, self._silent = most_bytes, int(retention_s * 1e6), silent
        self._values: OrderedDict[str, bytes] = OrderedDict(values)
        """The one that changed last comes last."""
        self.held_bytes = sum(map(len, self._values.values()))

    def get(self, key: str, now_us: int) -> list[Example]:
        """The examples of a key, the oldest first; none that is older than the retention."""
        return sorted(self._kept(self._values.get(key, b""), now_us).values(), key=lambda one: (one.occurred_at_us, one.decision_id))

    def value(self, key: str) -> bytes | None:
        """A set as it is kept."""
        return self._values.get(key)

    def plan(self, examples: Iterable[Example], now_us: int) -> dict[str, bytes | None]:
        """What changes, by key; None where a set goes, for the oldest must where there is no room."""
        sets: dict[str, dict[bytes, Example]] = {}
        for one in examples:
            if is_silent(one.tenant, self._silent):
                continue
            kept = sets.setdefault(one.key, self._kept(self._values.get(one.key, b""), now_us))
            if one.withdrawn:
                kept.pop(place_of(one), None)
                continue
            one.occurred_at_us = min(one.occurred_at_us, now_us)  # a clock that is ahead must not keep it for ever
            kept.setdefault(place_of(one), one)  # the first to come stands, as its verdict does
            _cut(kept, MOST_FAILURES if one.key.startswith(FAILURES) else MOST)
        changed = {key: value for key, kept in sets.items() if (value := _packed(kept)) != self._values.get(key)}
        held = self.held_bytes + sum(len(value or b"") - len(self._values.get(key, b"")) for key, value in changed.items())
        for key, value in self._values.items():
            if held <= self._most_bytes:
                break
            if key not in changed:
                changed[key] = None
                held -= len(value)
        return changed

    def faded(self, now_us: int) -> dict[str, bytes | None]:
        """What changes because it is too old, or because its tenant has become silent."""
        found: dict[str, bytes | None] = {}
        for key, value in list(self._values.items()):
            left = _packed(self._kept(value, now_us))
            if left != value:
                found[key] = left
        return found

    def apply(self, values: Mapping[str, bytes | None]) -> None:
        """Take what is durable."""
        for key, value in values.items():
            self.held_bytes -= len(self._values.pop(key, b""))
            if value is not None:
                self._values[key] = value
                self.held_bytes += len(value)

    def _kept(self, value: bytes, now_us: int) -> dict[bytes, Example]:
        found = map(Example.FromString, ExampleSet.FromString(value).examples)
        oldest_us = now_us - self._retention_us
        return {place_of(one): one for one in found if one.occurred_at_us >= oldest_us and not is_silent(one.tenant, self._silent)}


def place_of(one: Example) -> bytes:
    """What decides whether an example is kept: the least are."""
    return hashlib.blake2b(one.decision_id.encode(), digest_size=8).digest()


def _cut(kept: dict[bytes, Example], most: int) -> None:
    held = sum(one.ByteSize() for one in kept.values())
    while len(kept) > most or held > SET_BYTES:
        held -= kept.pop(max(kept)).ByteSize()


def _packed(kept: Mapping[bytes, Example]) -> bytes | None:
    """None for no examples."""
    return ExampleSet(examples=[kept[place].SerializeToString() for place in sorted(kept)]).SerializeToString() if kept else None
