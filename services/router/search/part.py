"""A part of a pool that is searched by itself, as those of the adapters with a label. Few are all scored; of many, a scan of their own
finds those to score. Why not the pool's scan: docs/decisions/0008.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.router.catalogue.port import Vector
from services.router.search.scan import Scan

Positions = NDArray[np.int32]
SCORED: Final = 4_096
"""Positions that are scored at once, in under a millisecond."""
BEARABLE: Final = 32_768
"""Positions that are scored while a scan is made: in eight milliseconds."""
_LATE_SHARE: Final = 8
"""A new scan is made when one in so many came after it was, or went."""


class Part:
    """Positions of a pool, in order; a scan, of some of them and of some that count no more, comes later."""

    def __init__(self, positions: Positions, scan: Scan | None = None, scanned: Positions | None = None) -> None:
        self.positions = positions
        self._scan, self._scanned = scan, scanned
        self._late = positions
        self._gone = 0
        if scanned is positions:
            self._late = positions[:0]
        elif scanned is not None:
            self._late = positions[~_among(positions, scanned)]
            self._gone = len(scanned) + len(self._late) - len(positions)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def nbytes(self) -> int:
        """Memory, about."""
        if self._scan is None or self._scanned is None:
            return self.positions.nbytes
        scanned = 0 if self._scanned is self.positions else self._scanned.nbytes
        return self.positions.nbytes + scanned + self._scan.nbytes

    @property
    def wants_scan(self) -> bool:
        """Whether it should be scanned, or scanned anew."""
        return len(self) > SCORED and len(self._late) + self._gone > len(self) // _LATE_SHARE

    @property
    def scored(self) -> int:
        """How many a search looks at one by one, beside a few hundred."""
        return len(self._late) + self._gone

    def now(self, positions: Positions) -> Part:
        """The part when these are its positions, by the same scan."""
        return Part(positions, self._scan, self._scanned)

    def near(self, query: Vector, count: int) -> Positions:
        """At least so many of the positions, if there are as many, among which the nearest are."""
        if self._scan is None or self._scanned is None or len(self) <= SCORED:
            return self.positions
        found = self._scanned[self._scan.nearest(query, max(self._scan.rescored, count) + self._gone)]
        if self._gone:
            found = found[_among(found, self.positions)]
        return np.concatenate([found, self._late])


def _among(some: Positions, ordered: Positions) -> NDArray[np.bool_]:
    """Which of the positions are among others, which are in order."""
    if not len(ordered):
        return np.zeros(len(some), bool)
    places = np.minimum(np.searchsorted(ordered, some), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[places] == some
    return found
