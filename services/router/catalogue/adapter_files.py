"""Files of adapters in the store, as the registry needs them: read, checked against their base model, and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from mmap import ACCESS_READ, mmap
from typing import BinaryIO, Final

from services.router.catalogue.changes import now_us
from services.router.catalogue.records import AdapterRecord
from smoa.adapter import Adapter, decode, tenant_in
from smoa.errors import NotFound
from smoa.limits import UPLOAD_PART_BYTES
from smoa.store import AdapterStore

_READING: Final = 2  # files at a time: each is in memory as a whole


class AdapterFiles:
    """Those of one store."""

    def __init__(self, store: AdapterStore, check: Callable[[Adapter], None] = lambda _: None) -> None:
        """`check` raises InvalidArgument for an adapter that may not come in, though its file is good."""
        self._store, self._check, self._reading = store, check, asyncio.Semaphore(_READING)

    async def read(self, digest: str) -> AdapterRecord:
        """What the catalogue keeps of a file, which is checked: as a file, and against its base model.

        Raises:
            NotFound: there is none.
            InvalidArgument: it is damaged, too large, or does not fit its base model.
        """
        async with self._reading:
            data = await self._store.get(digest)
            return await asyncio.to_thread(self._described, digest, data)

    async def take(self, digest: str, file: BinaryIO, check: Callable[[AdapterRecord], None]) -> None:
        """Put a file on this machine, which is not empty, into the store, if it is good: as `read` checks it, and then `check`.

        Raises:
            InvalidArgument: it is damaged, or does not fit its base model.
            ResourceExhausted, Unavailable: the store does not take it.
        """
        async with self._reading:
            check(await asyncio.to_thread(lambda: self._described(digest, mmap(file.fileno(), 0, access=ACCESS_READ))))
        file.seek(0)
        await self._store.put_object(self._store.key(digest), file)

    async def parts(self, digest: str, tenant: str) -> AsyncIterator[bytes]:
        """A file, a megabyte at a time, if it is the tenant's: a record may name any.

        Raises:
            NotFound: it is not there, or another's.
        """
        first = True
        async with aclosing(self._store.parts(digest, UPLOAD_PART_BYTES)) as parts:
            async for part in parts:
                if first and tenant_in(part) != tenant:
                    raise NotFound("adapter file", digest, "push it again with `smoa adapter push`")
                first = False
                yield part

    async def tenant_of(self, digest: str) -> str:
        """Whose a file is; empty where it is not there, or does not say it."""
        with suppress(NotFound):
            async with aclosing(self._store.parts(digest, UPLOAD_PART_BYTES)) as parts:
                async for part in parts:
                    return tenant_in(part)
        return ""

    def _described(self, digest: str, data: bytes | mmap) -> AdapterRecord:
        adapter = decode(data)
        manifest, now = adapter.manifest, now_us()
        self._check(adapter)
        return AdapterRecord(
            adapter_id=manifest.adapter_id,
            version=manifest.version,
            digest=digest,
            tenant=manifest.tenant,
            name=manifest.name,
            kind=manifest.kind,
            granularity=adapter.granularity,
            specialization=manifest.specialization,
            base_model=manifest.base_model,
            rank=manifest.rank,
            modules=manifest.modules,
            parameter_count=adapter.parameter_count,
            file_bytes=len(data),
            tags=manifest.tags,
            shared=manifest.shared,
            parents=manifest.parents,
            created_at_us=now,
            updated_at_us=now,
        )

    async def absent(self, digests: Sequence[str]) -> set[str]:
        """Those of the files that are not in the store."""
        return await self._store.absent(digests)

    async def archive(self, digest: str) -> None:
        """Move a file to where it costs less; again is fine."""
        await self._store.archive(digest)

    async def bring_back(self, digest: str) -> None:
        """Put a file of there back where it was; again is fine."""
        await self._store.bring_back(digest)

    async def delete(self, digest: str) -> None:
        """Delete a file; again is fine."""
        await self._store.delete(digest)
