"""Adapters whose file comes with their registration."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Final

from services.router.catalogue.changes import check_owner
from services.router.catalogue.importing import checked_examples
from services.router.catalogue.records import EVERY_STATE, AdapterRecord, Scope
from services.router.catalogue.registry import Registry
from smoa.access.places import Places
from smoa.access.principal import caller
from smoa.access.rates import Rate
from smoa.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, SmoaError, Unavailable
from smoa.identifiers import checked_tenant
from smoa.limits import SLOWEST_BYTES_PER_S
from smoa.store import AdapterStore
from smoa.tasks import Uncancelled

DAY_S: Final = 86400.0
_BEGIN_S: Final = 60.0
_MANY: Final = 64
"""A file takes as much of the room as if it were the largest by this at least: small ones, too, are only so many at once."""
LEAST_PART_BYTES: Final = 2**16
_log = logging.getLogger(__name__)
_FILES: Final = 4
"""Of the largest size, that may be on their way at once; of one caller half as many."""


class Uploads:
    """Takes files in, each beside the store until it is whole and found good: what is refused is not in it, unless a record names it."""

    def __init__(self, registry: Registry, folder: Path, max_bytes: int, bytes_per_day: float = 0.0) -> None:
        """Of files of at most `max_bytes`, meanwhile in `folder`, without a name there; 0 bytes a day of a caller are no limit."""
        self._registry, self._folder, self._max_bytes = registry, folder, max_bytes
        self._room = Places(_FILES * max_bytes, _FILES // 2 * max_bytes, "bytes of uploads")
        self._rate = Rate("uploads", bytes_per_day / DAY_S, DAY_S, f"{bytes_per_day:,.0f} bytes a day")
        self._keeping = Uncancelled()

    async def close(self) -> None:
        """Wait for work whose callers have gone."""
        await self._keeping.close()

    async def take(
        self, tenant: str, digest: str, examples: Sequence[str], file_bytes: int, parts: AsyncIterator[bytes], *, replace: bool = False
    ) -> AdapterRecord:
        """Register an adapter once its file has come.

        Raises:
            InvalidArgument: the file is too large, or not the one that was announced; and see `Registry.register`.
            ResourceExhausted: the caller has sent too much today, or there is no room for more at once.
        """
        tenant, examples = checked_tenant(tenant), checked_examples(examples)
        AdapterStore.key(digest)
        if not 0 < file_bytes <= self._max_bytes:
            remedy = "send a smaller adapter, or raise SMOA_ROUTER_MAX_ADAPTER_BYTES"
            raise InvalidArgument("file_bytes", f"{file_bytes:,} is not in 1..{self._max_bytes:,}", remedy)
        name = caller().name
        with ExitStack() as stack:
            stack.enter_context(self._room.held(name, max(file_bytes, self._max_bytes // _MANY)))
            self._rate.take(name, file_bytes)
            file = stack.enter_context(TemporaryFile(dir=self._folder))
            await _receive(file, digest, file_bytes, parts)
            held = stack.pop_all()  # by the work, which goes on when the caller goes away
        return await self._keeping.run(self._keep(tenant, digest, examples, file, held, replace))

    async def _keep(
        self, tenant: str, digest: str, examples: Sequence[str], file: BinaryIO, held: ExitStack, replace: bool
    ) -> AdapterRecord:
        with held:
            await self._registry.files.take(digest, file, lambda record: check_owner(record, tenant))
        try:
            record = await self._registry.register(tenant, digest, examples, replace=replace)
        except SmoaError:
            naming = Scope(tenant=tenant, include_shared=False, states=EVERY_STATE, digest=digest)
            try:
                async with self._registry.writing:
                    await self._registry.delete_unused(digest, naming)
            except SmoaError as error:  # what was wrong first is what the caller should know
                _log.warning("the file %s, which no record names, stays in the store: %s", digest, error)
            raise
        if record.state == "missing":
            raise Unavailable(f"store: the file of {record.adapter_id} was deleted as it was registered; push it again", 0.1)
        return record

    async def parts(self, tenant: str, adapter_id: str) -> AsyncIterator[bytes]:
        """The file of an adapter of the tenant's own.

        Raises:
            NotFound: no such adapter, or its file is not in the store.
        """
        record, _ = await self._registry.owned(checked_tenant(tenant), adapter_id)
        async for part in self._registry.files.parts(record.digest, record.tenant):
            yield part


async def _receive(file: BinaryIO, digest: str, file_bytes: int, parts: AsyncIterator[bytes]) -> None:
    hashed, size, began_s = hashlib.sha256(), 0, time.monotonic()

    def take(part: bytes) -> None:
        hashed.update(part)
        try:
            file.write(part)
            file.flush()
        except OSError as error:
            raise ResourceExhausted(
                f"uploads: the router cannot keep the file meanwhile ({error})", "free space in its data folder"
            ) from error

    async for part in parts:
        size += len(part)
        if size > file_bytes:
            break
        if len(part) < LEAST_PART_BYTES and size < file_bytes:
            raise InvalidArgument("part", f"has {len(part):,} bytes", f"send {LEAST_PART_BYTES:,} at least, but for the last")
        await asyncio.to_thread(take, part)
        if size < (time.monotonic() - began_s - _BEGIN_S) * SLOWEST_BYTES_PER_S:
            raise DeadlineExceeded("part: the file comes too slowly; send a megabyte a second at least")
    if size != file_bytes:
        came = f"{'over' if size > file_bytes else 'only'} {min(size, file_bytes):,} bytes came"
        raise InvalidArgument("part", came, f"send the {file_bytes:,} of file_bytes")
    if (found := hashed.hexdigest()) != digest:
        raise InvalidArgument(
            "register.digest", f"{digest[:12]} is not the sha256 of what came, {found[:12]}", "send the file of that digest"
        )
