"""Nearest vectors of one pool, in memory: compact codes are scanned, the best few hundred are scored again with better ones.

A vector is kept twice. Its product-quantised code (faiss's 4-bit fast scan: 32 bytes for 256 numbers) is what a search scans; its 8-bit
code is what the found candidates are scored with. Up to `EXACT_ROWS` everything is scored, and up to `FLAT_ROWS` everything is scanned,
so the answer does not hang on how the vectors lie; above that they are divided into cells, and as many cells are scanned as it took to
find nearly all of the true neighbours when the pool was trained.

New vectors are in the next answer, and removing one is a mark: nothing is rebuilt. When a pool has grown fourfold, or a fifth of it is
marks, its owner trains a successor of the scan aside and swaps it in (`scan.py`). Not thread-safe: everything but the scan's own work and
`fill_ahead` happens on the event loop. Why faiss and not the HNSW of an embedded engine: docs/decisions/0008.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.router.catalogue.encoded_vectors import Codes, Encoded
from services.router.catalogue.port import Vector
from services.router.search import clusters as leading
from services.router.search.clusters import NO_CLUSTER, Clusters, Ids
from services.router.search.part import Part
from services.router.search.scan import Scan

EXACT_ROWS: Final = 2_000
_GROWTH_ROWS: Final = 65_536
_AHEAD_ROWS: Final = 1024
"""For which a search may have to wait: 20 ms where there are 4,096 cells. A quarter as many take more than twice as long each."""
_AHEAD_THREADS: Final = min(2, len(os.sched_getaffinity(0)))
"""Of a router that loads: it is nearly all that such a one has to do, and its searches wait half as long. No more, for what the machine has
may be far more than what a container may use."""
_WIDEST: Final = 65_536
"""Candidates after which a scan gives up looking behind dropped ones: tens of milliseconds."""
_ROWS_AT_ONCE: Final = 256


class VectorPool:
    """Vectors by row number of their owner. A position is a vector's place here; it is never used twice."""

    def __init__(self, dimension: int) -> None:
        self._codes: Codes = np.empty((0, dimension), np.int8)
        self._steps: Vector = np.empty(0, np.float32)
        self._rows: NDArray[np.int32] = np.empty(0, np.int32)
        self._cluster: Ids = np.empty(0, np.int16)
        self._clusters: Clusters | None = None
        self._used = self._dropped = 0
        self._scan: Scan | None = None
        self._trained_at = 0

    def __len__(self) -> int:
        return self._used - self._dropped

    @property
    def positions(self) -> int:
        """Positions given so far, dropped ones too."""
        return self._used

    def add(self, rows: NDArray[np.int64], vectors: Encoded) -> int:
        """Add vectors and return the position of the first."""
        first, count = self._used, len(rows)
        if first + count > len(self._rows):  # a pool of one adapter takes the room of one: there may be a hundred thousand of them
            size = max(first + count, len(self._rows) + min(len(self._rows), _GROWTH_ROWS))
            # In place: a copy of hundreds of megabytes would double the memory for a moment. No view outlives a call on the loop.
            self._codes.resize((size, self._codes.shape[1]), refcheck=False)
            self._steps.resize(size, refcheck=False)
            self._rows.resize(size, refcheck=False)
            self._cluster.resize(size, refcheck=False)
        self._codes[first : first + count], self._steps[first : first + count] = vectors.codes, vectors.steps
        self._rows[first : first + count] = rows
        if self._clusters is None and first >= leading.CLUSTERED_FROM:
            self._clusters = Clusters(vectors.codes.shape[1])
        self._cluster[first : first + count] = NO_CLUSTER if self._clusters is None else self._clusters.join(vectors.decoded())
        self._used += count
        if self._scan is not None and (behind := self._used - self._scan.filled) > 0:
            self._scan.fill(Encoded(vectors.codes[-behind:], vectors.steps[-behind:]))
        return first

    def fill_ahead(self, vectors: Encoded) -> None:
        """Put the vectors that are added next into the scan: on a worker thread, while nothing else is added. Searches go on."""
        scan = self._scan  # all into one: another may be adopted meanwhile, which then holds none of them
        if scan is not None:
            for start in range(0, len(vectors.steps), _AHEAD_ROWS):
                rows = slice(start, start + _AHEAD_ROWS)
                scan.fill(Encoded(vectors.codes[rows], vectors.steps[rows]), _AHEAD_THREADS)

    def drop(self, position: int) -> None:
        """Forget one vector."""
        if self._rows[position] >= 0:
            self._rows[position] = -1
            if self._clusters is not None and self._cluster[position] != NO_CLUSTER:
                self._clusters.leave(int(self._cluster[position]))
            self._dropped += 1

    def nearest(
        self, query: Vector, limit: int, among: Sequence[Part] | None = None, clusters: int = 0
    ) -> tuple[NDArray[np.int64], Vector]:
        """(rows, cosines) of the nearest to the unit vector `query`, best first.

        With `among`, only what is in one of these parts counts; with `clusters`, only what is in so many nearest clusters does.
        """
        near_clusters = self._clusters.nearest(query, clusters) if clusters and self._clusters is not None else None
        if among is not None:
            near = [part.near(query, limit).astype(np.int64) for part in among]
            positions = self._counted(near[0] if len(near) == 1 else np.unique(np.concatenate(near)), near_clusters)
            if near_clusters is not None and len(positions) < limit:  # those found are in others: take all there are
                positions = self._counted(np.unique(np.concatenate([part.positions for part in among])).astype(np.int64), near_clusters)
        elif self._scan is None:
            positions = self._counted(np.arange(self._used), near_clusters)
        else:
            count = 2 * limit
            positions = self._counted(self._scan.nearest(query, count), near_clusters)
            if near_clusters is None:  # dropped ones may have filled the scan's answer: look further, in every cell
                widest = min(self._used, _WIDEST)
                while len(positions) < min(limit, len(self)) and count < widest:
                    count = min(8 * count, widest)
                    positions = self._counted(self._scan.nearest(query, count, everywhere=True), None)
            elif len(positions) < limit:  # the scan met too few of these clusters: take all there are
                positions = self._counted(np.arange(self._used), near_clusters)
        cosines = self._cosines(query, positions)
        if len(positions) > limit:
            best = np.argpartition(-cosines, limit)[:limit]
            positions, cosines = positions[best], cosines[best]
        rows = self._rows[positions].astype(np.int64)
        order = np.lexsort((rows, -cosines))
        return rows[order], cosines[order]

    def _cosines(self, query: Vector, positions: NDArray[np.int64]) -> Vector:
        """Some rows at a time: what they are copied to stays in the processor's cache, and is not asked of the system for each query."""
        found = np.empty(len(positions), np.float32)
        for start in range(0, len(positions), _ROWS_AT_ONCE):
            part = positions[start : start + _ROWS_AT_ONCE]
            # `take`, for indexing copies the rows at less than half its speed; no position is out of bounds.
            codes = np.take(self._codes, part, 0, mode="clip")
            np.dot(codes.astype(np.float32), query, out=found[start : start + len(part)])
        found *= self._steps[positions]
        return found

    def _counted(self, positions: NDArray[np.int64], clusters: Ids | None) -> NDArray[np.int64]:
        """Those of the positions that were not dropped, and are in one of the clusters."""
        if self._scan is not None and self._scan.filled > self._used:
            positions = positions[positions < self._used]
        if clusters is not None:
            of = self._cluster[positions]
            positions = positions[(of == NO_CLUSTER) | np.isin(of, clusters)]
        return positions[self._rows[positions] >= 0] if self._dropped else positions

    def holds(self, positions: NDArray[np.int32], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the positions are here and hold that row."""
        inside = (positions >= 0) & (positions < self._used)
        return inside & (self._rows[np.where(inside, positions, 0)] == rows) if self._used else np.zeros(len(positions), bool)

    @property
    def scan(self) -> Scan | None:
        """By what it is scanned."""
        return self._scan

    @property
    def wants_training(self) -> bool:
        """True when it has grown fourfold since it was trained, or outgrew exact scoring."""
        if self._used <= EXACT_ROWS:
            return False
        return self._scan is None or self._used >= 4 * self._trained_at

    @property
    def wants_compaction(self) -> bool:
        """True when more than a fifth of it, and more than a thousand, are marks of dropped vectors."""
        return self._dropped > max(1000, self._used // 5)

    def at(self, positions: NDArray[np.int32]) -> Encoded:
        """A copy of the codes at these."""
        return Encoded(np.take(self._codes, positions, 0, mode="clip"), self._steps[positions])

    def sample(self, count: int, seed: int = 0) -> Encoded:
        """Codes of some of the vectors, drawn evenly."""
        alive = np.flatnonzero(self._rows[: self._used] >= 0)
        picked = np.sort(np.random.default_rng(seed).choice(alive, min(count, len(alive)), replace=False))
        return Encoded(self._codes[picked], self._steps[picked])

    def encoded(self, start: int, stop: int) -> Encoded:
        """A copy of the codes at these positions."""
        stop = min(stop, self._used)
        return Encoded(self._codes[start:stop].copy(), self._steps[start:stop].copy())

    def alive(self, start: int, stop: int) -> tuple[NDArray[np.int64], Encoded]:
        """(rows, codes) of what was not dropped between two positions."""
        positions = np.arange(start, min(stop, self._used))
        positions = positions[self._rows[positions] >= 0]
        return self._rows[positions].astype(np.int64), Encoded(self._codes[positions], self._steps[positions])

    def adopt(self, successor: Scan) -> None:
        """Scan with a successor that holds every position.

        Raises:
            ValueError: it does not.
        """
        if successor.filled != self._used:
            raise ValueError(f"the successor holds {successor.filled} of {self._used} positions")
        self._scan, self._trained_at = successor, successor.trained_rows
