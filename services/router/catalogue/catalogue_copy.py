"""A copy, in this router's data folder, of a catalogue on a Qdrant server: what routing reads, so that it goes on while the server is away.

Three things keep it so. What this router writes is copied before its write is answered. What others write is looked for every second
among what was written of late, by the writers' clocks, and at once when the lifecycle topic tells of it. And at the start, after the
server was away and now and then every revision is compared, so that no clock, lost message or restored snapshot can part the two for long.

A copy is of one library. If the server holds none, or another, it may be all that is left of it: it is kept, routing goes on with it, and
nothing is written until the server holds its library again, or somebody has deleted the copy.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from services.router.catalogue.changes import now_us
from services.router.catalogue.port import DOCUMENT_KINDS, Document, Entry
from services.router.catalogue.qdrant_catalogue import QdrantCatalogue
from services.router.catalogue.record_file import Take, Written
from services.router.catalogue.records import AdapterRecord
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue
from smoa.errors import SmoaError, Unavailable
from smoa.tasks import begin, end

_log = logging.getLogger(__name__)
LOOK_S: Final = 1.0
LOOK_BACK_S: Final = 10.0
"""A look goes back so far behind the last one: a write takes its time from its writer's clock to the server, and clocks differ."""
LOOK_FAR_S: Final = 60.0
LOOK_FAR_BACK_S: Final = 300.0
"""Once a minute it goes back farther, for clocks that differ more and writes that were stuck."""
COMPARE_S: Final = 3600.0
COMPARE_AGAIN_S: Final = 60.0
"""How soon after the last time everything is compared again because the server was away."""
_FILL_PAGE: Final = 256
_PAGE: Final = 64  # entries parsed at once on the loop while it serves: seven milliseconds
_REVISIONS: Final = 256
_KIND: Final = "copy"
_LAST_ID: Final = "Z" * 26
_STATE_ID: Final = "0000000000000000000000C0PY"


