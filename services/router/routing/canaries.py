"""Adapters on trial: they get a share of the queries of those that they are tried against, and no more than they have earned.

A canary that nobody has judged yet gets a few queries; each outcome that comes back earns it some more, and so does an hour. So however
fast queries come and however late outcomes, a bad child is seen by few before the optimizer has what it needs to roll it back. That budget
is one for all routers, and stands on the canary's record: a router takes a few queries of it at a time (`trials.py`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from services.router.catalogue.merges import MAX_CANARY_SHARE
from services.router.catalogue.records import AdapterRecord
from services.router.routing.scoring import Chosen

FIRST_QUERIES: Final = 20
QUERIES_AN_OUTCOME: Final = 2
QUERIES_AN_HOUR: Final = 10
"""For those whose queries are seldom judged: by outcomes alone, a fifth of queries with a verdict would earn no more than 33 of them."""
MOST_SAVED_HOURS: Final = 24
"""Of which queries may be left over: a trial whose parents were quiet for months does not begin with all that they did not take."""
SUCCESSES_TO_DOUBLE: Final = 5
"""A share grows with successes: half of the queries tell the sides apart soonest, and one that does badly stays with few."""
MOST_DOUBLINGS: Final = 30.0
SHARES: Final = 4096
"""A share is a multiple of one in so many: so sums of them are exact, in whatever order they are added up."""
TAKEN_AT_ONCE: Final = 10
_LOW: Final = 5


def left_of_budget(canary: AdapterRecord, now_us: int) -> int:
    """How many queries it has earned that no router has taken yet."""
    hours = max(0.0, (now_us - canary.canary_since_us) / 3600e6)
    return int(_earned_by_outcomes(canary) + QUERIES_AN_HOUR * hours) - canary.canary_taken


def _earned_by_outcomes(canary: AdapterRecord) -> float:
    return FIRST_QUERIES + QUERIES_AN_OUTCOME * canary.statistics.outcomes


def some_of_budget(canary: AdapterRecord, now_us: int) -> tuple[int, int]:
    """(queries that a router takes, `canary_taken` then). What hours have earned and nobody took lapses after a day, as if taken."""
    left = left_of_budget(canary, now_us)
    most = int(_earned_by_outcomes(canary)) + MOST_SAVED_HOURS * QUERIES_AN_HOUR
    count = max(0, min(TAKEN_AT_ONCE, left))
    return count, canary.canary_taken + count + max(0, left - most)


class Canaries:
    """Those that are open. Empty nearly always, and then costs nothing."""

    def __init__(self, seed: int | None = None) -> None:
        self.hungry: Callable[[], None] = lambda: None
        """Called when one of `wanting` may have more than it had."""
        self._open: dict[str, AdapterRecord] = {}
        self._by_parent: dict[str, str] = {}
        self._granted: dict[str, int] = {}
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
                is_new = record.adapter_id not in self._open
                self._open[record.adapter_id] = record
                self._granted.setdefault(record.adapter_id, 0)
                self._by_parent |= dict.fromkeys(record.tried_against, record.adapter_id)
                if is_new:
                    self.hungry()
            else:
                self.forget(record.adapter_id)

    def forget(self, adapter_id: str) -> None:
        """One that is not there any more."""
        if (gone := self._open.pop(adapter_id, None)) is not None:
            del self._granted[adapter_id]
            self._by_parent = {parent: name for parent, name in self._by_parent.items() if name != gone.adapter_id}

    def wanting(self, now_us: int) -> list[str]:
        """Those that are about to have used up what was granted, and have earned more."""
        return [name for name, one in self._open.items() if self._granted[name] < _LOW and left_of_budget(one, now_us) > 0]

    def grant(self, adapter_id: str, queries: int) -> None:
        """Let one answer so many more."""
        if adapter_id in self._granted:
            self._granted[adapter_id] += queries

    def tried(self, chosen: tuple[Chosen, ...], tenant: str, now_us: int, who: bytes = b"") -> tuple[Chosen, ...]:
        """The same, or, for a share of queries, with a canary where its first parent stood, with its parents' weights together. Who is
        compared with whom stands on both sides.

        Whoever asks, `who`, stays on one side, as long as the canary has queries left; the share only grows.
        """
        open_here = {self._by_parent[one.ref.adapter_id] for one in chosen if one.ref.adapter_id in self._by_parent}
        for name in sorted(open_here):
            canary = self._open[name]
            if not canary.visible_to(tenant):
                continue
            doublings = min(canary.statistics.successes / SUCCESSES_TO_DOUBLE, MOST_DOUBLINGS)
            share = round(min(MAX_CANARY_SHARE, canary.canary_share * 2**doublings) * SHARES) / SHARES
            may = self._granted[name] > 0
            drawn = share if may and not who else 0.0
            if may and (_place_of(name, who) if who else self._random.random()) < share:
                self._granted[name] -= 1
                chosen = _in_their_place(chosen, canary, drawn)
                if self._granted[name] < _LOW and left_of_budget(canary, now_us) > 0:
                    self.hungry()
            else:
                against = canary.tried_against
                chosen = tuple(one._replace(control_of=name, trial_share=drawn) if one.ref.adapter_id in against else one for one in chosen)
        return chosen


def _place_of(canary: str, who: bytes) -> float:
    """In [0, 1), by chance, and of one trial always the same."""
    return int.from_bytes(hashlib.blake2b(canary.encode() + b"/" + who, digest_size=6).digest()) / 2**48


def _in_their_place(chosen: tuple[Chosen, ...], canary: AdapterRecord, drawn: float) -> tuple[Chosen, ...]:
    parents = [one for one in chosen if one.ref.adapter_id in canary.tried_against]
    child = Chosen(
        canary.ref,
        score=max(one.score for one in parents),
        weight=sum(one.weight for one in parents),
        stands_for=tuple(one.ref.adapter_id for one in parents),
        trial_share=drawn,
    )
    return tuple(child if one is parents[0] else one for one in chosen if one is parents[0] or one not in parents)
