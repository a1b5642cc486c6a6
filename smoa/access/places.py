"""How much is done at once: of all callers, and of each. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smoa.errors import ResourceExhausted


class Places:
    """Places for calls, or for whatever else there is so much of; who finds none is refused at once."""

    def __init__(self, total: int, each: int, what: str = "calls") -> None:
        self._total, self.each, self._what = total, each, what
        self._held: Counter[str] = Counter()
        self.taken = 0
        """Places that are held now."""

    @classmethod
    def shared(cls, total: int, what: str = "calls", *, asks: bool) -> Places:
        """Of callers who are known, none has more than a quarter; where nobody is asked, all is of one."""
        return cls(total, max(1, total // 4) if asks else total, what)

    @contextmanager
    def held(self, caller: str, amount: int = 1) -> Iterator[Callable[[int], None]]:
        """So many places, until the call ends; more are held by what is yielded, and given back by it.

        Raises:
            ResourceExhausted: this caller has its share, or all are taken.
        """
        holds = 0

        def more(amount: int) -> None:
            nonlocal holds
            if self._held[caller] + amount > self.each:
                raise ResourceExhausted(
                    f"{self._what}: {caller} has {self._held[caller]:,} of its {self.each:,} at once", "wait until one ends"
                )
            if self.taken + amount > self._total:
                raise ResourceExhausted(f"{self._what}: {self.taken:,} of {self._total:,} are taken", "wait a moment, or add a replica")
            self._held[caller] += amount
            self.taken += amount
            holds += amount

        try:
            more(amount)
            yield more
        finally:
            self.taken -= holds
            self._held[caller] -= holds
            if not self._held[caller]:
                del self._held[caller]
