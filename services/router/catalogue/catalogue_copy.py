"""A copy, in this router's data folder, of a catalogue on a Qdrant server: what routing reads, so that it goes on while the server is away.

Three things keep it so. What this router writes is copied before its write is answered. What others write is looked for every second
among what was written of late, by the writers' clocks, and at once when the lifecycle topic tells of it. And now and then everything's
revision is compared, so that no clock, lost message or restored snapshot can part the two for long. A copy takes newer revisions only, so
that nothing read late replaces what was written since.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from services.router.catalogue.changes import now_us
from services.router.catalogue.port import DOCUMENT_KINDS, Document, Entry
from services.router.catalogue.qdrant_catalogue import QdrantCatalogue
from services.router.catalogue.record_file import Take
from services.router.catalogue.records import AdapterRecord
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue
from smoa.errors import SmoaError
from smoa.tasks import begin, end

_log = logging.getLogger(__name__)
LOOK_S: Final = 1.0
LOOK_BACK_S: Final = 10.0
"""A look goes back so far behind the last one: a write takes its time from its writer's clock to the server, and clocks differ."""
LOOK_FAR_S: Final = 60.0
LOOK_FAR_BACK_S: Final = 300.0
"""Once a minute it goes back farther, for clocks that differ more and writes that were stuck."""
COMPARE_S: Final = 3600.0
_FILL_PAGE: Final = 256
_PAGE: Final = 64  # entries parsed at once on the loop while it serves: seven milliseconds
_REVISIONS: Final = 1000
_KIND: Final = "copy"
_LAST_ID: Final = "Z" * 26
_STATE_ID: Final = "0000000000000000000000C0PY"


