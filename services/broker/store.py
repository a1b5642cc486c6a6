"""Topics, their record batches and the groups' commits in one SQLite file.

A write is in the file before it returns, so what was acknowledged survives `kill -9` of everything; a power cut may cost the last moments
(`synchronous=NORMAL`), never the file. Offsets are never given twice: the last batch of a partition is never deleted.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from services.broker.batches import HEADER_BYTES, NO_PRODUCER, Header, compacted, header_of, placed, records_of
from smoa.errors import FailedPrecondition

_log = logging.getLogger(__name__)
_PARTITION_BITS: Final = 44
"""A batch's row id is its partition's above so many bits, its last offset below: rows lie in reading order, without a second index."""
_REMEMBERED_PRODUCERS: Final = 1000
_REMEMBERED_BATCHES: Final = 5
"""As Kafka: most batches that a producer has in flight, and so may send again."""
_COMPACT_FROM_BYTES: Final = 2**20
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, settings TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS partitions (
  id INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL, start INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, number));
CREATE TABLE IF NOT EXISTS batches (id INTEGER PRIMARY KEY, timestamp_ms INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS commits (
  name TEXT, topic TEXT, number INTEGER, place INTEGER NOT NULL, note TEXT NOT NULL, PRIMARY KEY (name, topic, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS generations (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
"""


class OutOfOrderError(Exception):
    """A producer's batch does not follow its last one."""


class StorageError(Exception):
    """The file cannot be written, for one because the disk is full; nothing of the write is there."""


class Commit(NamedTuple):
    """Where a group goes on reading, and what it noted."""

    offset: int
    note: str


class _Sent(NamedTuple):
    """A batch that an idempotent producer sent."""

    epoch: int
    first_sequence: int
    last_sequence: int
    base_offset: int


