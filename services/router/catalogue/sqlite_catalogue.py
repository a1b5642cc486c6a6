"""`Catalogue` in one file of a folder (`record_file.py`), which one process owns.

Single records are read on the loop: tens of microseconds from the page cache, less than handing them to a thread. All else that blocks
runs on one worker thread.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TextIO, TypeVar

from services.router.catalogue.port import Document, Entry, Vector
from services.router.catalogue.record_file import RecordFile, Take, Written
from services.router.catalogue.records import AdapterRecord, RecordSummary, Scope
from smoa.errors import FailedPrecondition
from smoa.identifiers import check_ulid
from smoa.tasks import Uncancelled, now_and_then

T = TypeVar("T")
FILE: Final = "index.sqlite"


def locked(folder: Path) -> TextIO | None:
    """The lock of a catalogue's folder, which is held until it is closed; None while another process has it."""
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


class SqliteReader:
    """Reads a catalogue beside the process that owns it."""

    def __init__(self, folder: Path) -> None:
        """Of a catalogue that is there."""
        self._file = RecordFile(folder / FILE)
        self._dimension = self._file.dimension()

    async def scroll(self, scope: Scope, after: str, limit: int, written_since_us: int = 0) -> list[AdapterRecord]:
        """See `Catalogue`."""
        return await asyncio.to_thread(self._file.scroll, scope, after, limit, written_since_us)

    async def list_documents(self, kind: str, tenant: str | None, after: str, limit: int, states: Sequence[str] = ()) -> list[Document]:
        """See `Catalogue`."""
        return await asyncio.to_thread(self._file.list_documents, kind, tenant, after, limit, states)

    async def example_vectors(self, adapter_ids: Sequence[str]) -> dict[str, Vector]:
        """See `Catalogue`."""
        return self._file.example_vectors(adapter_ids, self._dimension)

    async def described(self, pools: Sequence[str], most: int) -> list[str]:
        """See `Catalogue`."""
        return await asyncio.to_thread(self._file.described, pools, most)

    def get_document(self, kind: str, document_id: str) -> Document | None:
        """See `Catalogue`."""
        return self._file.get_document(kind, document_id)

    def close(self) -> None:
        """Release it."""
        self._file.close()


