"""Records, vectors and documents in one SQLite file. Blocking; one process owns it.

A commit is in the operating system's hands when it returns (write-ahead log), so it survives `kill -9` of the process; a power cut may
lose the last moments, but never leaves half of a write.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from services.router.catalogue.changes import now_us
from services.router.catalogue.encoded_vectors import Encoded
from services.router.catalogue.port import Conflict, Document, Vector
from services.router.catalogue.records import AdapterRecord, AdapterRef, Labels, RecordSummary, Scope, labels_of, marks_of, pool_of
from smoa.errors import ResourceExhausted, Unavailable

_SCHEMA: Final = """
PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=5000; PRAGMA cache_size=-16000;
CREATE TABLE IF NOT EXISTS adapters (
  row INTEGER PRIMARY KEY, adapter_id TEXT NOT NULL UNIQUE, version INTEGER NOT NULL, pool TEXT NOT NULL,
  tenant TEXT NOT NULL, shared INTEGER NOT NULL,
  base_model TEXT NOT NULL, state TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, tags TEXT NOT NULL,
  specialization TEXT NOT NULL, marks INTEGER NOT NULL, has_examples INTEGER NOT NULL, revision INTEGER NOT NULL,
  written_at_us INTEGER NOT NULL, vector BLOB NOT NULL,
  record TEXT NOT NULL, examples TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS adapters_tenant ON adapters (tenant, adapter_id);
CREATE INDEX IF NOT EXISTS adapters_shared ON adapters (adapter_id) WHERE shared = 1;
CREATE INDEX IF NOT EXISTS adapters_name ON adapters (tenant, name, adapter_id);
CREATE INDEX IF NOT EXISTS adapters_digest ON adapters (digest);
CREATE INDEX IF NOT EXISTS adapters_written ON adapters (written_at_us);
CREATE INDEX IF NOT EXISTS adapters_described ON adapters (pool) WHERE has_examples = 1;
CREATE TABLE IF NOT EXISTS example_vectors (adapter_id TEXT PRIMARY KEY, vectors BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS labels (label TEXT NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (label, row)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (kind TEXT NOT NULL, document_id TEXT NOT NULL, tenant TEXT NOT NULL, body TEXT NOT NULL,
  revision INTEGER NOT NULL, deleted INTEGER NOT NULL, PRIMARY KEY (kind, document_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trained (pool TEXT PRIMARY KEY, rows INTEGER NOT NULL, probes INTEGER NOT NULL,
  rescored INTEGER NOT NULL, scan BLOB NOT NULL);
"""
_COLUMNS: Final = """row, adapter_id, version, pool, tenant, shared, base_model, state, name, digest, tags, specialization, marks,
  has_examples, revision, written_at_us, vector, record, examples"""
"""What is read most is in front of what may be long: SQLite walks through all that lies before a column."""
_IDS_A_QUERY: Final = 500


_Known = tuple[int, str, bytes, bool, int, str, frozenset[str]]
_NEW: Final[_Known] = (0, "", b"", False, 0, "", frozenset())


class Take(Enum):
    """Which records a write takes."""

    UNCHANGED = "all of them, if nobody has written since their revisions; or none"
    NEWER = "those with a higher revision than what is there"
    ALL = "whatever is there"


@dataclass(frozen=True)
class Written:
    """What a committed record means for the pools: its row, where it was and is, and the labels that changed."""

    row: int
    ref: AdapterRef
    pool: str
    vector: bytes
    has_examples: bool
    old_pool: str = ""
    moved: bool = True
    """Pool, vector or having examples are not what they were."""
    was: str = ""
    """Its state before."""
    labels: frozenset[str] = frozenset()
    marks: int = 0
    """Of its labels now (`label_mark`)."""


class RecordFile:
    """The file. Vectors are kept as float16."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        with _failures():
            self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def check(self) -> None:
        """Raise Unavailable if the file cannot be read."""
        with _failures():
            self._database.execute("SELECT row FROM adapters LIMIT 1").fetchone()

    def write(self, records: Sequence[tuple[AdapterRecord, Vector]], example_vectors: Mapping[str, Vector], take: Take) -> list[Written]:
        """Write records; example vectors that are not given stay. Returns what was written.

        Raises:
            Conflict: a record is not based on the revision that is there.
            ResourceExhausted: the disk is full.
            Unavailable: the file cannot be written.
        """
        unique = {record.adapter_id: (record, vector) for record, vector in records}
        with self._transaction() as database:
            known = self._known(list(unique))
            following = (database.execute("SELECT MAX(row) FROM adapters").fetchone()[0] or 0) + 1
            rows, gone, labels, written = [], [], [], []
            for adapter_id, (record, vector) in unique.items():
                old_row, old_pool, old_vector, had, revision, was, old_labels = known.get(adapter_id, _NEW)
                if take is Take.UNCHANGED and revision != record.revision:
                    raise Conflict(unique)
                if take is Take.NEWER and revision >= record.revision:
                    continue
                row = old_row or following
                following += not old_row
                pool, packed, named = pool_of(record), vector.astype("<f2").tobytes(), labels_of(record).all
                has = had or adapter_id in example_vectors
                marks = marks_of(record)
                rows.append(_columns(row, pool, record, packed, has, record.revision + (take is Take.UNCHANGED), marks))
                gone += [(label, row) for label in old_labels - named]
                labels += [(label, row) for label in named - old_labels]
                moved = (pool, packed, has) != (old_pool, old_vector, had)
                written.append(Written(row, record.ref, pool, packed, has, old_pool, moved, was, named ^ old_labels, marks))
            database.executemany(f"INSERT OR REPLACE INTO adapters ({_COLUMNS}) VALUES ({','.join('?' * 19)})", rows)
            database.executemany("DELETE FROM labels WHERE label = ? AND row = ?", gone)
            database.executemany("INSERT INTO labels VALUES (?, ?)", labels)
            taken = {one.ref.adapter_id for one in written}
            coded = ((one, Encoded.of(vectors).to_bytes()) for one, vectors in example_vectors.items() if one in taken)
            database.executemany("INSERT OR REPLACE INTO example_vectors VALUES (?, ?)", coded)
        return written

    def forget(self, adapter_ids: Sequence[str]) -> list[Written]:
        """Remove records, as if they had never been; returns those that were there."""
        with self._transaction() as database:
            gone = [
                Written(row, AdapterRef(adapter_id, 0, ""), "", vector, has, pool, True, was, labels)
                for adapter_id, (row, pool, vector, has, _, was, labels) in self._known(adapter_ids).items()
            ]
            database.executemany("DELETE FROM adapters WHERE row = ?", [(one.row,) for one in gone])
            database.executemany("DELETE FROM example_vectors WHERE adapter_id = ?", [(one.ref.adapter_id,) for one in gone])
            database.executemany(
                "DELETE FROM labels WHERE label = ? AND row = ?", [(label, one.row) for one in gone for label in one.labels]
            )
        return gone

    def get(self, adapter_id: str) -> tuple[AdapterRecord, Vector] | None:
        """One adapter and its vector."""
        with _failures():
            query = "SELECT record, examples, vector FROM adapters WHERE adapter_id = ?"
            found = self._database.execute(query, (adapter_id,)).fetchone()
        return (_record(found[0], found[1]), vectors_of([found[2]])[0]) if found else None

    def summaries(self, adapter_ids: Sequence[str]) -> dict[str, RecordSummary]:
        """Owner, weights and state of those that are there."""
        with _failures():
            return {adapter_id: RecordSummary(*fields) for adapter_id, *fields in self._by_id("tenant, digest, state", adapter_ids)}

    def records(self, adapter_ids: Sequence[str]) -> dict[str, AdapterRecord]:
        """Records by id, without their examples."""
        with _failures():
            return {adapter_id: _record(record, "[]") for adapter_id, record in self._by_id("record", adapter_ids)}

    def labels(self, rows: Sequence[int]) -> dict[int, Labels]:
        """Labels by row; of a few at a time."""
        query = f"SELECT row, name, tags, specialization FROM adapters WHERE row IN ({','.join('?' * len(rows))})"
        with _failures():
            found = self._database.execute(query, tuple(rows))
            return {row: Labels(name, tuple(orjson.loads(tags)), specialization) for row, name, tags, specialization in found}

    def example_vectors(self, adapter_ids: Sequence[str], dimension: int) -> dict[str, Vector]:
        """Example vectors of those that have any; for a few at a time."""
        query = f"SELECT adapter_id, vectors FROM example_vectors WHERE adapter_id IN ({','.join('?' * len(adapter_ids))})"
        with _failures():
            found = self._database.execute(query, tuple(adapter_ids))
            return {adapter_id: Encoded.from_bytes(data, dimension).decoded() for adapter_id, data in found}

    def described(self, pools: Sequence[str], most: int) -> list[str]:
        """Ids of adapters in these pools that have examples, at most so many; the first pool's first."""
        query, found = "SELECT adapter_id FROM adapters WHERE has_examples = 1 AND pool = ? LIMIT ?", list[str]()
        with _failures():
            for pool in pools:
                found += [adapter_id for (adapter_id,) in self._database.execute(query, (pool, most - len(found)))]
        return found

    def dimension(self) -> int:
        """Of the vectors in it; 0 while there is none."""
        with _failures():
            found = self._database.execute("SELECT vector FROM adapters LIMIT 1").fetchone()
        return vectors_of([found[0]]).shape[1] if found else 0

    def rows_with(self, label: str, most: int) -> NDArray[np.int32]:
        """Rows of the adapters with a label, at most so many of them, in order."""
        with _failures():
            found = self._database.execute("SELECT row FROM labels WHERE label = ? ORDER BY row LIMIT ?", (label, most))
            return np.fromiter((row for (row,) in found), np.int32)

    def scroll(self, scope: Scope, after: str, limit: int, written_since_us: int = 0) -> list[AdapterRecord]:
        """Adapters of the scope with an id over `after`, by id; only those that were written since a time."""
        clauses, values = _conditions(scope)
        by_id = "adapter_id"
        if written_since_us:  # by the index of the times: what changed is little, and all there is may be much
            clauses, values, by_id = [*clauses, "written_at_us >= ?"], [*values, written_since_us], "+adapter_id"
        # One query for each owner, so that each of them walks an index.
        owners: list[tuple[str, tuple[str, ...]]] = [("1", ())]
        if scope.tenant is not None:
            owners = [("tenant = ?", (scope.tenant,))]
            if scope.include_shared:
                owners.append(("shared = 1 AND tenant <> ?", (scope.tenant,)))
        pages = []
        for owner, named in owners:
            condition = " AND ".join([owner, f"{by_id} > ?", *clauses])
            query = f"SELECT adapter_id, record, examples FROM adapters WHERE {condition} ORDER BY {by_id} LIMIT ?"
            with _failures():
                pages.append(self._database.execute(query, (*named, after, *values, limit)).fetchall())
        return [_record(record, examples) for _, record, examples in islice(heapq.merge(*pages), limit)]

    def placed(self, after_row: int, limit: int) -> list[Written]:
        """The adapters that are in a pool, by row."""
        columns = "row, adapter_id, version, digest, pool, vector, has_examples, marks"
        query = f"SELECT {columns} FROM adapters WHERE row > ? AND pool <> '' ORDER BY row LIMIT ?"
        with _failures():
            rows = self._database.execute(query, (after_row, limit)).fetchall()
        return [Written(row, AdapterRef(*ref), pool, vector, bool(has), marks=marks) for row, *ref, pool, vector, has, marks in rows]

    def revisions(self, after: str, last: str, most: int = -1) -> dict[str, int]:
        """Revisions of the adapters with ids over `after`, up to `last`, by id; at most so many of them."""
        with _failures():
            query = "SELECT adapter_id, revision FROM adapters WHERE adapter_id > ? AND adapter_id <= ? ORDER BY adapter_id LIMIT ?"
            return dict(self._database.execute(query, (after, last, most)).fetchall())

    def revisions_of(self, adapter_ids: Sequence[str]) -> dict[str, int]:
        """Revisions of those of the adapters that are there."""
        with _failures():
            return dict(self._by_id("revision", adapter_ids))

    def write_document(self, kind: str, document: Document, take: Take, *, deleted: bool = False) -> bool:
        """Write a document; with `deleted`, so that it is there no more, but for its revision. False: it was not to be taken.

        Raises:
            Conflict: it is not based on the revision that is there. One that was deleted counts as one that is not there.
        """
        with self._transaction() as database:
            query = "SELECT revision, deleted FROM documents WHERE kind = ? AND document_id = ?"
            there, gone = database.execute(query, (kind, document.document_id)).fetchone() or (0, True)
            if deleted and gone and take is Take.UNCHANGED:
                return False
            if take is Take.UNCHANGED and document.revision != (0 if gone else there):
                raise Conflict([document.document_id])
            if take is Take.NEWER and there >= document.revision:
                return False
            revision = there + 1 if take is Take.UNCHANGED else document.revision
            row = (kind, document.document_id, document.tenant, orjson.dumps(dict(document.body)).decode(), revision, int(deleted))
            database.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?)", row)
        return True

    def forget_documents(self, kind: str, document_ids: Sequence[str]) -> None:
        """Remove documents, as if they had never been."""
        with self._transaction() as database:
            named = [(kind, one) for one in document_ids]
            database.executemany("DELETE FROM documents WHERE kind = ? AND document_id = ?", named)

    def document_revisions(self, kind: str) -> dict[str, int]:
        """Revisions of the documents of a kind, also of deleted ones."""
        with _failures():
            return dict(self._database.execute("SELECT document_id, revision FROM documents WHERE kind = ?", (kind,)).fetchall())

    def get_document(self, kind: str, document_id: str) -> Document | None:
        """One document."""
        with _failures():
            query = "SELECT document_id, tenant, body, revision FROM documents WHERE kind = ? AND document_id = ? AND NOT deleted"
            found = self._database.execute(query, (kind, document_id)).fetchone()
        return _document(*found) if found else None

    def list_documents(self, kind: str, tenant: str | None, after: str, limit: int, states: Sequence[str] = ()) -> list[Document]:
        """By id."""
        where, values = "kind = ? AND document_id > ? AND NOT deleted", [kind, after]
        if tenant is not None:
            where, values = f"{where} AND tenant = ?", [*values, tenant]
        if states:
            where = f"{where} AND json_extract(body, '$.state') IN ({', '.join('?' * len(states))})"
        query = f"SELECT document_id, tenant, body, revision FROM documents WHERE {where} ORDER BY document_id LIMIT ?"
        with _failures():
            found = self._database.execute(query, (*values, *states, limit)).fetchall()
        return [_document(*row) for row in found]

    def keep_trained(self, pool: str, rows: int, probes: int, rescored: int, scan: bytes) -> None:
        """Keep what a pool's training learned."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO trained VALUES (?, ?, ?, ?, ?)", (pool, rows, probes, rescored, scan))

    def trained(self) -> list[tuple[str, int, int, int, bytes]]:
        """(pool, rows, probes, rescored, scan) of every training."""
        with _failures():
            return self._database.execute("SELECT pool, rows, probes, rescored, scan FROM trained").fetchall()

    def copy_to(self, path: Path) -> None:
        """Copy the file as it is at one moment; `path` must not exist."""
        with _failures():
            self._database.execute("VACUUM INTO ?", (str(path),))

    def _known(self, adapter_ids: Sequence[str]) -> dict[str, _Known]:
        known = {}
        columns = "row, pool, vector, has_examples, revision, state, record"
        for adapter_id, row, pool, vector, has, revision, state, record in self._by_id(columns, adapter_ids):
            known[adapter_id] = (row, pool, vector, bool(has), revision, state, labels_of(_record(record, "[]")).all)
        return known

    def _by_id(self, columns: str, adapter_ids: Sequence[str]) -> Iterator[Any]:
        """Rows of the id and these columns, of those of the adapters that are there."""
        for start in range(0, len(adapter_ids), _IDS_A_QUERY):
            batch = adapter_ids[start : start + _IDS_A_QUERY]
            query = f"SELECT adapter_id, {columns} FROM adapters WHERE adapter_id IN ({','.join('?' * len(batch))})"
            yield from self._database.execute(query, tuple(batch))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _failures():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")


def vectors_of(packed: Sequence[bytes]) -> Vector:
    """Vectors [n, dimension] float32 of their stored form."""
    return np.stack([np.frombuffer(one, "<f2") for one in packed]).astype(np.float32)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise ResourceExhausted("index: the disk under it is full", "free space and retry") from error
        raise Unavailable(f"index: its file cannot be used ({error}); check the volume") from error


def _columns(
    row: int, pool: str, record: AdapterRecord, vector: bytes, has_examples: bool, revision: int, marks: int
) -> tuple[object, ...]:
    body = record.to_payload() | {"revision": revision}  # a copy of the record would be a tenth of the write
    examples = orjson.dumps(body.pop("examples")).decode()
    return (
        row,
        record.adapter_id,
        record.version,
        pool,
        record.tenant,
        int(record.shared),
        record.base_model,
        record.state,
        record.name,
        record.digest,
        orjson.dumps(record.tags).decode(),
        record.specialization,
        marks,
        int(has_examples),
        revision,
        now_us(),
        vector,
        orjson.dumps(body).decode(),
        examples,
    )


def _document(document_id: str, tenant: str, body: str, revision: int) -> Document:
    return Document(document_id, tenant, orjson.loads(body), revision)


def _record(record: str, examples: str) -> AdapterRecord:
    return AdapterRecord.from_payload({**orjson.loads(record), "examples": orjson.loads(examples)})


def _conditions(scope: Scope) -> tuple[list[str], list[str | int]]:
    values: list[str | int]
    clauses, values = [f"state IN ({','.join('?' * len(scope.states))})"], [*map(str, scope.states)]
    for column in ("base_model", "name", "digest"):
        if (wanted := getattr(scope, column)) is not None:
            clauses.append(f"{column} = ?")
            values.append(wanted)
    for tag in scope.all_tags:
        clauses += ["row IN (SELECT row FROM labels WHERE label = ?)", "EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)"]
        values += [tag, tag]
    return clauses, values