@dataclass
class Partition:
    """One partition: its rows lie in the file, its ends here."""

    row: int
    topic: str
    number: int
    compacts: bool
    tombstones_ms: int
    start: int
    end: int = 0
    """The offset that the next record gets."""
    bytes: int = 0
    dirty_bytes: int = 0
    """Written since it was compacted last."""
    producers: OrderedDict[int, list[_Sent]] = field(default_factory=OrderedDict)

    @property
    def rows(self) -> tuple[int, int]:
        """Row ids of its batches: from, and before."""
        return self.row << _PARTITION_BITS, (self.row + 1) << _PARTITION_BITS

    def row_of(self, offset: int) -> int:
        """Row id of a batch that ends at the offset."""
        return (self.row << _PARTITION_BITS) + offset

    @property
    def wants_compaction(self) -> bool:
        """True when half of it was written since the last time."""
        return self.compacts and self.dirty_bytes > max(_COMPACT_FROM_BYTES, self.bytes // 2)

    def offset_if_duplicate(self, header: Header) -> int | None:
        """The offset that a batch was given when its producer sent it before; None if it is new.

        Raises:
            OutOfOrderError: a batch before it is missing.
        """
        sent = self.producers.get(header.producer_id, [])
        for one in sent:
            if (one.epoch, one.first_sequence) == (header.producer_epoch, header.base_sequence):
                return one.base_offset
        if sent and sent[-1].epoch == header.producer_epoch and header.base_sequence != (sent[-1].last_sequence + 1) % 2**31:
            raise OutOfOrderError(f"sequence {header.base_sequence} follows {sent[-1].last_sequence}")
        return None

    def remember(self, header: Header, base_offset: int) -> None:
        """A batch of an idempotent producer is written."""
        sent = self.producers.pop(header.producer_id, [])
        last = (header.base_sequence + header.records - 1) % 2**31
        self.producers[header.producer_id] = [*sent, _Sent(header.producer_epoch, header.base_sequence, last, base_offset)][
            -_REMEMBERED_BATCHES:
        ]
        if len(self.producers) > _REMEMBERED_PRODUCERS:
            self.producers.popitem(last=False)


class Store:
    """The file. A call is one small write or read, mostly under a millisecond; compaction goes batch by batch."""

    def __init__(self, folder: Path, partition_bytes: int) -> None:
        """Open, or make, the file in `folder`; a partition that is not compacted keeps its newest `partition_bytes`.

        Raises:
            FailedPrecondition: another broker uses the folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._partition_bytes = partition_bytes
        self._file = sqlite3.connect(folder / "log.sqlite", isolation_level=None, timeout=0.5)
        try:
            self._file.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._file.close()
            if "locked" in str(error):
                raise FailedPrecondition(f"data: another broker uses {folder} ({error}); stop it or give another folder") from error
            raise FailedPrecondition(
                f"data: {folder / 'log.sqlite'} cannot be used ({error}); mend that, or give another folder"
            ) from error
        self.topics: defaultdict[str, list[Partition]] = defaultdict(list)
        settings = {name: json.loads(text) for name, text in self._file.execute("SELECT name, settings FROM topics")}
        for row, topic, number, start in self._file.execute("SELECT id, topic, number, start FROM partitions ORDER BY topic, number"):
            self.topics[topic].append(self._loaded(_partition(row, topic, number, settings[topic], start)))
        self._commits: defaultdict[str, dict[tuple[str, int], Commit]] = defaultdict(dict)
        for name, topic, number, place, note in self._file.execute("SELECT * FROM commits"):
            self._commits[name][topic, number] = Commit(place, note)

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def create(self, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
        """Make a topic; the caller has seen that it is not there."""
        with self._transaction():
            self._file.execute("INSERT INTO topics VALUES (?, ?)", (topic, json.dumps(dict(settings))))
            made = []
            for number in range(partitions):
                row = self._file.execute("INSERT INTO partitions (topic, number) VALUES (?, ?)", (topic, number)).lastrowid
                assert row is not None
                made.append(_partition(row, topic, number, settings, 0))
        self.topics[topic] = made

    def append(self, work: Sequence[tuple[Partition, Sequence[tuple[Header, bytes]]]]) -> None:
        """Write batches at the ends of their partitions, as one step; the caller has left out what `offset_if_duplicate` knows.

        Raises:
            StorageError: nothing was written.
        """
        ends = [(partition, partition.end) for partition, _ in work]
        try:
            with self._transaction():
                for partition, batches in work:
                    for header, batch in batches:
                        base = partition.end
                        partition.end = base + header.last_offset_delta + 1
                        row = partition.row_of(partition.end - 1)
                        self._file.execute("INSERT INTO batches VALUES (?, ?, ?)", (row, header.last_timestamp_ms, placed(batch, base)))
        except StorageError:
            for partition, end in reversed(ends):
                partition.end = end
            raise
        for (partition, batches), (_, base) in zip(work, ends, strict=True):
            for header, batch in batches:
                partition.bytes += len(batch)
                partition.dirty_bytes += len(batch)
                if header.producer_id != NO_PRODUCER:
                    partition.remember(header, base)
                base += header.last_offset_delta + 1
        for partition, _ in work:
            if not partition.compacts and partition.bytes > self._partition_bytes:
                try:
                    self._forget_oldest(partition)
                except StorageError as error:  # what was asked for is written
                    _log.warning("%s %d is over its bytes until the next write: %s", partition.topic, partition.number, error)

    def read(self, partition: Partition, offset: int, most_bytes: int) -> bytes:
        """Whole batches from the one that holds `offset` on: at least one if there is one, then as many as fit."""
        found: list[bytes] = []
        size = 0
        rows = self._file.execute(
            "SELECT data FROM batches WHERE id >= ? AND id < ? ORDER BY id", (partition.row_of(offset), partition.rows[1])
        )
        for (data,) in rows:
            if found and size + len(data) > most_bytes:
                break
            found.append(data)
            size += len(data)
        rows.close()
        return b"".join(found)

    def first_since(self, partition: Partition, timestamp_ms: int) -> tuple[int, int] | None:
        """Offset and time of the first record of that time or later."""
        query = "SELECT data FROM batches WHERE id >= ? AND id < ? AND timestamp_ms >= ? ORDER BY id LIMIT 1"
        for (data,) in self._file.execute(query, (*partition.rows, timestamp_ms)):
            for record in records_of(data) or ():
                if record.timestamp_ms >= timestamp_ms:
                    return record.offset, record.timestamp_ms
            return header_of(data).base_offset, timestamp_ms
        return None

    def compact(self, partition: Partition) -> Iterator[None]:
        """Delete what later records of the same key replace, in steps; the last batch stays as it is.

        What is written meanwhile is looked at the next time.
        """
        newest: dict[bytes, int] = {}
        last = partition.row_of(partition.end - 1)
        partition.dirty_bytes = 0
        all_read = True
        for _, data in self._steps(partition, last + 1):
            records = records_of(data)
            all_read = all_read and records is not None
            newest.update((record.key, record.offset) for record in records or () if record.key is not None)
            yield
        # What stands in a batch that cannot be read must not come back because its tombstone has gone.
        until_ms = int(time.time() * 1000) - partition.tombstones_ms if all_read else 0
        for row, data in self._steps(partition, last):
            left = compacted(data, newest, until_ms)
            with self._transaction():
                if left is None:
                    self._file.execute("DELETE FROM batches WHERE id = ?", (row,))
                elif left is not data:
                    self._file.execute("UPDATE batches SET data = ? WHERE id = ?", (left, row))
            partition.bytes -= len(data) - len(left or b"")
            yield

    def commit(self, group: str, places: Mapping[tuple[str, int], Commit]) -> None:
        """Note where a group goes on reading."""
        with self._transaction():
            self._file.executemany(
                "INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?, ?)",
                [(group, topic, number, *commit) for (topic, number), commit in places.items()],
            )
        self._commits[group].update(places)

    def commits(self, group: str) -> Mapping[tuple[str, int], Commit]:
        """What a group committed, by topic and partition."""
        return self._commits.get(group, {})

    def next_generation(self, group: str) -> int:
        """A number that rises for each group, also over restarts: state is stamped with it."""
        query = "INSERT INTO generations VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET number = number + 1 RETURNING number"
        with self._transaction():
            ((number,),) = self._file.execute(query, (group,)).fetchall()
        return int(number)

    def _steps(self, partition: Partition, before: int) -> Iterator[tuple[int, bytes]]:
        after = partition.rows[0] - 1
        while True:
            query = "SELECT id, data FROM batches WHERE id > ? AND id < ? ORDER BY id LIMIT 1"
            rows = self._file.execute(query, (after, before)).fetchall()
            if not rows:
                return
            yield rows[0]
            after = rows[0][0]

    def _forget_oldest(self, partition: Partition) -> None:
        # A tenth more than needed, so that not every append pays for it.
        excess = partition.bytes - self._partition_bytes * 9 // 10
        gone = 0
        last = None
        query = "SELECT id, length(data) FROM batches WHERE id >= ? AND id < ? ORDER BY id"
        for row, size in self._file.execute(query, (partition.rows[0], partition.row_of(partition.end - 1))):
            if gone >= excess:
                break
            gone, last = gone + size, row
        if last is None:
            return
        start = last - partition.rows[0] + 1
        with self._transaction():
            self._file.execute("DELETE FROM batches WHERE id >= ? AND id <= ?", (partition.rows[0], last))
            self._file.execute("UPDATE partitions SET start = ? WHERE id = ?", (start, partition.row))
        partition.start, partition.bytes = start, partition.bytes - gone

    def _loaded(self, partition: Partition) -> Partition:
        ((last, size),) = self._file.execute("SELECT max(id), sum(length(data)) FROM batches WHERE id >= ? AND id < ?", partition.rows)
        if last is None:
            return partition
        partition.end, partition.bytes, partition.dirty_bytes = last - partition.rows[0] + 1, size, size
        query = "SELECT substr(data, 1, ?) FROM batches WHERE id >= ? AND id < ? ORDER BY id DESC LIMIT ?"
        newest = self._file.execute(query, (HEADER_BYTES, *partition.rows, _REMEMBERED_PRODUCERS)).fetchall()
        for (start,) in reversed(newest):
            header = header_of(start)
            if header.producer_id != NO_PRODUCER:
                partition.remember(header, header.base_offset)
        return partition

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._file.execute("BEGIN IMMEDIATE")
            yield
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            raise StorageError(str(error)) from error
        finally:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")


def _partition(row: int, topic: str, number: int, settings: Mapping[str, str], start: int) -> Partition:
    compacts = "compact" in settings.get("cleanup.policy", "")
    return Partition(row, topic, number, compacts, int(settings.get("delete.retention.ms", 86_400_000)), start, start)