class SqliteCatalogue:
    """One file in a folder; one process owns it."""

    def __init__(self, folder: Path, dimension: int) -> None:
        """Open or make it, for vectors of so many numbers.

        Raises:
            FailedPrecondition: another process uses the folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock = locked(folder)
        if lock is None:
            raise FailedPrecondition(f"index: another process uses {folder}; stop it, or share a Qdrant server (SMOA_QDRANT_URL)")
        self._lock = lock
        self.folder, self.dimension = folder, dimension
        self._file, self.reader = RecordFile(folder / FILE), RecordFile(folder / FILE)
        self._thread = ThreadPoolExecutor(1, "catalogue")
        self.writing = asyncio.Lock()
        """Whoever holds it sees no write come between."""
        self._writes = Uncancelled()
        self._follow: Callable[[Sequence[Written]], Awaitable[None]] | None = None

    def follow(self, follow: Callable[[Sequence[Written]], Awaitable[None]]) -> None:
        """Tell of all that is committed, in order, each before its write returns."""
        self._follow = follow

    async def check(self) -> None:
        """See `Catalogue`."""
        self.reader.check()

    async def write(self, entries: Sequence[Entry], *, together: bool = True) -> None:
        """See `Catalogue`."""
        await self.put(entries, Take.UNCHANGED)

    async def upsert(self, records: Sequence[tuple[AdapterRecord, Vector]], example_vectors: Mapping[str, Vector] | None = None) -> None:
        """See `Catalogue`."""
        given = example_vectors or {}
        await self.put([Entry(record, vector, given.get(record.adapter_id)) for record, vector in records], Take.ALL)

    async def put(self, entries: Sequence[Entry], take: Take) -> list[Written]:
        """Write those that are to be taken, and return what they mean for an index."""
        example_vectors = {entry.record.adapter_id: entry.example_vectors for entry in entries if entry.example_vectors is not None}
        records = [(entry.record, entry.vector) for entry in entries]
        return await self._written(lambda file: file.write(records, example_vectors, take))

    async def forget(self, adapter_ids: Sequence[str]) -> list[Written]:
        """Remove adapters as if they had never been."""
        return await self._written(lambda file: file.forget(adapter_ids))

    async def _written(self, write: Callable[[RecordFile], list[Written]]) -> list[Written]:
        # Outliving a caller that goes away, who would part the file from the index.
        return await self._writes.run(self._write(write))

    async def _write(self, write: Callable[[RecordFile], list[Written]]) -> list[Written]:
        async with self.writing:
            written = await self.call(write)
            if written and self._follow is not None:
                await self._follow(written)
        return written

    async def get(self, adapter_id: str) -> tuple[AdapterRecord, Vector] | None:
        """See `Catalogue`."""
        check_ulid(adapter_id)
        return self.reader.get(adapter_id)

    async def get_many(self, adapter_ids: Sequence[str]) -> dict[str, tuple[AdapterRecord, Vector]]:
        """See `Catalogue`."""
        there = {}
        for number, adapter_id in enumerate(adapter_ids):
            await now_and_then(number)
            if (found := await self.get(adapter_id)) is not None:
                there[adapter_id] = found
        return there

    async def summaries(self, adapter_ids: Sequence[str]) -> dict[str, RecordSummary]:
        """See `Catalogue`."""
        return await self.call(lambda file: file.summaries(adapter_ids))

    async def records(self, adapter_ids: Sequence[str]) -> dict[str, AdapterRecord]:
        """See `Catalogue`."""
        return self.reader.records(adapter_ids)

    async def described(self, pools: Sequence[str], most: int) -> list[str]:
        """See `Catalogue`."""
        return await self.call(lambda file: file.described(pools, most))

    async def example_vectors(self, adapter_ids: Sequence[str]) -> dict[str, Vector]:
        """See `Catalogue`."""
        return self.reader.example_vectors(adapter_ids, self.dimension)

    async def scroll(self, scope: Scope, after: str, limit: int, written_since_us: int = 0) -> list[AdapterRecord]:
        """See `Catalogue`."""
        return await self.call(lambda file: file.scroll(scope, after, limit, written_since_us))

    async def write_document(self, kind: str, document: Document) -> None:
        """See `Catalogue`."""
        await self.put_document(kind, document, Take.UNCHANGED)

    async def put_document(self, kind: str, document: Document, take: Take, *, deleted: bool = False) -> bool:
        """Write a document, if it is to be taken; returns whether it was."""
        return await self._writes.run(self.call(lambda file: file.write_document(kind, document, take, deleted=deleted)))

    async def get_document(self, kind: str, document_id: str) -> Document | None:
        """See `Catalogue`."""
        return self.reader.get_document(kind, document_id)

    async def list_documents(self, kind: str, tenant: str | None, after: str, limit: int, states: Sequence[str] = ()) -> list[Document]:
        """See `Catalogue`."""
        return await self.call(lambda file: file.list_documents(kind, tenant, after, limit, states))

    async def delete_document(self, kind: str, document: Document) -> None:
        """See `Catalogue`."""
        await self.put_document(kind, document, Take.UNCHANGED, deleted=True)

    async def snapshot(self, path: Path) -> None:
        """Copy it, as it is at one moment, to a file that must not exist. Restored by putting it into an empty folder as FILE."""
        await self.call(lambda file: file.copy_to(path))

    async def call(self, function: Callable[[RecordFile], T]) -> T:
        """The answer of the file, on the worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(function, self._file))

    async def close(self) -> None:
        """See `Catalogue`."""
        await self._writes.close()
        await asyncio.to_thread(self._thread.shutdown)
        self._file.close()
        self.reader.close()
        self._lock.close()
