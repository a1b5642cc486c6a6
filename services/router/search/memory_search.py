"""`VectorIndex` in memory (`pool.py`), over a catalogue in SQLite: the truth itself, or the copy of one that is elsewhere.

What is written is committed before it is put into the pools, and in the pools before its write is answered. At start the pools are made
again from the file, with the codebooks that an earlier process learned; what has been loaded is found from the first moment. Training
runs on a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from operator import or_
from typing import Final, NamedTuple, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

import numpy as np
from numpy.typing import NDArray

from services.router.catalogue.encoded_vectors import Encoded
from services.router.catalogue.port import Vector
from services.router.catalogue.record_file import RecordFile, Written, vectors_of
from services.router.catalogue.records import Candidate, Labels, Reach, label_mark
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue
from services.router.search.part import BEARABLE, SCORED, Part
from services.router.search.pool import VectorPool
from services.router.search.refs import Refs
from services.router.search.scan import Scan
from smoa.bounded_cache import BoundedCache
from smoa.tasks import begin, end

T = TypeVar("T")
Rows = NDArray[np.int64]
_log = logging.getLogger(__name__)
BROAD_LABEL_ROWS: Final = 65_536
"""Labels of more adapters than this are looked for among the nearest, instead of the nearest among their adapters."""
_WIDEST: Final = 16_384
_BROAD: Final = 16  # a label that more than one in so many have is met soon among the nearest
_SAMPLED: Final = 4096  # adapters whose marks tell how many have a label
_STEP_ROWS: Final = 128  # vectors put into a pool at once on the loop: about a millisecond
_CHUNK_ROWS: Final = 8192
_LOADED_ROWS: Final = 2048  # read at once, while writes wait
_LABELS_BYTES: Final = 500  # of an adapter's labels in memory, about
_PLACED_BYTES: Final = 500  # beside the positions
_CODED_ROWS: Final = 20_000  # by which it is learned how the vectors of a pool are coded in scans of its parts
_RESCORED: Final = 512
_RESTS: Final = 9  # times as long as a scan took that another had to go for
BYTES_AN_ADAPTER: Final = 450
"""Of memory, about: codes of 256 numbers, what is scanned, and a reference."""


class _Placed(NamedTuple):
    """Where those with a label are in a pool; and when that holds."""

    rows: ReferenceType[NDArray[np.int32]]
    pool: ReferenceType[VectorPool]
    moves: int
    """How often rows had moved."""
    part: Part


class MemorySearch:
    """Pools over a file. `load`, or `start` and `loaded`, before what is in it is found."""

    def __init__(self, catalogue: SqliteCatalogue, label_cache_bytes: int = 96 * 2**20) -> None:
        self._catalogue = catalogue
        self._trainer = ThreadPoolExecutor(1, "index-training")
        self._trainings: dict[str, asyncio.Task[None]] = {}
        self._loading: asyncio.Task[None] | None = None
        self._new_pool = partial(VectorPool, catalogue.dimension)
        self._pools: defaultdict[str, VectorPool] = defaultdict(self._new_pool)
        self._positions: NDArray[np.int32] = np.full(64, -1, np.int32)  # in its pool, by row; -1 in none
        self._marks: Rows = np.zeros(64, np.int64)  # of its labels, by row
        self._refs = Refs()
        self._labels: BoundedCache[int, Labels] = BoundedCache(label_cache_bytes // 8)
        self._placed: BoundedCache[tuple[str, str], _Placed] = BoundedCache(label_cache_bytes * 3 // 4)
        self._codebooks: WeakKeyDictionary[VectorPool, bytes] = WeakKeyDictionary()
        self._scanning: asyncio.Task[None] | None = None
        self._scans_from_s = 0.0
        self._taken = 0
        """Writes so far."""
        self._moves = 0
        """How often rows that were there before have changed their places."""
        self._label_rows: BoundedCache[str, NDArray[np.int32]] = BoundedCache(label_cache_bytes // 8)
        catalogue.follow(self._take)

    def start(self) -> None:
        """Begin to load; what is loaded is found."""
        self._loading = begin(self.load(), "index-loading")

    async def loaded(self) -> None:
        """Wait until everything is found, at full speed."""
        if self._loading is not None:
            await asyncio.shield(self._loading)
        await self.trained()

    async def search(self, vector: Vector, reach: Reach, limit: int, *, hinted: Sequence[str] = (), clusters: int = 0) -> list[Candidate]:
        """See `VectorIndex`."""
        near = await self._labelled(vector, reach, limit, clusters) if reach.any_labels else self._nearest(vector, reach, limit, clusters)
        labels = self._labels_at(near[0][self._marked(near[0], hinted)].tolist()) if hinted else {}
        rows, cosines = (part.tolist() for part in near)
        return [self._refs.candidate(row, cosine, labels.get(row)) for row, cosine in zip(rows, cosines, strict=True)]

    def _nearest(
        self, vector: Vector, reach: Reach, limit: int, clusters: int, among: Mapping[str, Sequence[Part]] | None = None
    ) -> tuple[Rows, Vector]:
        """(rows, cosines) of the nearest in the reach's pools, best first; only of those `among` these parts, if they are given."""
        found = [
            pool.nearest(vector, limit, None if among is None else among[name], clusters) for name, pool in self._pools_of(reach).items()
        ]
        if len(found) == 1:
            return found[0]
        rows, cosines = (
            (np.concatenate(parts) for parts in zip(*found, strict=True)) if found else (np.empty(0, np.int64), np.empty(0, np.float32))
        )
        order = np.lexsort((rows, -cosines))[:limit]
        return rows[order], cosines[order]

    async def _labelled(self, vector: Vector, reach: Reach, limit: int, clusters: int) -> tuple[Rows, Vector]:
        """The nearest with one of the labels: by looking among such adapters; of those that very many have, among the nearest of all,
        farther if there are not enough.
        """
        rows = {label: await self._rows_with(label) for label in reach.any_labels}
        if max(map(len, rows.values())) <= BROAD_LABEL_ROWS:  # else they are not all that there are
            pools = self._pools_of(reach)
            parts = {name: [self._part(name, pool, *one) for one in rows.items()] for name, pool in pools.items()}
            every = [part for some in parts.values() for part in some]
            few = sum(map(len, every)) <= max(SCORED, sum(map(len, pools.values())) // _BROAD)
            if few:  # else no scan of them would be used
                for name, some in parts.items():
                    for label, part in zip(rows, some, strict=True):
                        self._scan_if_wanted(name, label, part)
            if few and sum(part.scored for part in every) <= BEARABLE:
                return self._nearest(vector, reach, limit, clusters, parts)
        wanted = set(reach.any_labels)
        # A scan costs more than what it finds: once is best.
        count = min(_WIDEST, math.ceil(2 * limit / self._share_marked(reach.any_labels)))
        while True:
            near, cosines = self._nearest(vector, reach, count, clusters)
            marked = np.flatnonzero(self._marked(near, reach.any_labels))
            found = list[int]()
            for start in range(0, len(marked), limit):  # a mark is another label's, too: look at as few adapters as will do
                part = marked[start : start + limit].tolist()
                labels = self._labels_at(near[part].tolist())
                found += [place for place in part if (one := labels.get(int(near[place]))) and wanted.intersection(one.all)]
                if len(found) >= limit:
                    break
            if len(found) >= limit or len(near) < count or count >= _WIDEST:
                return near[found[:limit]], cosines[found[:limit]]
            count = min(_WIDEST, count * max(2, min(8, 3 * limit // (2 * max(1, len(found))))))
            await asyncio.sleep(0)  # others in between: a round may take milliseconds

    def _pools_of(self, reach: Reach) -> dict[str, VectorPool]:
        return {name: pool for name in reach.pools if (pool := self._pools.get(name)) is not None and len(pool)}

    def _part(self, name: str, pool: VectorPool, label: str, rows: NDArray[np.int32]) -> Part:
        """Where the rows with a label are in a pool; kept until one of them is written or moved."""
        kept = self._placed.get((name, label))
        there = kept is not None and kept.pool is ref(pool)
        if kept is None or not there or kept.rows is not ref(rows) or kept.moves != self._moves:
            known = rows[rows < len(self._positions)].astype(np.int64)  # the file may know rows that no pool has had yet, or has no more
            positions = self._positions[known]
            positions = np.sort(positions[pool.holds(positions, known)])
            kept = _Placed(ref(rows), ref(pool), self._moves, kept.part.now(positions) if kept is not None and there else Part(positions))
            self._keep(name, label, kept)
        return kept.part

    def _keep(self, name: str, label: str, placed: _Placed) -> bool:
        """Whether nothing else had to go for it."""
        gone = self._placed.put((name, label), placed, placed.part.nbytes + _PLACED_BYTES)
        return (name, label) in self._placed and all(key == (name, label) for key, _ in gone)

    def _scan_if_wanted(self, name: str, label: str, part: Part) -> None:
        busy = any(task is not None and not task.done() for task in (self._scanning, self._loading))
        if part.wants_scan and not busy and time.monotonic() >= self._scans_from_s:
            self._scanning = begin(self._scan(name, label, self._pools[name], part), "index-labels")

    async def _scan(self, name: str, label: str, pool: VectorPool, part: Part) -> None:
        """Make a scan of a part, aside."""
        began_s = time.monotonic()
        if (learned := self._codebooks.get(pool)) is None:
            sample = pool.sample(_CODED_ROWS)
            learned = (await self._train_call(partial(Scan.train, sample, 1))).to_bytes()
            self._codebooks[pool] = learned
        scan = Scan.from_bytes(learned, 1, 1, _RESCORED)
        for start in range(0, len(part), _CHUNK_ROWS):
            await self._train_call(partial(scan.fill, pool.at(part.positions[start : start + _CHUNK_ROWS])))
        kept = self._placed.get((name, label))
        if kept is not None and kept.pool is ref(pool):
            placed = kept._replace(part=Part(kept.part.positions, scan, part.positions))
            if not self._keep(name, label, placed):  # labels in turn, more than there is room for, would be scanned for ever
                self._scans_from_s = time.monotonic() + _RESTS * (time.monotonic() - began_s)

    def _marked(self, rows: Rows | slice, labels: Sequence[str]) -> NDArray[np.bool_]:
        """Which rows may have one of the labels."""
        marks = reduce(or_, map(label_mark, labels))
        marked: NDArray[np.bool_] = np.bitwise_and(self._marks[rows], marks) != 0
        return marked

    def _share_marked(self, labels: Sequence[str]) -> float:
        """About which share of all adapters has one of the labels."""
        marked = self._marked(slice(None, None, max(1, len(self._marks) // _SAMPLED)), labels)
        return max(1, int(np.count_nonzero(marked))) / len(marked)

    @property
    def in_training(self) -> int:
        """See `VectorIndex`."""
        return len(self._trainings)

    async def trained(self) -> None:
        """Wait until no pool is being trained."""
        while self._trainings:
            await asyncio.wait(set(self._trainings.values()))

    async def close(self) -> None:
        """See `VectorIndex`."""
        for task in (*self._trainings.values(), *(task for task in (self._scanning, self._loading) if task is not None)):
            await end(task)
        await asyncio.to_thread(self._trainer.shutdown)

    async def _train_call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._trainer, function)

    async def _take(self, written: Sequence[Written]) -> None:
        """Put into the pools what was committed; called while nothing else is written."""
        self._taken += 1
        for one in written:
            if one.labels:
                self._labels.drop(one.row)
            for label in one.labels:
                self._label_rows.drop(label)
            if one.labels and one.row < len(self._marks):
                self._marks[one.row] = one.marks
        moved = [one for one in written if one.moved]
        await self._place_all(moved)
        for label in {label for one in written for label in one.labels}:  # a search in between saw a part of it
            self._label_rows.drop(label)
        for name in {one.old_pool for one in moved if one.old_pool}:
            if self._pools[name].wants_compaction:
                await self._compact(name)
        for name in {one.pool for one in moved if one.pool}:
            self._train_if_wanted(name)

    async def _place_all(self, moved: Sequence[Written]) -> None:
        for start in range(0, len(moved), _STEP_ROWS):
            self._place(moved[start : start + _STEP_ROWS])
            await asyncio.sleep(0)

    def _place(self, moved: Sequence[Written]) -> None:
        """Put committed records into their pools, out of those they were in. What is replaced is dropped after its successor is there."""
        by_pool: defaultdict[str, list[Written]] = defaultdict(list)
        for one in moved:
            by_pool[one.pool].append(one)
        highest = max(one.row for one in moved)
        if highest >= len(self._positions):
            grown = max(highest + 1, len(self._positions) * 9 // 8)
            added = grown - len(self._positions)
            self._positions = np.append(self._positions, np.full(added, -1, np.int32))
            self._marks = np.append(self._marks, np.zeros(added, np.int64))
        self._moves += any(one.was or not one.labels for one in moved)  # of a new row, all labels are
        self._refs.put(moved)
        self._marks[[one.row for one in moved]] = [one.marks for one in moved]
        for name, group in by_pool.items():
            rows = np.array([one.row for one in group], np.int64)
            old = self._positions[rows]
            if name:
                first = self._pools[name].add(rows, Encoded.of(vectors_of([one.vector for one in group])))
                self._positions[rows] = np.arange(first, first + len(rows))
            else:
                self._positions[rows] = -1
            for one, position in zip(group, old.tolist(), strict=True):
                if one.old_pool and position >= 0:
                    self._pools[one.old_pool].drop(position)

    def _labels_at(self, rows: Sequence[int]) -> dict[int, Labels]:
        found = {row: labels for row in rows if (labels := self._labels.get(row)) is not None}
        if missing := [row for row in rows if row not in found]:
            read = self._catalogue.reader.labels(missing)
            for row, labels in read.items():
                self._labels.put(row, labels, _LABELS_BYTES)
            found |= read
        return found

    async def _rows_with(self, label: str) -> NDArray[np.int32]:
        """Rows with a label, in order; of one that more than `BROAD_LABEL_ROWS` have, only so many that it shows."""
        rows = self._label_rows.get(label)
        if rows is None:
            rows = await self._catalogue.call(partial(RecordFile.rows_with, label=label, most=BROAD_LABEL_ROWS + 1))
            self._label_rows.put(label, rows, rows.nbytes + 200)
        return rows

    # Loading, training, compacting

    async def load(self) -> None:
        """Fill the pools from the file."""
        for name, rows, probes, rescored, scan in await self._catalogue.call(lambda file: file.trained()):
            if not self._pools[name].positions:  # else it was written to already, and is trained again
                self._pools[name].adopt(Scan.from_bytes(scan, rows, probes, rescored))
        row, count, began_s = 0, 0, time.monotonic()
        reading, taken = asyncio.ensure_future(self._placed_after(row)), self._taken
        try:
            while batch := await reading:
                async with self._catalogue.writing:
                    if taken != self._taken:  # what was read before a write may be otherwise now
                        batch = await self._placed_after(row)
                    count += len(batch)
                    row, taken = batch[-1].row if batch else row, self._taken
                    reading = asyncio.ensure_future(self._placed_after(row))  # while these are put in
                    missing = [one for one in batch if not self._is_placed(one.row)]
                    await self._fill_and_place(missing)
        finally:
            await end(reading)
        if count:
            _log.info("loaded %s adapters in %.1f s", f"{count:,}", time.monotonic() - began_s)
        for name in list(self._pools):
            self._train_if_wanted(name)
        await self.trained()

    async def _placed_after(self, row: int) -> list[Written]:
        return await self._catalogue.call(lambda file: file.placed(row, _LOADED_ROWS))

    async def _fill_and_place(self, placed: Sequence[Written]) -> None:
        """One after the other: a scan that is adopted in between has none of them, and takes them when they are placed."""
        await self._fill_ahead(placed)
        await self._place_all(placed)

    async def _fill_ahead(self, placed: Sequence[Written]) -> None:
        """Into the scans of what is placed next, off the loop."""
        by_pool: defaultdict[str, list[bytes]] = defaultdict(list)
        for one in placed:
            by_pool[one.pool].append(one.vector)
        for name, packed in by_pool.items():
            if self._pools[name].scan is not None:
                await self._train_call(lambda: self._pools[name].fill_ahead(Encoded.of(vectors_of(packed))))  # noqa: B023  awaited at once

    def _is_placed(self, row: int) -> bool:
        return row < len(self._positions) and self._positions[row] >= 0

    def _train_if_wanted(self, name: str) -> None:
        if self._pools[name].wants_training and name not in self._trainings:
            task = asyncio.create_task(self._train(name), name=f"train {name}")
            self._trainings[name] = task
            task.add_done_callback(lambda done: self._trained(name, done))

    def _trained(self, name: str, task: asyncio.Task[None]) -> None:
        del self._trainings[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("pool %s was not trained; its searches stay slow", name, exc_info=error)

    async def _train(self, name: str) -> None:
        """Train a successor aside while the pool serves and grows; again, if it outgrew that one meanwhile."""
        pool = self._pools[name]
        while pool.wants_training:
            rows = pool.positions
            sample = pool.sample(Scan.sample_rows(rows))
            successor = await self._train_call(lambda: Scan.train(sample, rows))  # noqa: B023  awaited at once
            learned = successor.to_bytes()
            successor.watch(pool.sample(64, seed=1))
            await self._adopt(pool, successor)
            self._codebooks.pop(pool, None)  # learned when there were a fourth as many
            kept = (name, rows, successor.probes, successor.rescored, learned)
            await self._catalogue.call(lambda file: file.keep_trained(*kept))  # noqa: B023

    async def _adopt(self, pool: VectorPool, successor: Scan) -> None:
        """Fill the successor with all that is in the pool, and let the pool scan with it."""
        while True:
            behind = pool.positions - successor.filled
            if behind > _STEP_ROWS:
                chunk = pool.encoded(successor.filled, successor.filled + _CHUNK_ROWS)
                await self._train_call(lambda: successor.fill(chunk))  # noqa: B023
            elif successor.watching:
                await self._train_call(successor.calibrate)
            else:  # the last few on the loop, so that none comes in between
                successor.fill(pool.encoded(successor.filled, pool.positions))
                pool.adopt(successor)
                return

    async def _compact(self, name: str) -> None:
        """Make a pool again without the marks of what was dropped; called while nothing is written."""
        if (training := self._trainings.get(name)) is not None:
            training.cancel()
            await asyncio.wait({training})
        old, fresh = self._pools[name], self._new_pool()
        for start in range(0, old.positions, _STEP_ROWS):
            fresh.add(*old.alive(start, start + _STEP_ROWS))
            await asyncio.sleep(0)
        for kept, rows, probes, rescored, scan in await self._catalogue.call(lambda file: file.trained()):
            if kept == name and len(fresh):
                await self._adopt(fresh, Scan.from_bytes(scan, rows, probes, rescored))
        rows_there, _ = fresh.alive(0, fresh.positions)
        self._positions[rows_there] = np.arange(fresh.positions)
        self._pools[name] = fresh
