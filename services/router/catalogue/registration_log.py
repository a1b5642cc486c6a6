"""Everything the registry wrote, as objects in the store: from them a catalogue that was lost can be made again.

One object for each write, a line of JSON for each adapter, with the revision that it is based on. It is written before the catalogue is,
and taken back if another router was faster: a write that failed otherwise is in the log and was never acknowledged, which its caller's
retry makes true. Counts of uses and outcomes are not in it: the optimizer reports them again. An adapter's examples are in those lines
that bring new ones, as their vectors are, and its record names the objects: so they can be forgotten.
"""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

import numpy as np
import orjson
from ulid import ULID

from services.router.catalogue.description import described_by
from services.router.catalogue.encoded_vectors import Encoded
from services.router.catalogue.port import Catalogue, Entry, Vector
from services.router.catalogue.records import EVERY_STATE, AdapterRecord, Scope
from smoa.embedding.views import Views
from smoa.errors import FailedPrecondition, InvalidArgument, NotFound
from smoa.store import AdapterStore

_log = logging.getLogger(__name__)
PREFIX: Final = "registrations"


class RegistrationLog:
    """Writes and reads the objects."""

    def __init__(self, store: AdapterStore, library_id: Callable[[], str] = str, embedder: str = "") -> None:
        """Of the library that is written to, and of what makes its vectors."""
        self._store, self._library_id, self._embedder = store, library_id, embedder

    async def write(self, entries: Sequence[Entry]) -> tuple[str, list[Entry]]:
        """Add an object; returns its key, and the entries as the catalogue is to keep them.

        Raises:
            ResourceExhausted, Unavailable: the store does not take it.
        """
        key = f"{PREFIX}/{time.time_ns():020d}-{ULID()}.jsonl"
        kept = await asyncio.to_thread(lambda: [_with_texts_in(entry, key) for entry in entries])
        await self._put(key, kept)
        return key, kept

    async def forget_texts(self, record: AdapterRecord) -> None:
        """Take an adapter's examples out of the log; again is fine. Their vectors stay, by which it can come back.

        Raises:
            ResourceExhausted, Unavailable: the store does not take it.
        """
        for key in record.texts_in:
            with suppress(NotFound):
                data = await self._store.get_object(key)
                with _altered(key):
                    lines = [orjson.loads(line) for line in data.split(b"\n")]
                for body in lines:
                    if body["record"]["adapter_id"] == record.adapter_id:
                        body["record"]["examples"] = []
                await self._store.put_object(key, b"\n".join(map(orjson.dumps, lines)))

    async def keep(self, key: str, entries: Sequence[Entry]) -> None:
        """Take back what is in an object but for these entries, as they are kept: the rest was not written."""
        if entries:
            await self._put(key, entries)
        else:
            await self._store.delete_object(key)

    async def _put(self, key: str, kept: Sequence[Entry]) -> None:
        library_id = self._library_id()
        lines = await asyncio.to_thread(lambda: b"\n".join([_to_line(one, library_id, self._embedder) for one in kept]))
        await self._store.put_object(key, lines)

    async def names(self) -> list[str]:
        """Keys of the objects, oldest first."""
        return sorted([key async for key in self._store.list_objects(PREFIX)])

    async def library_id(self) -> str:
        """Of the library that was written to last, or nothing: made again from here it is the same one, so copies of it stay good."""
        names = await self.names()
        if not names:
            return ""
        line = (await self._store.get_object(names[-1])).partition(b"\n")[0]
        with _altered(names[-1]):
            return str(orjson.loads(line).get("library", ""))

    async def read(self, name: str, dimension: int) -> list[Entry]:
        """The entries of an object; the vectors of those that another embedder made are empty.

        Raises:
            InvalidArgument: it was altered.
        """
        data = await self._store.get_object(name)
        with _altered(name):
            return [_from_line(line, dimension, self._embedder) for line in data.split(b"\n")]


async def rebuild(log: RegistrationLog, catalogue: Catalogue, embedder: Views) -> AsyncIterator[tuple[int, int]]:
    """Write all of the log into an empty catalogue; yields (objects done, objects in all). What another embedder made is made anew of the
    examples; an adapter that has none is left out.

    Raises:
        FailedPrecondition: it holds adapters already.
    """
    everything = Scope(tenant=None, states=EVERY_STATE)
    if await catalogue.scroll(everything, "", 1):
        raise FailedPrecondition("index: holds adapters already; rebuild into an empty one")
    names = await log.names()
    written: dict[str, tuple[int, int]] = {}
    """Revisions of the record and of the example vectors that are there: names sort by clocks, and those of two routers may differ."""
    for done, name in enumerate(names, 1):
        records: list[tuple[AdapterRecord, Vector]] = []
        example_vectors: dict[str, Vector] = {}
        for record, vector, given in await log.read(name, embedder.dimension):
            record_at, examples_at = written.get(record.adapter_id, (-1, -1))
            there = next((one for one in reversed(records) if one[0].adapter_id == record.adapter_id), None)
            if there is None and record_at >= 0:
                there = await catalogue.get(record.adapter_id)
            if not vector.size:
                if record.examples:
                    ((vector, given),) = await described_by(embedder, [record.examples])
                elif there is not None:
                    vector = there[1]
                else:
                    _log.error("%s has no examples, and a vector of another embedder: it is left out; import it again", record.adapter_id)
                    continue
            newer = given is not None and record.revision >= examples_at
            if record.revision >= record_at:
                made = replace(record, revision=record.revision + 1)  # as it was once written
                if not newer and there is not None:
                    made = replace(made, examples=record.examples or there[0].examples)
                records.append((made, vector))
                record_at = record.revision
            elif newer and there is not None:
                records.append((replace(there[0], examples=record.examples), there[1]))
            if newer and given is not None:
                example_vectors[record.adapter_id], examples_at = given, record.revision
            written[record.adapter_id] = record_at, examples_at
        await catalogue.upsert(records, example_vectors)
        yield done, len(names)


def _with_texts_in(entry: Entry, key: str) -> Entry:
    """The entry as it is kept: its record names the object that brings its examples."""
    if entry.example_vectors is None or not entry.record.examples:
        return entry
    return entry._replace(record=replace(entry.record, texts_in=(*entry.record.texts_in, key)))


@contextmanager
def _altered(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgument(name, f"is not a log of registrations ({error})", "restore the object, or delete it") from error


def _to_line(entry: Entry, library_id: str, embedder: str) -> bytes:
    record = entry.record.to_payload()
    if entry.example_vectors is None:
        record["examples"] = []
    body: Mapping[str, object] = {
        "library": library_id,
        "embedder": embedder,
        "record": record,
        "vector": b64encode(entry.vector.astype("<f2").tobytes()).decode(),
        "example_vectors": None if entry.example_vectors is None else b64encode(Encoded.of(entry.example_vectors).to_bytes()).decode(),
    }
    return orjson.dumps(body)


def _from_line(line: bytes, dimension: int, embedder: str) -> Entry:
    body = orjson.loads(line)
    if embedder and body.get("embedder", "") not in ("", embedder):
        return Entry(AdapterRecord.from_payload(body["record"]), np.empty(0, np.float32))
    vector = np.frombuffer(b64decode(body["vector"]), "<f2").astype(np.float32)
    if vector.shape != (dimension,):
        raise ValueError(f"a vector of {len(vector)} numbers, not {dimension}")
    packed = body["example_vectors"]
    example_vectors = None if packed is None else Encoded.from_bytes(b64decode(packed), dimension).decoded()
    return Entry(AdapterRecord.from_payload(body["record"]), vector, example_vectors)
