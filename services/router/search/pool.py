"""Nearest vectors of one pool, in memory: compact codes are scanned, the best few hundred are scored again with better ones.

A vector is kept twice. Its product-quantised code (faiss's 4-bit fast scan: 32 bytes for 256 numbers) is what a search scans; its 8-bit
code is what the found candidates are scored with. Up to `EXACT_ROWS` everything is scored, and up to `FLAT_ROWS` everything is scanned,
so the answer does not hang on how the vectors lie; above that they are divided into cells, and as many cells are scanned as it took to
find nearly all of the true neighbours when the pool was trained.

New vectors are in the next answer, and removing one is a mark: nothing is rebuilt. When a pool has grown fourfold, or a fifth of it is
marks, its owner trains a successor aside and swaps it in (`Successor`). Not thread-safe: everything but `Successor`'s work and `fill_ahead`
happens on the event loop. Why faiss and not the HNSW of an embedded engine: docs/decisions/0008.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from services.router.catalogue.encoded_vectors import Codes, Encoded
from services.router.catalogue.port import Vector
from services.router.search import clusters as leading
from services.router.search.clusters import NO_CLUSTER, Clusters, Ids

EXACT_ROWS: Final = 2_000
FLAT_ROWS: Final = 20_000
RESCORED: Final = 256
"""Candidates of the scan that are scored again, where calibration did not find a better number."""
RECALL_TARGET: Final = 0.99
"""Share of the true ten nearest that calibration wants among the rescored: more than is needed, for a pool grows up to fourfold until
the next."""
_ROWS_A_CELL: Final = 20
_MOST_CELLS: Final = 1 << 15
"""So that a cell's number takes 16 bits: the right number for 64 million vectors."""
_ROUNDS: Final = 4
"""Of k-means for the cells. Twice the rows and half as many rounds more take three times as long, for half a point of recall at most."""
_GROWTH_ROWS: Final = 65_536
_AHEAD_ROWS: Final = 1024  # for which a search may have to wait: 10 ms. A quarter as many take three times as long each
_WIDEST: Final = 65_536
"""Candidates after which a scan gives up looking behind dropped ones: tens of milliseconds."""
_ROWS_AT_ONCE: Final = 256
SCORED: Final = 4_096
"""Named positions that are scored; of more, those in the cells nearest to the query."""
_CODES_PER_VECTOR_NUMBER: Final = 4  # a code of four bits for every four numbers


@dataclass(frozen=True, eq=False)
class Grouped:
    """Positions of a pool, cell after cell."""

    positions: NDArray[np.int32]
    starts: NDArray[np.int32]
    """[cells + 2], where each cell's begin; those of the last were added of late, and their cell is not known yet."""

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def nbytes(self) -> int:
        """Memory."""
        return self.positions.nbytes + self.starts.nbytes


