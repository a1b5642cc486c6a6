"""What finds the nearest of many vectors: product-quantised codes (faiss's 4-bit fast scan), of very many in cells. It is trained and
filled aside, and calibrated on vectors like its own.
"""

from __future__ import annotations

import math
from threading import Lock
from typing import Any, Final, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from services.router.catalogue.encoded_vectors import Encoded
from services.router.catalogue.port import Vector

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
_NUMBERS: Final = 4  # of a vector share a code of four bits
_CODES_AT_ONCE: Final = 32
_LEAST_CODES: Final = 256  # bytes


class Scan:
    """A trained scan, filled aside from the pool's own codes. Its methods take long: they run on a worker thread."""

    def __init__(self, scan: faiss.Index, trained_rows: int, cells: int, probes: int, rescored: int = RESCORED) -> None:
        self.scan, self.trained_rows, self.cells, self.probes, self.rescored = scan, trained_rows, cells, probes, rescored
        self.filled = 0
        self._lock = Lock()
        """Of the scan: faiss must not search what it adds to."""
        self._parameters: faiss.SearchParametersIVF | None = None
        self._queries: Vector = np.empty((0, 0), np.float32)
        self._truth: NDArray[np.int64] = np.empty((0, 10), np.int64)
        self._best: Vector = np.empty((0, 10), np.float32)

    @classmethod
    def train(cls, sample: Encoded, rows: int) -> Scan:
        """Learn codebooks, and cells where `rows` vectors are too many to scan them all."""
        faiss.omp_set_num_threads(1)  # of this thread: the other cores serve
        vectors = _filled_up(sample.decoded(), _NUMBERS)
        dimension = vectors.shape[1]
        subspaces = dimension // _NUMBERS
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

    def fill(self, rows: Encoded, threads: int = 1) -> None:
        """Add the next rows."""
        faiss.omp_set_num_threads(threads)
        vectors = rows.decoded()
        if len(self._queries):
            positions = np.broadcast_to(np.arange(self.filled, self.filled + len(vectors)), (len(self._queries), len(vectors)))
            values = np.concatenate([self._best, self._queries @ vectors.T], 1)
            best = np.argpartition(-values, 9, 1)[:, :10]
            self._best = np.take_along_axis(values, best, 1)
            self._truth = np.take_along_axis(np.concatenate([self._truth, positions], 1), best, 1)
        with self._lock:
            self.scan.add(_filled_up(vectors, self.scan.d))
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
                found[probes] = self.scan.search(_filled_up(self._queries, self.scan.d), 2 * RESCORED, params=_probing(probes))[1]
            near = found[probes][:, :rescored]
            if np.mean([np.isin(true, one).mean() for true, one in zip(self._truth, near, strict=True)]) >= recall:
                return probes, rescored
        return self.cells, 2 * RESCORED

    def nearest(self, query: Vector, count: int, *, everywhere: bool = False) -> NDArray[np.int64]:
        """Positions of at least so many candidates for a query, fewer if there are no more in the nearest cells, or in any."""
        if self.cells > 1 and self._parameters is None:
            self._parameters = _probing(self.probes)
        parameters = _probing(self.cells) if everywhere and self.cells > 1 else self._parameters
        asked = _filled_up(query[None], self.scan.d)
        with self._lock:
            found: NDArray[np.int64] = self.scan.search(asked, max(self.rescored, count), params=parameters)[1][0]
        return found if found[-1] >= 0 else found[found >= 0]

    def to_bytes(self) -> bytes:
        """What training learned, without the vectors."""
        assert not self.filled, "take it before it is filled"
        return bytes(faiss.serialize_index(self.scan))

    @property
    def nbytes(self) -> int:
        """Memory of the codes and of what they mean, where everything is scanned: faiss makes room for a power of two."""
        codes = self.scan.sa_code_size() * _CODES_AT_ONCE * -(-self.filled // _CODES_AT_ONCE)
        return (1 << max(_LEAST_CODES - 1, codes - 1).bit_length()) + 64 * int(self.scan.d)

    @classmethod
    def from_bytes(cls, data: bytes, trained_rows: int, probes: int, rescored: int) -> Scan:
        """Inverse of `to_bytes`; to be filled again."""
        scan = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        return cls(scan, trained_rows, getattr(scan, "nlist", 1), probes, rescored)


def _filled_up(vectors: Vector, multiple: int) -> Vector:
    """With zeros, until the dimension is a multiple: nothing else can be divided into codes, and no product changes."""
    missing = -vectors.shape[1] % multiple
    return np.pad(vectors, ((0, 0), (0, missing))) if missing else vectors


def _probing(cells: int) -> faiss.SearchParametersIVF:
    made: Any = faiss.SearchParametersIVF  # its stub knows no arguments
    return cast(faiss.SearchParametersIVF, made(nprobe=cells))


def cells_for(rows: int) -> int:
    """Number of cells: one up to `FLAT_ROWS`, then about four times the root of the rows, a power of two: rows grow fourfold until the next
    training, which makes it twice the root.
    """
    return 1 if rows <= FLAT_ROWS else min(_MOST_CELLS, 1 << round(float(np.log2(4 * np.sqrt(rows)))))