class CatalogueCopy:
    """Keeps `copy` as `source` is."""

    def __init__(
        self,
        source: QdrantCatalogue,
        copy: SqliteCatalogue,
        meet: Callable[[], Awaitable[str]],
    ) -> None:
        """`meet` readies the server, and says which library it holds."""
        self._source, self._copy, self._meet = source, copy, meet
        self._changed: Callable[[Sequence[AdapterRecord]], None] = lambda _: None
        self._wake, self._filled = asyncio.Event(), asyncio.Event()
        self._wanted: set[str] = set()
        self._state: dict[str, str | int] = {}
        self._met = False
        self._compared_at_s = self._looked_at_s = time.monotonic()
        self._looked_far_at_s = -LOOK_FAR_S  # the first look is one
        self._task: asyncio.Task[None] | None = None
        self.copied = 0
        """Adapters that were read from the server."""
        source.follow(self._take, self._take_document)

    async def recall(self, library_id: str | None) -> None:
        """Find out how far an earlier process was; with the library that the server holds now, if it could be asked."""
        found = await self._copy.get_document(_KIND, _STATE_ID)
        self._state = {} if found is None else dict(found.body)
        if library_id is not None:
            await self._recognise(library_id)
            self._met = True
        if self._state.get("filled"):
            self._filled.set()

    def start(self, changed: Callable[[Sequence[AdapterRecord]], None]) -> None:
        """Begin to follow; `changed` hears which adapters are different now."""
        self._changed = changed
        self._task = begin(self._run(), "catalogue-copy")

    async def filled(self) -> None:
        """Wait until all is here that was there once."""
        await self._filled.wait()

    @property
    def age_s(self) -> float:
        """How long ago it was last made as the server was."""
        return time.monotonic() - self._looked_at_s

    def want(self, adapter_id: str) -> None:
        """Copy an adapter now, for it was told to have changed."""
        self._wanted.add(adapter_id)
        self._wake.set()

    async def close(self) -> None:
        """Stop following; the two catalogues stay open."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        away = False
        while True:
            try:
                await self._follow()
                if away:
                    _log.info("the library can be read again")
                away = False
            except SmoaError as error:
                if not away:
                    _log.warning("%s; routing goes on with what was copied", error)
                away, self._met = True, False
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _follow(self) -> None:
        if not self._met:
            await self._recognise(await self._meet())
            self._met = True
        if not self._filled.is_set():
            await self._fill()
        wanted, self._wanted = self._wanted, set()
        try:
            await self._fetch(wanted)
        except SmoaError:
            self._wanted |= wanted
            raise
        now_s = time.monotonic()
        far = now_s - self._looked_far_at_s >= LOOK_FAR_S
        await self._look(LOOK_FAR_BACK_S if far else LOOK_BACK_S)
        self._looked_at_s = now_s
        if far:
            self._looked_far_at_s = now_s
        if now_s - self._compared_at_s >= COMPARE_S:
            await self.compare()
            self._compared_at_s = now_s

    async def _recognise(self, library_id: str) -> None:
        if (known := self._state.get("library_id")) != library_id:
            if known is not None:
                _log.warning("the server holds another library (%s, was %s): copying it from the start", library_id, known)
                await self._forget_all()
            self._filled.clear()
            await self._keep(library_id=library_id, filled=False, after="", since_us=now_us() - int(LOOK_FAR_BACK_S * 1e6))

    async def _fill(self) -> None:
        """Copy everything, from where an earlier process came to."""
        after, started_s, told_s = str(self._state.get("after", "")), time.monotonic(), time.monotonic()
        while entries := await self._source.all_entries(after, _FILL_PAGE):
            await self._put(entries)
            after = entries[-1].record.adapter_id
            self.copied += len(entries)
            if time.monotonic() - told_s > 5:
                told_s = time.monotonic()
                await self._keep(after=after)
                _log.info("copied %s adapters of the library in %.0f s", f"{self.copied:,}", told_s - started_s)
        await self._copy_documents(0)
        await self._keep(filled=True, after=after)
        self._filled.set()

    async def _look(self, back_s: float) -> None:
        """Copy what was written since the last look."""
        began_us = now_us()
        since_us = int(self._state.get("since_us", 0)) - int(back_s * 1e6)
        async for page in self._source.changed_adapters(since_us, _REVISIONS):
            await self._fetch(await self._different(page))
        await self._copy_documents(since_us)
        self._state["since_us"] = began_us
        if began_us - int(self._state.get("kept_us", 0)) > LOOK_BACK_S * 1e6:
            await self._keep(kept_us=began_us)

    async def _different(self, there: Mapping[str, int]) -> list[str]:
        """Those of the adapters whose revision is another one here."""
        here = await self._copy.call(lambda file: file.revisions_of(list(there)))
        return [one for one, revision in there.items() if here.get(one) != revision]

    async def _fetch(self, adapter_ids: Iterable[str]) -> None:
        wanted = list(adapter_ids)
        for start in range(0, len(wanted), _PAGE):
            entries = await self._source.entries(wanted[start : start + _PAGE])
            self.copied += len(entries)
            await self._put(entries)

    async def compare(self) -> None:
        """Compare every revision, and make the copy as the source is: also where the source has gone back, as by a restored snapshot."""
        last = ""
        async for page in self._source.changed_adapters(0, _REVISIONS):
            until = max(page)
            await self._mend(page, last, until)
            last = until
        await self._mend({}, last, _LAST_ID)
        await self._copy_documents(0)

    async def _mend(self, there: Mapping[str, int], after: str, until: str) -> None:
        here = await self._copy.call(lambda file: file.revisions(after, until))
        different = [one for one in {*there, *here} if there.get(one) != here.get(one)]
        for start in range(0, len(different), _PAGE):
            ids = different[start : start + _PAGE]
            found = {entry.record.adapter_id: entry for entry in await self._source.entries(ids)}
            await self._put(list(found.values()))
            # What is written here between these lines is found by the next look, for it was written just now.
            older = [entry for one, entry in found.items() if entry.record.revision < here.get(one, 0)]
            await self._put(older, Take.ALL)
            gone = [one for one in ids if one in here and one not in found]
            records = [known[0] for one in gone if (known := await self._copy.get(one)) is not None]
            await self._copy.forget(gone)
            if records:
                self._changed([dataclasses.replace(record, state="purged") for record in records])

    async def _copy_documents(self, since_us: int) -> None:
        for kind in DOCUMENT_KINDS:
            async for page in self._source.changed_documents(kind, since_us):
                for document, deleted in page:
                    await self._take_document(kind, document, deleted)

    async def _take(self, entries: Sequence[Entry], whatever: bool) -> None:
        try:
            await self._put(entries, Take.ALL if whatever else Take.NEWER)
        except SmoaError as error:  # it is written where it counts; it is looked for again
            _log.warning("what was written is not in the copy yet: %s", error)

    async def _put(self, entries: Sequence[Entry], take: Take = Take.NEWER) -> None:
        written = await self._copy.put(entries, take)
        before = {one.ref.adapter_id: one for one in written}
        told = []
        for record in (entry.record for entry in entries):
            one = before.get(record.adapter_id)
            if one is not None and (one.moved or one.labels or one.was != record.state or record.state == "canary"):
                told.append(record)
        if told:
            self._changed(told)

    async def _take_document(self, kind: str, document: Document, deleted: bool) -> None:
        await self._copy.put_document(kind, document, Take.NEWER, deleted=deleted)

    async def _forget_all(self) -> None:
        after = ""
        while here := await self._copy.call(lambda file, after=after: file.revisions(after, _LAST_ID, _REVISIONS)):  # type: ignore[misc]
            await self._copy.forget(list(here))
            after = max(here)
        await self._copy.call(lambda file: file.forget_documents(DOCUMENT_KINDS))

    async def _keep(self, **state: str | int) -> None:
        self._state |= state
        await self._copy.put_document(_KIND, Document(_STATE_ID, "", self._state), Take.ALL)
