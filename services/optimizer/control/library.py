"""What a worker knows of the library: all of it is read once, then what was written since."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from services.optimizer.control.likeness import Member
from services.optimizer.control.reasons import TAKEN_AWAY
from services.optimizer.control.views import Facts, facts_of
from services.optimizer.policy.library_policy import Family
from services.optimizer.policy.screening import ROW, Numbers, Rows, versions
from smoa.client import SmoaClient
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

_EVERY_STATE: Final = (
    common.ADAPTER_STATE_ACTIVE,
    common.ADAPTER_STATE_CANARY,
    common.ADAPTER_STATE_RETIRED,
    common.ADAPTER_STATE_PURGED,
    common.ADAPTER_STATE_MISSING,
)
LOOK_BACK_S: Final = 60.0
"""So much more than since the last time is asked for: clocks differ, and a write takes a while from its time to where it is seen."""
BLOCK: Final = 2**16
"""Rows of a block: all of it grows by so many at a time, and none of it is moved."""
FORGET_AFTER_US: Final = 14 * 86400 * 10**6
"""So long after an adapter was purged: decisions that held it are waited for a week at most."""
READ_ANEW_S: Final = 86400.0
"""After so long all is read again, for what no listing of what changed may show: a catalogue that was restored."""


class Away(NamedTuple):
    """An adapter that the optimizer took away, and whose weights are there."""

    tenant: str
    since_us: int
    reason: str
    is_archived: bool


class Library:
    """Every tenant's adapters that are active, those that are on trial, and those whose weights may be purged one day."""

    def __init__(self, client: SmoaClient, half_life_s: float) -> None:
        """`half_life_s`: of the recent counts."""
        self._client, self._half_life_s = client, half_life_s
        self._places: dict[str, int] = {}
        self._ids: list[str] = []
        self._names: list[str] = []
        self._blocks: list[Rows] = []
        self._families: dict[Family, int] = {}
        self._canaries: dict[str, registry_pb2.Adapter] = {}
        self._purged: list[str] = []
        self._away: dict[str, Away] = {}
        self._read_at_us = self._began_us = self._listing = 0
        self._by_number: list[Family] = []
        self._versions: list[str] | None = None

    def __len__(self) -> int:
        """How many are active."""
        return len(self._ids)

    def __contains__(self, adapter_id: object) -> bool:
        """Whether it is active."""
        return adapter_id in self._places

    def __iter__(self) -> Iterator[str]:
        """Ids of the active ones, in the order of their rows."""
        return iter(self._ids)

    @property
    def canaries(self) -> Mapping[str, registry_pb2.Adapter]:
        """Those on trial, by id."""
        return self._canaries

    @property
    def away(self) -> Mapping[str, Away]:
        """By id."""
        return self._away

    def purged(self) -> list[str]:
        """Ids of those that were found to have been gone for so long that no event of them can come any more, since the last call."""
        found, self._purged = self._purged, []
        return found

    @property
    def families(self) -> Sequence[Family]:
        """By the number that rows have."""
        if len(self._by_number) < len(self._families):
            self._by_number = list(self._families)
        return self._by_number

    @property
    def blocks(self) -> list[Rows]:
        """The active ones' rows."""
        return [block[: len(self._ids) - place * BLOCK] for place, block in enumerate(self._blocks) if place * BLOCK < len(self._ids)]

    def _row(self, place: int) -> Any:  # of a row's fields numpy's types know nothing
        return self._blocks[place // BLOCK][place % BLOCK]

    def id_of(self, row: int) -> str:
        """Whose row it is."""
        return self._ids[row]

    def member(self, row: int) -> Member:
        """Its adapter, as one of a family."""
        numbers = self._row(row)
        since_us = max(float(numbers["created_at_us"]), float(numbers["restored_at_us"]))
        return Member(self._ids[row], bytes(numbers["digest"]).hex(), since_us)

    def facts(self, adapter_id: str) -> Facts:
        """Of an active one.

        Raises:
            KeyError: it is not.
        """
        place = self._places[adapter_id]
        *numbers, family, digest, _ = self._row(place).item()
        return Facts(adapter_id, self._names[place], digest.hex(), self.families[family], Numbers(*numbers))

    def tenant_of(self, adapter_id: str) -> str:
        """Whose adapter it is; empty where it is not known."""
        if (place := self._places.get(adapter_id)) is not None:
            return self.families[int(self._row(place)["family"])].tenant
        if (one := self._canaries.get(adapter_id) or self._away.get(adapter_id)) is not None:
            return one.tenant
        return ""

    def versions(self) -> list[str]:
        """Ids of those that share their name, or their examples, with another one."""
        if self._versions is None:
            self._versions = [self._ids[row] for row in versions(self.blocks)]
        return self._versions

    async def refresh(self) -> None:
        """Take what the registry says: what was written since the last time, or, the first time and once a day, all.

        Raises:
            grpc.aio.AioRpcError: it is away; what it has said by then is known.
        """
        began_us = time.time_ns() // 1000
        since_us = self._began_us - int(LOOK_BACK_S * 1e6) if began_us - self._read_at_us < READ_ANEW_S * 1e6 else 0
        canaries, away = (self._canaries, self._away) if since_us else ({}, {})
        self._listing += 1
        async for one in self._client.list_all(states=_EVERY_STATE, all_tenants=True, written_since_us=since_us):
            self._take(one, canaries, away)
        if not since_us:
            self._canaries, self._away, self._read_at_us = canaries, away, began_us
            for adapter_id in [self._ids[row] for row in self._not_listed()]:
                self._drop(adapter_id)
            self._number_families()
        self._began_us = began_us

    def _take(self, one: registry_pb2.Adapter, canaries: dict[str, registry_pb2.Adapter], away: dict[str, Away]) -> None:
        adapter_id = one.adapter_id
        if one.state == common.ADAPTER_STATE_ACTIVE:
            self._put(facts_of(one, self._half_life_s))
        else:
            self._drop(adapter_id)
        if one.state == common.ADAPTER_STATE_PURGED and time.time_ns() // 1000 - one.updated_at_us > FORGET_AFTER_US:
            self._purged.append(adapter_id)
        if one.state == common.ADAPTER_STATE_CANARY:
            canaries[adapter_id] = one
        else:
            canaries.pop(adapter_id, None)
        if one.state == common.ADAPTER_STATE_RETIRED and not one.pinned and one.state_reason.startswith(TAKEN_AWAY):
            away[adapter_id] = Away(one.tenant, one.updated_at_us, one.state_reason, one.archived_at_us > 0)
        else:
            away.pop(adapter_id, None)

    def _put(self, facts: Facts) -> None:
        family = self._families.setdefault(facts.family, len(self._families))
        row = (*facts.numbers, family, bytes.fromhex(facts.digest), self._listing)
        place = self._places.get(facts.adapter_id)
        if place is None:
            place = self._places[facts.adapter_id] = len(self._ids)
            self._ids.append(facts.adapter_id)
            self._names.append(facts.name)
            if place // BLOCK == len(self._blocks):
                self._blocks.append(np.zeros(BLOCK, ROW))
            self._versions = None
        else:
            self._names[place] = facts.name
            before = self._row(place)
            if any(before[name] != getattr(facts.numbers, name) for name in ("same_name", "same_examples")):
                self._versions = None
        self._blocks[place // BLOCK][place % BLOCK] = row

    def _drop(self, adapter_id: str) -> None:
        """The last row takes its place."""
        if (place := self._places.pop(adapter_id, None)) is None:
            return
        last, name, end = self._ids.pop(), self._names.pop(), len(self._ids)
        if place < end:
            self._blocks[place // BLOCK][place % BLOCK] = self._row(end)
            self._ids[place], self._names[place], self._places[last] = last, name, place
        self._versions = None

    def _not_listed(self) -> list[int]:
        """Rows that the last listing did not have."""
        return [
            int(row) + place * BLOCK for place, rows in enumerate(self.blocks) for row in np.flatnonzero(rows["listing"] != self._listing)
        ]

    def _number_families(self) -> None:
        """Forget those that nobody is of any more, and the blocks that nobody stands in."""
        del self._blocks[-(-len(self._ids) // BLOCK) :]
        left = sorted({number for rows in self.blocks for number in np.unique(rows["family"]).tolist()})
        number_of = np.zeros(len(self._families), np.uint32)
        number_of[left] = np.arange(len(left))
        families = self.families
        for rows in self.blocks:
            rows["family"] = number_of[rows["family"]]
        self._families = {families[number]: place for place, number in enumerate(left)}
        self._by_number = list(self._families)
