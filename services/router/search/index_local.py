"""`AdapterIndex` in this process: records and vectors in one file (`record_file.py`), searched in memory (`pool.py`).

A write is committed before it is put into the pools, and in the pools before it is answered. At start the pools are made again from the
file, with the codebooks that an earlier process learned. Single records are read on the loop: tens of microseconds from the page cache,
less than handing them to a thread. All else that blocks runs on one worker thread; training runs on a thread of its own.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.router.catalogue.bounded_cache import BoundedCache
from services.router.catalogue.encoded_vectors import Encoded
from services.router.catalogue.index import Document, Entry, Vector
from services.router.catalogue.record_file import RecordFile, Written, vectors_of
from services.router.catalogue.records import AdapterRecord, AdapterRef, Candidate, Reach, RecordSummary, Scope, labels_of
from services.router.search.pool import Successor, VectorPool
from smoa.errors import FailedPrecondition
from smoa.identifiers import check_ulid
from smoa.tasks import Uncancelled

T = TypeVar("T")
_log = logging.getLogger(__name__)
FILE: Final = "index.sqlite"
BROAD_LABEL_ROWS: Final = 20_000
"""Labels of more adapters than this are looked for among the nearest, instead of the nearest among their adapters."""
_BROAD_NEAREST: Final = 256
_STEP_ROWS: Final = 128  # vectors put into a pool at once on the loop: about a millisecond
_CHUNK_ROWS: Final = 8192
_RECORD_BYTES: Final = 2_500  # of a parsed record in memory, about
_REF: Final = Struct("<26si32s?")


class Refs:
    """What a decision needs of an adapter, by row, in 63 bytes each: it is made without reading the file."""

    def __init__(self) -> None:
        self._packed = bytearray()

    def put(self, written: Sequence[Written]) -> None:
        """Keep those of some rows."""
        missing = (max(one.row for one in written) + 1) * _REF.size - len(self._packed)
        if missing > 0:
            self._packed += bytes(max(missing, len(self._packed) // 8))
        for one in written:
            named = (one.ref.adapter_id.encode(), one.ref.version, bytes.fromhex(one.ref.digest))
            _REF.pack_into(self._packed, one.row * _REF.size, *named, one.has_prototypes)

    def candidate(self, row: int, cosine: float, record: AdapterRecord | None = None) -> Candidate:
        """The adapter of a row, found with a cosine."""
        adapter_id, version, digest, has_prototypes = _REF.unpack_from(self._packed, row * _REF.size)
        return Candidate(AdapterRef(adapter_id.decode(), version, digest.hex()), cosine, record, has_prototypes)


class LocalIndex:
    """One file in a folder; one process owns it. Make it with `LocalIndex.open`."""

    def __init__(self, folder: Path, dimension: int, record_cache_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise FailedPrecondition(
                f"index: another process uses {folder}; stop it, or share a Qdrant server (SMOA_QDRANT_URL)"
            ) from error
        self._file, self._reader = RecordFile(folder / FILE), RecordFile(folder / FILE)
        self._thread = ThreadPoolExecutor(1, "index")
        self._trainer = ThreadPoolExecutor(1, "index-training")
        self._writing = asyncio.Lock()
        self._writes = Uncancelled()
        self._trainings: dict[str, asyncio.Task[None]] = {}
        self._dimension = dimension
        self._new_pool = partial(VectorPool, dimension)
        self._pools: defaultdict[str, VectorPool] = defaultdict(self._new_pool)
        self._positions: NDArray[np.int64] = np.full(64, -1, np.int64)  # in its pool, by row; -1 in none
        self._refs = Refs()
        self._records: BoundedCache[int, AdapterRecord] = BoundedCache(record_cache_bytes)
        self._label_rows: BoundedCache[str, NDArray[np.int64]] = BoundedCache(record_cache_bytes // 4)

    @classmethod
    async def open(cls, folder: Path, dimension: int, record_cache_bytes: int = 32 * 2**20) -> LocalIndex:
        """Open or make it; returns once everything in it is searchable at full speed.

        Raises:
            FailedPrecondition: another process uses the folder.
        """
        index = cls(folder, dimension, record_cache_bytes)
        await index._load()
        return index

    async def check(self) -> None:
        """See `AdapterIndex`."""
        self._reader.check()

    async def write(self, entries: Sequence[Entry], *, together: bool = True) -> None:
        """See `AdapterIndex`."""
        prototypes = {entry.record.adapter_id: entry.prototypes for entry in entries if entry.prototypes is not None}
        await self._written([(entry.record, entry.vector) for entry in entries], prototypes, conditional=True)

    async def upsert(self, records: Sequence[tuple[AdapterRecord, Vector]], prototypes: Mapping[str, Vector] | None = None) -> None:
        """See `AdapterIndex`."""
        await self._written(records, prototypes or {}, conditional=False)

    async def _written(
        self, records: Sequence[tuple[AdapterRecord, Vector]], prototypes: Mapping[str, Vector], *, conditional: bool
    ) -> None:
        # Outliving a caller that goes away, who would part the file from the pools.
        await self._writes.run(self._write(records, prototypes, conditional=conditional))

    async def get(self, adapter_id: str) -> tuple[AdapterRecord, Vector] | None:
        """See `AdapterIndex`."""
        check_ulid(adapter_id)
        return self._reader.get(adapter_id)

    async def summaries(self, adapter_ids: Sequence[str]) -> dict[str, RecordSummary]:
        """See `AdapterIndex`."""
        return await self._call(lambda: self._file.summaries(adapter_ids))

    async def prototypes(self, adapter_ids: Sequence[str]) -> dict[str, Vector]:
        """See `AdapterIndex`."""
        return self._reader.prototypes(adapter_ids, self._dimension)

    async def search(self, vector: Vector, reach: Reach, limit: int, *, with_records: bool = False, clusters: int = 0) -> list[Candidate]:
        """See `AdapterIndex`."""
        labelled = await self._rows_with(reach.any_labels) if reach.any_labels else None
        broad = labelled is not None and len(labelled) > BROAD_LABEL_ROWS
        if labelled is not None:  # the file may know rows that no pool has had yet, or has no more
            labelled = labelled[labelled < len(self._positions)]
        found: list[tuple[float, int]] = []
        for name in reach.pools:
            if (pool := self._pools.get(name)) is not None and len(pool):
                among = None
                if labelled is not None and not broad:
                    positions = self._positions[labelled]
                    among = positions[pool.holds(positions, labelled)]
                rows, cosines = pool.nearest(vector, _BROAD_NEAREST if broad else limit, among, clusters)
                found += zip(cosines.tolist(), rows.tolist(), strict=True)
        found.sort(key=lambda pair: (-pair[0], pair[1]))
        if broad:
            records = self._records_at([row for _, row in found])
            found = [(cosine, row) for cosine, row in found if set(reach.any_labels) & set(labels_of(records[row]))]
        found = found[:limit]
        if not with_records:
            return [self._refs.candidate(row, cosine) for cosine, row in found]
        records = self._records_at([row for _, row in found])
        return [self._refs.candidate(row, cosine, records[row]) for cosine, row in found]

    async def scroll(self, scope: Scope, after: str, limit: int) -> list[AdapterRecord]:
        """See `AdapterIndex`."""
        return await self._call(lambda: self._file.scroll(scope, after, limit))

    async def write_document(self, kind: str, document: Document) -> None:
        """See `AdapterIndex`."""
        await self._call(lambda: self._file.write_document(kind, document))

    async def get_document(self, kind: str, document_id: str) -> Document | None:
        """See `AdapterIndex`."""
        return self._reader.get_document(kind, document_id)

    async def list_documents(self, kind: str, tenant: str, after: str, limit: int) -> list[Document]:
        """See `AdapterIndex`."""
        return await self._call(lambda: self._file.list_documents(kind, tenant, after, limit))

    async def delete_document(self, kind: str, document: Document) -> None:
        """See `AdapterIndex`."""
        await self._call(lambda: self._file.delete_document(kind, document))

    async def snapshot(self, path: Path) -> None:
        """Copy the index, as it is at one moment, to a file that must not exist. Restored by putting it into an empty folder as FILE."""
        await self._call(lambda: self._file.copy_to(path))

    @property
    def in_training(self) -> int:
        """See `AdapterIndex`."""
        return len(self._trainings)

    async def trained(self) -> None:
        """Wait until no pool is being trained."""
        while self._trainings:
            await asyncio.wait(set(self._trainings.values()))

    async def close(self) -> None:
        """See `AdapterIndex`."""
        trainings = list(self._trainings.values())
        for task in trainings:
            task.cancel()
        await self._writes.close()
        await asyncio.gather(*trainings, return_exceptions=True)
        for thread in (self._thread, self._trainer):
            await asyncio.to_thread(thread.shutdown)
        self._file.close()
        self._reader.close()
        self._lock.close()

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _train_call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._trainer, function)

    async def _write(self, records: Sequence[tuple[AdapterRecord, Vector]], prototypes: Mapping[str, Vector], *, conditional: bool) -> None:
        async with self._writing:
            written = await self._call(lambda: self._file.write(records, prototypes, conditional=conditional))
            for one in written:
                self._records.drop(one.row)
                for label in one.labels:
                    self._label_rows.drop(label)
            moved = [one for one in written if one.moved]
            for start in range(0, len(moved), _STEP_ROWS):
                self._place(moved[start : start + _STEP_ROWS])
                if start + _STEP_ROWS < len(moved):
                    await asyncio.sleep(0)
            for name in {one.old_pool for one in moved if one.old_pool}:
                if self._pools[name].wants_compaction:
                    await self._compact(name)
        for name in {one.pool for one in moved if one.pool}:
            self._train_if_wanted(name)

    def _place(self, moved: Sequence[Written]) -> None:
        """Put committed records into their pools, out of those they were in. What is replaced is dropped after its successor is there."""
        by_pool: defaultdict[str, list[Written]] = defaultdict(list)
        for one in moved:
            by_pool[one.pool].append(one)
        highest = max(one.row for one in moved)
        if highest >= len(self._positions):
            grown = np.full(max(highest + 1, len(self._positions) * 9 // 8), -1, np.int64)
            grown[: len(self._positions)] = self._positions
            self._positions = grown
        self._refs.put(moved)
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

    def _records_at(self, rows: Sequence[int]) -> dict[int, AdapterRecord]:
        found = {row: record for row in rows if (record := self._records.get(row)) is not None}
        if missing := [row for row in rows if row not in found]:
            read = self._reader.records(missing)
            for row, record in read.items():
                self._records.put(row, record, _RECORD_BYTES)
            found |= read
        return found

    async def _rows_with(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Rows with any of the labels, in order; of a label that more than `BROAD_LABEL_ROWS` have, only so many that it shows."""
        parts: list[NDArray[np.int64]] = []
        for label in labels:
            if (rows := self._label_rows.get(label)) is None:
                rows = await self._call(partial(self._file.rows_with, label, BROAD_LABEL_ROWS + 1))
                self._label_rows.put(label, rows, rows.nbytes + 200)
            parts.append(rows)
        return np.unique(np.concatenate(parts))

    # Loading, training, compacting

    async def _load(self) -> None:
        row = 0
        while batch := await self._call(lambda after=row: self._file.placed(after, _CHUNK_ROWS)):  # type: ignore[misc]
            row = batch[-1].row
            self._place(batch)
        for name, rows, probes, rescored, scan in await self._call(self._file.trained):
            if name in self._pools:
                await self._adopt(self._pools[name], Successor.from_bytes(scan, rows, probes, rescored))
        for name in list(self._pools):
            self._train_if_wanted(name)
        await self.trained()

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
            sample = pool.sample(Successor.sample_rows(rows))
            successor = await self._train_call(lambda: Successor.train(sample, rows))  # noqa: B023  awaited at once
            learned = successor.to_bytes()
            successor.watch(pool.sample(64, seed=1))
            await self._adopt(pool, successor)
            kept = (name, rows, successor.probes, successor.rescored, learned)
            await self._call(lambda: self._file.keep_trained(*kept))  # noqa: B023

    async def _adopt(self, pool: VectorPool, successor: Successor) -> None:
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
        for kept, rows, probes, rescored, scan in await self._call(self._file.trained):
            if kept == name and len(fresh):
                await self._adopt(fresh, Successor.from_bytes(scan, rows, probes, rescored))
        rows_there, _ = fresh.alive(0, fresh.positions)
        self._positions[rows_there] = np.arange(fresh.positions)
        self._pools[name] = fresh
