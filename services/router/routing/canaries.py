"""Children of merges on trial: a share of the queries that their parents would answer goes to them, and no more than they have earned.

A canary that nobody has judged yet gets a few queries; each outcome that comes back earns it some more, and so does an hour. So however
fast queries come and however late outcomes, a bad child is seen by few before the optimizer has what it needs to roll it back.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from services.router.catalogue.merges import MAX_CANARY_SHARE
from services.router.catalogue.records import AdapterRecord
from services.router.routing.scoring import Chosen

FIRST_QUERIES: Final = 20
QUERIES_AN_OUTCOME: Final = 2
QUERIES_AN_HOUR: Final = 10
"""For those whose queries are seldom judged: by outcomes alone, a fifth of queries with a verdict would earn no more than 33 of them."""
SUCCESSES_TO_DOUBLE: Final = 10
"""A share grows with successes, by itself for each so many, so that one that does well is not on trial for long."""


class Canaries:
    """Those that are open. Empty nearly always, and then costs nothing."""

    def __init__(self, seed: int | None = None) -> None:
        self._open: dict[str, AdapterRecord] = {}
        self._by_parent: dict[str, str] = {}
        self._sent: dict[str, int] = {}
        self._random = random.Random(seed)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._open))

    @property
    def by_parent(self) -> Mapping[str, str]:
        """Adapter id -> the canary that is on trial against it."""
        return self._by_parent

    def update(self, records: Iterable[AdapterRecord]) -> None:
        """Take records as they are now: those that are canaries are open, those that are not any more are closed."""
        for record in records:
            if record.state == "canary":
                self._open[record.adapter_id] = record
                self._sent.setdefault(record.adapter_id, 0)
                self._by_parent |= dict.fromkeys(record.parents, record.adapter_id)
            else:
                self.forget(record.adapter_id)

    def forget(self, adapter_id: str) -> None:
        """One that is not there any more."""
        if (gone := self._open.pop(adapter_id, None)) is not None:
            del self._sent[adapter_id]
            self._by_parent = {parent: name for parent, name in self._by_parent.items() if name != gone.adapter_id}

    def tried(self, chosen: tuple[Chosen, ...], tenant: str, now_us: int) -> tuple[Chosen, ...]:
        """The same, or, for a share of queries, with a canary where its first parent stood, with its parents' weights together."""
        open_here = {self._by_parent[one.ref.adapter_id] for one in chosen if one.ref.adapter_id in self._by_parent}
        for name in sorted(open_here):
            canary = self._open[name]
            if not canary.visible_to(tenant):
                continue
            hours = max(0.0, (now_us - canary.created_at_us) / 3600e6)
            earned = FIRST_QUERIES + QUERIES_AN_OUTCOME * canary.statistics.outcomes + QUERIES_AN_HOUR * hours
            share = min(MAX_CANARY_SHARE, canary.canary_share * (1 + canary.statistics.successes / SUCCESSES_TO_DOUBLE))
            if self._sent[name] < earned and self._random.random() < share:
                self._sent[name] += 1
                chosen = _in_their_place(chosen, canary)
        return chosen


def _in_their_place(chosen: tuple[Chosen, ...], canary: AdapterRecord) -> tuple[Chosen, ...]:
    parents = [one for one in chosen if one.ref.adapter_id in canary.parents]
    child = Chosen(canary.ref, score=max(one.score for one in parents), weight=sum(one.weight for one in parents))
    return tuple(child if one is parents[0] else one for one in chosen if one is parents[0] or one not in parents)