class CatalogueCopy:
    """Keeps `copy` as `source` is."""

    def __init__(self, source: QdrantCatalogue, copy: SqliteCatalogue, ready: Callable[[], Awaitable[None]]) -> None:
        """`ready` readies the server for this program, once it is known to hold the library."""
        self._source, self._copy, self._ready = source, copy, ready
        self._changed: Callable[[Sequence[AdapterRecord]], None] = lambda _: None
        self._wake, self._filled = asyncio.Event(), asyncio.Event()
        self._wanted: set[str] = set()
        self._state: dict[str, str | int] = {}
        self._is_ready = False
        self._compare_at_s = time.monotonic()
        self._compared_at_s = self._looked_far_at_s = -COMPARE_S
        self._task: asyncio.Task[None] | None = None
        self.copied = 0
        """Adapters that were read from the server."""

    async def recall(self) -> str:
        """Find out how far an earlier process was; returns which library it copied, or nothing."""
        found = await self._copy.get_document(_KIND, _STATE_ID)
        self._state = {} if found is None else dict(found.body)
        if self._state.get("filled"):
            self._filled.set()
        return self.library_id

    @property
    def library_id(self) -> str:
        """Which library this is a copy of."""
        return str(self._state.get("library_id", ""))

    async def begin_with(self, library_id: str) -> None:
        """Be the copy of this library, which the server holds and which is ready."""
        self._is_ready = True
        if not self._state:
            await self._keep(library_id=library_id, filled=False, after="", since_us=now_us() - int(LOOK_FAR_BACK_S * 1e6))

    async def check_library(self, *, thoroughly: bool = False) -> None:
        """Raise Unavailable, here and to all who use the server, while it does not hold the library that this is a copy of.

        A copy of nothing becomes one of what is there.
        """
        mine, stamp = self.library_id, await self._source.stamp()
        held = "" if stamp is None else str(stamp.body.get("library_id", ""))
        is_empty = not await self._revisions_between("", _LAST_ID, 1)
        if held and held != mine and is_empty:  # nothing is lost with it
            self._state = {}
            self._filled.clear()
            await self.begin_with(held)
            self._is_ready, mine = False, held
        if held == mine and thoroughly and not is_empty and not await self._source.holds_any():
            held = ""  # its stamp was restored first, or its adapters alone were lost
        if held == mine:
            self._source.connection.refuse(None)
            return
        error = Unavailable(
            f"index: the Qdrant server holds {f'another library ({held})' if held else 'no library'}, and this router's copy is of {mine}; "
            f"restore the server, or stop this router and delete {self._copy.folder} for it to take what the server has",
        )
        self._source.connection.refuse(error)
        raise error

    def listen(self, changed: Callable[[Sequence[AdapterRecord]], None]) -> None:
        """Take what this router writes, before anything is written; `changed` hears which adapters are different now."""
        self._changed = changed
        self._source.follow(self._take, self._take_document)

    def start(self, changed: Callable[[Sequence[AdapterRecord]], None]) -> None:
        """`listen`, and begin to follow what others write."""
        self.listen(changed)
        self._task = begin(self._run(), "catalogue-copy")

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._copy.folder

    async def filled(self) -> None:
        """Wait until all is here that was there once."""
        await self._filled.wait()

    @property
    def age_s(self) -> float:
        """How long ago it was last made as the server was."""
        return max(0.0, (now_us() - int(self._state.get("since_us", 0))) / 1e6)

    def want(self, adapter_id: str) -> None:
        """Copy an adapter now, for it was told to have changed."""
        self._wanted.add(adapter_id)
        self._wake.set()

    async def close(self) -> None:
        """Stop following; the two catalogues stay open."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        said = ""
        while True:
            try:
                await self._follow()
                if said:
                    _log.info("the library can be read again")
                said = ""
            except SmoaError as error:
                if said != str(error):
                    said = str(error)
                    _log.warning("%s; routing goes on with what was copied", error)
                self._is_ready = False
                self._compare_at_s = min(self._compare_at_s, self._compared_at_s + COMPARE_AGAIN_S)  # it may have been restored
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _follow(self) -> None:
        await self.check_library(thoroughly=not self._is_ready)
        if not self._is_ready:
            await self._ready()
            self._is_ready = True
        if not self._filled.is_set():
            await self._fill()
        await self._fetch_wanted()
        now_s = time.monotonic()
        far = now_s - self._looked_far_at_s >= LOOK_FAR_S
        await self._look(LOOK_FAR_BACK_S if far else LOOK_BACK_S)
        if far:
            self._looked_far_at_s = now_s
        if now_s >= self._compare_at_s:
            await self.compare()
            self._compared_at_s = time.monotonic()
            self._compare_at_s = self._compared_at_s + COMPARE_S

    async def _fill(self) -> None:
        """Copy everything, from where an earlier process came to."""
        after, started_s, told_s = str(self._state.get("after", "")), time.monotonic(), time.monotonic()
        async for entries in self._source.all_entries(after, _FILL_PAGE):
            await self._put(entries)
            after = max([after, *(entry.record.adapter_id for entry in entries)])
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
        since_us = int(self._state["since_us"]) - int(back_s * 1e6)
        async for page in self._source.changed_adapters(since_us, _REVISIONS):
            await self._make_same(page, await self._revisions_here(list(page)))
            await self._fetch_wanted()
        await self._copy_documents(since_us)
        self._state["since_us"] = began_us
        if began_us - int(self._state.get("kept_us", 0)) > LOOK_BACK_S * 1e6:
            await self._keep(kept_us=began_us)

    async def _fetch_wanted(self) -> None:
        wanted, self._wanted = sorted(self._wanted), set()
        try:
            for start in range(0, len(wanted), _REVISIONS):
                ids = wanted[start : start + _REVISIONS]
                here = await self._revisions_here(ids)
                await self._make_same(await self._source.revisions(ids), here)
        except SmoaError:
            self._wanted |= {*wanted}
            raise

    async def compare(self) -> None:
        """Compare every revision, and make the copy as the source is: also where the source has gone back, as by a restored snapshot."""
        last = ""
        async for page in self._source.changed_adapters(0, _REVISIONS):
            began_s, until = time.monotonic(), max(page)
            await self._make_same(page, await self._revisions_between(last, until))
            await self._fetch_wanted()
            last = until
            await asyncio.sleep(time.monotonic() - began_s)  # there is no hurry: half of the time is for others
        await self._make_same({}, await self._revisions_between(last, _LAST_ID))
        for kind in DOCUMENT_KINDS:
            await self._compare_documents(kind)

    async def _make_same(self, there: Mapping[str, int], here: Mapping[str, int]) -> None:
        """Copy those whose revisions differ, which were read before. What is older on the server than it was here then has gone back."""
        different = [one for one in {**there, **here} if there.get(one) != here.get(one)]
        for start in range(0, len(different), _PAGE):
            ids = different[start : start + _PAGE]
            found = {entry.record.adapter_id: entry for entry in await self._source.entries(ids)}
            self.copied += len(found)
            await self._put([*found.values()])
            # What this router writes between these lines is found by the next look, for it was written just now.
            await self._put([entry for one, entry in found.items() if entry.record.revision < here.get(one, 0)], Take.ALL)
            if gone := [one for one in ids if one in here and one not in found]:
                await self._forget(gone)

    async def _forget(self, adapter_ids: Sequence[str]) -> None:
        await self.check_library(thoroughly=True)
        records = [known[0] for one in adapter_ids if (known := await self._copy.get(one)) is not None]
        await self._copy.forget(adapter_ids)
        self._changed([dataclasses.replace(record, state="purged") for record in records])

    async def _revisions_here(self, adapter_ids: list[str]) -> dict[str, int]:
        return await self._copy.call(lambda file: file.revisions_of(adapter_ids))

    async def _revisions_between(self, after: str, until: str, most: int = -1) -> dict[str, int]:
        return await self._copy.call(lambda file: file.revisions(after, until, most))

    async def _copy_documents(self, since_us: int) -> None:
        for kind in DOCUMENT_KINDS:
            async for page in self._source.changed_documents(kind, since_us):
                for document, deleted in page:
                    await self._copy.put_document(kind, document, Take.NEWER, deleted=deleted)

    async def _compare_documents(self, kind: str) -> None:
        here = await self._copy.call(lambda file: file.document_revisions(kind))
        gone = {*here}
        async for page in self._source.changed_documents(kind, 0):
            for document, deleted in page:
                gone.discard(document.document_id)
                take = Take.ALL if document.revision < here.get(document.document_id, 0) else Take.NEWER
                await self._copy.put_document(kind, document, take, deleted=deleted)
        if gone:
            await self.check_library(thoroughly=True)
            await self._copy.call(lambda file: file.forget_documents(kind, sorted(gone)))

    async def _take(self, entries: Sequence[Entry], whatever: bool) -> None:
        written: list[Written] = []
        try:
            written = await self._put(entries, Take.ALL if whatever else Take.NEWER)
        except SmoaError as error:  # it is written where it counts
            _log.warning("what was written is not in the copy yet: %s", error)
        for adapter_id in {entry.record.adapter_id for entry in entries} - {one.ref.adapter_id for one in written}:
            self.want(adapter_id)  # or somebody has written since, or the server had gone back

    async def _take_document(self, kind: str, document: Document, deleted: bool) -> None:
        try:
            if not await self._copy.put_document(kind, document, Take.NEWER, deleted=deleted):
                self._compare_at_s = time.monotonic()  # somebody has written since, or the server had gone back
        except SmoaError as error:  # the next look finds it
            _log.warning("what was written is not in the copy yet: %s", error)

    async def _put(self, entries: Sequence[Entry], take: Take = Take.NEWER) -> list[Written]:
        written = await self._copy.put(entries, take)
        before = {one.ref.adapter_id: one for one in written}
        told = []
        for record in (entry.record for entry in entries):
            one = before.get(record.adapter_id)
            if one is not None and (one.moved or one.labels or one.was != record.state or record.state == "canary"):
                told.append(record)
        if told:
            self._changed(told)
        return written

    async def _keep(self, **state: str | int) -> None:
        self._state |= state
        await self._copy.put_document(_KIND, Document(_STATE_ID, "", self._state), Take.ALL)