class Successor:
    """A trained scan, filled aside from the pool's own codes. Its methods take long: they run on a worker thread."""

    def __init__(self, scan: faiss.Index, trained_rows: int, cells: int, probes: int, rescored: int = RESCORED) -> None:
        self.scan, self.trained_rows, self.cells, self.probes, self.rescored = scan, trained_rows, cells, probes, rescored
        self.filled = 0
        self._lock = Lock()
        """Of the scan: faiss must not search what it adds to."""
        self._centres: Vector | None = None
        self._cell_of: NDArray[np.uint16] = np.empty(0, np.uint16)  # by position, as far as it was looked up
        self._parameters: faiss.SearchParametersIVF | None = None
        self._queries: Vector = np.empty((0, scan.d), np.float32)
        self._truth: NDArray[np.int64] = np.empty((0, 10), np.int64)
        self._best: Vector = np.empty((0, 10), np.float32)

    @classmethod
    def train(cls, sample: Encoded, rows: int) -> Successor:
        """Learn codebooks, and cells where `rows` vectors are too many to scan them all."""
        faiss.omp_set_num_threads(1)  # of this thread: the other cores serve
        vectors = sample.decoded()
        dimension = vectors.shape[1]
        subspaces = dimension // _CODES_PER_VECTOR_NUMBER
        cells = cells_for(rows)
        scan: Any
        if cells == 1:
            scan = faiss.IndexPQFastScan(dimension, subspaces, 4, faiss.METRIC_INNER_PRODUCT)
        else:
            coarse: Any = faiss.IndexFlatIP(dimension)
            scan = faiss.IndexIVFPQFastScan(coarse, dimension, cells, subspaces, 4, faiss.METRIC_INNER_PRODUCT)
            coarse.this.disown()
            scan.own_fields = True
            scan.by_residual = True
            scan.cp.niter, scan.cp.min_points_per_centroid = _ROUNDS, 1
        scan.train(vectors)
        return cls(scan, rows, cells, cells)

    @staticmethod
    def sample_rows(rows: int) -> int:
        """How many vectors to train on, for a pool of so many."""
        return min(rows, max(65_536, _ROWS_A_CELL * cells_for(rows)))

    @property
    def watching(self) -> bool:
        """True while calibration queries wait for `calibrate`."""
        return len(self._queries) > 0

    def watch(self, like: Encoded, seed: int = 0) -> None:
        """Make calibration queries, before anything is filled: vectors of the pool, turned at random until their cosine is 0.7: at a
        million they are as hard to find as texts are. None are needed where everything is scanned.
        """
        if self.cells == 1:
            return
        vectors = like.decoded()
        noise = np.random.default_rng(seed).standard_normal(vectors.shape).astype(np.float32)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        self._queries = 0.7 * vectors + math.sqrt(1 - 0.7**2) * noise
        self._truth = np.full((len(vectors), 10), -1, np.int64)
        self._best = np.full((len(vectors), 10), -np.inf, np.float32)

    def fill(self, rows: Encoded) -> None:
        """Add the next rows."""
        faiss.omp_set_num_threads(1)
        vectors = rows.decoded()
        if len(self._queries):
            positions = np.broadcast_to(np.arange(self.filled, self.filled + len(vectors)), (len(self._queries), len(vectors)))
            values = np.concatenate([self._best, self._queries @ vectors.T], 1)
            best = np.argpartition(-values, 9, 1)[:, :10]
            self._best = np.take_along_axis(values, best, 1)
            self._truth = np.take_along_axis(np.concatenate([self._truth, positions], 1), best, 1)
        with self._lock:
            self.scan.add(vectors)
            self.filled += len(vectors)

    def calibrate(self) -> None:
        """Take the fewest cells, and of them the fewest candidates, that hold the true ten nearest of the watched queries."""
        faiss.omp_set_num_threads(1)
        self.probes, self.rescored = self._least(RECALL_TARGET)
        self._queries = self._queries[:0]

    def _least(self, recall: float) -> tuple[int, int]:
        """The cheapest (probes, rescored) that find the true ten; on two machines a candidate cost about a quarter of a cell."""
        powers = [8 << power for power in range((self.cells // 8).bit_length())]
        choices = [(probes, rescored) for probes in powers for rescored in (RESCORED // 2, RESCORED, 2 * RESCORED)]
        found: dict[int, NDArray[np.int64]] = {}
        for probes, rescored in sorted(choices, key=lambda choice: 4 * choice[0] + choice[1]):
            if probes not in found:
                found[probes] = self.scan.search(self._queries, 2 * RESCORED, params=_probing(probes))[1]
            near = found[probes][:, :rescored]
            if np.mean([np.isin(true, one).mean() for true, one in zip(self._truth, near, strict=True)]) >= recall:
                return probes, rescored
        return self.cells, 2 * RESCORED

    def nearest(self, query: Vector, count: int, *, everywhere: bool = False) -> NDArray[np.int64]:
        """Positions of at least so many candidates for a query, fewer if there are no more in the nearest cells, or in any."""
        if self.cells > 1 and self._parameters is None:
            self._parameters = _probing(self.probes)
        parameters = _probing(self.cells) if everywhere and self.cells > 1 else self._parameters
        with self._lock:
            found: NDArray[np.int64] = self.scan.search(query[None], max(self.rescored, count), params=parameters)[1][0]
        return found if found[-1] >= 0 else found[found >= 0]

    @property
    def located(self) -> bool:
        """Whether the cells of nearly all are known; those that were added since are looked at by every query."""
        return self.cells == 1 or self.filled - len(self._cell_of) <= len(self._cell_of) // 8

    @property
    def located_rows(self) -> int:
        """Positions whose cells are known."""
        return len(self._cell_of)

    def locate(self) -> None:
        """Look up the cells of all that is filled: on the worker thread, so that no search has to."""
        scan: Any = self.scan
        cell_of = np.full(self.filled, self.cells, np.uint16)
        for cell in range(self.cells):
            with self._lock:
                if size := scan.invlists.list_size(cell):
                    ids = faiss.rev_swig_ptr(scan.invlists.get_ids(cell), size)
                    cell_of[ids[ids < len(cell_of)]] = cell
        self._cell_of = cell_of

    def grouped(self, positions: NDArray[np.int64]) -> Grouped:
        """Positions by their cells: found once, they are looked at by many queries."""
        cell_of = self._cell_of
        known = positions < len(cell_of)
        cells = np.full(len(positions), self.cells, np.uint16)
        cells[known] = cell_of[positions[known]]
        sizes = np.bincount(cells, minlength=self.cells + 1)
        order = np.argsort(cells, kind="stable")  # of 16 bits: ten times as fast as of 32
        return Grouped(positions[order].astype(np.int32), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))

    def in_nearest_cells(self, query: Vector, grouped: Grouped, count: int) -> NDArray[np.int64]:
        """At least so many of the positions, if there are as many: those in the nearest cells, and those that were added of late."""
        if self._centres is None:
            scan: Any = self.scan
            self._centres = scan.quantizer.reconstruct_n(0, self.cells)
        order = np.argsort(-np.append(self._centres @ query, np.float32(np.inf)))
        sizes = np.diff(grouped.starts)[order]
        held = np.cumsum(sizes)
        last = min(int(np.searchsorted(held - held[0], count)) + 1, len(held))  # the first are those without a cell: they come on top
        firsts = grouped.starts[order[:last]]
        taken = np.arange(held[last - 1]) + np.repeat(firsts - (held - sizes)[:last], sizes[:last])
        found: NDArray[np.int64] = grouped.positions[taken].astype(np.int64)
        return found

    def to_bytes(self) -> bytes:
        """What training learned, without the vectors."""
        assert not self.filled, "take it before it is filled"
        return bytes(faiss.serialize_index(self.scan))

    @classmethod
    def from_bytes(cls, data: bytes, trained_rows: int, probes: int, rescored: int) -> Successor:
        """Inverse of `to_bytes`; to be filled again."""
        scan = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        return cls(scan, trained_rows, getattr(scan, "nlist", 1), probes, rescored)


def _probing(cells: int) -> faiss.SearchParametersIVF:
    made: Any = faiss.SearchParametersIVF  # its stub knows no arguments
    return cast(faiss.SearchParametersIVF, made(nprobe=cells))


def cells_for(rows: int) -> int:
    """Number of cells: one up to `FLAT_ROWS`, then about four times the root of the rows, a power of two: rows grow fourfold until the next
    training, which makes it twice the root.
    """
    return 1 if rows <= FLAT_ROWS else min(_MOST_CELLS, 1 << round(float(np.log2(4 * np.sqrt(rows)))))


class VectorPool:
    """Vectors by row number of their owner. A position is a vector's place here; it is never used twice."""

    def __init__(self, dimension: int) -> None:
        self._codes: Codes = np.empty((0, dimension), np.int8)
        self._steps: Vector = np.empty(0, np.float32)
        self._rows: NDArray[np.int32] = np.empty(0, np.int32)
        self._cluster: Ids = np.empty(0, np.int16)
        self._clusters: Clusters | None = None
        self._used = self._dropped = 0
        self._scan: Successor | None = None
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
                scan.fill(Encoded(vectors.codes[rows], vectors.steps[rows]))

    def drop(self, position: int) -> None:
        """Forget one vector."""
        if self._rows[position] >= 0:
            self._rows[position] = -1
            if self._clusters is not None and self._cluster[position] != NO_CLUSTER:
                self._clusters.leave(int(self._cluster[position]))
            self._dropped += 1

    def nearest(
        self, query: Vector, limit: int, among: Grouped | NDArray[np.int64] | None = None, clusters: int = 0
    ) -> tuple[NDArray[np.int64], Vector]:
        """(rows, cosines) of the nearest to the unit vector `query`, best first.

        `among` are the positions that count, of many (`grouped`) those in the cells nearest to the query; with `clusters`, only what is in
        so many nearest clusters does.
        """
        near_clusters = self._clusters.nearest(query, clusters) if clusters and self._clusters is not None else None
        if isinstance(among, Grouped):
            assert self._scan is not None, "it was grouped by it"
            positions = self._counted(self._scan.in_nearest_cells(query, among, SCORED), near_clusters)
        elif among is not None or self._scan is None:
            positions = self._counted(np.arange(self._used) if among is None else among, near_clusters)
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

    def grouped(self, positions: NDArray[np.int64]) -> Grouped | NDArray[np.int64]:
        """Positions as a search `among` them is fastest, until another scan is adopted."""
        if self._scan is None or self._scan.cells == 1 or len(positions) <= SCORED:
            return positions
        return self._scan.grouped(positions)

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

    def holds(self, positions: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the positions are here and hold that row."""
        inside = (positions >= 0) & (positions < self._used)
        return inside & (self._rows[np.where(inside, positions, 0)] == rows) if self._used else np.zeros(len(positions), bool)

    @property
    def scan(self) -> Successor | None:
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

    def adopt(self, successor: Successor) -> None:
        """Scan with a successor that holds every position.

        Raises:
            ValueError: it does not.
        """
        if successor.filled != self._used:
            raise ValueError(f"the successor holds {successor.filled} of {self._used} positions")
        self._scan, self._trained_at = successor, successor.trained_rows
