"""How many calls are answered at once: of all callers, and of each. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from smoa.errors import ResourceExhausted


class Places:
    """Places for calls; a call that finds none is refused at once."""

    def __init__(self, total: int, each: int) -> None:
        self._total, self.each = total, each
        self._held: Counter[str] = Counter()
        self.taken = 0
        """Places that are held now."""

    @contextmanager
    def held(self, caller: str) -> Iterator[None]:
        """A place, until the call ends.

        Raises:
            ResourceExhausted: this caller has its share, or all are taken.
        """
        if self._held[caller] >= self.each:
            raise ResourceExhausted(f"calls: {self.each:,} of {caller} run at once", "wait until one ends")
        if self.taken >= self._total:
            raise ResourceExhausted(f"calls: {self._total:,} run at once", "wait a moment, or add a replica")
        self._held[caller] += 1
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]
