"""A bounded queue of events on local disk, so that the request path never waits for Kafka and no kill loses what was accepted.

SQLite in WAL mode without fsync: a commit is a write into the page cache (tens of microseconds), which survives `kill -9` of the process.
A row's number is never used twice, and together with the spool's own id it names an event: a reader can tell a repeated send.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ulid import ULID

from smoa.errors import ResourceExhausted, Unavailable
from smoa.events import Event


@dataclass(frozen=True)
class Spooled:
    """An event waiting to be sent."""

    sequence: int
    event: Event


class Spool:
    """First in, first out. One process owns the file: it is locked."""

    def __init__(self, path: Path, max_events: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.max_events = path, max_events
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.executescript(
            "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
            "CREATE TABLE IF NOT EXISTS spool"
            " (sequence INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, key BLOB, value BLOB, type_name TEXT);"
            "CREATE TABLE IF NOT EXISTS owner (producer_id TEXT);"
        )
        row = self._database.execute("SELECT producer_id FROM owner").fetchone()
        self.producer_id = str(row[0]) if row else str(ULID())
        if row is None:
            self._database.execute("INSERT INTO owner VALUES (?)", (self.producer_id,))
        self._size = int(self._database.execute("SELECT COUNT(*) FROM spool").fetchone()[0])

    def __len__(self) -> int:
        return self._size

    def append(self, events: Sequence[Event]) -> None:
        """Accept all of the events or none.

        Raises:
            ResourceExhausted: the spool would pass its bound (Kafka has been away for long), or the disk is full.
            Unavailable: the spool's file cannot be written.
        """
        if self._size + len(events) > self.max_events:
            raise ResourceExhausted(f"spool: {self._size:,} of {self.max_events:,} events wait for Kafka", "retry when Kafka is back")
        rows = [(e.topic, e.key, e.value, e.type_name) for e in events]
        try:
            if len(rows) > 1:
                self._database.execute("BEGIN")
            for row in rows:
                self._database.execute("INSERT INTO spool (topic, key, value, type_name) VALUES (?, ?, ?, ?)", row)
            if len(rows) > 1:
                self._database.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if "full" in str(error):
                raise ResourceExhausted(f"spool: the disk under {self.path} is full", "free space and retry") from error
            raise Unavailable(f"spool: cannot write {self.path} ({error}); check the volume") from error
        self._size += len(events)

    def peek(self, limit: int) -> list[Spooled]:
        """The oldest events, which stay until `remove`."""
        rows = self._database.execute("SELECT sequence, topic, key, value, type_name FROM spool ORDER BY sequence LIMIT ?", (limit,))
        return [Spooled(sequence, Event(topic, key, value, type_name)) for sequence, topic, key, value, type_name in rows]

    def remove(self, up_to_sequence: int) -> None:
        """Drop the events that were acknowledged."""
        self._size -= self._database.execute("DELETE FROM spool WHERE sequence <= ?", (up_to_sequence,)).rowcount

    def close(self) -> None:
        """Close the file; its events are sent by the next process that opens it."""
        self._database.close()
