"""Gets adapters into slots and keeps them there while they are leased: lazy, one load for all who wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.executor.mixture import LoadedAdapter
from services.executor.slots import SlotPool
from smoa.adapter import Adapter, decode
from smoa.errors import FailedPrecondition, InvalidArgument, NotFound
from smoa.store import AdapterStore


@dataclass(frozen=True)
class AdapterRef:
    """Exactly which weights a request wants, and how much of them."""

    adapter_id: str
    version: int
    digest: str
    weight: float


@dataclass(frozen=True)
class Lease:
    """Loaded adapters in the order asked for; they stay until the lease ends."""

    adapters: tuple[LoadedAdapter, ...]
    hits: int
    misses: int


@dataclass(frozen=True)
class Resident:
    """An adapter in a slot."""

    ref: AdapterRef
    leases: int
    nbytes: int


@dataclass(frozen=True)
class _Loaded:
    ref: AdapterRef
    owner: str
    shared: bool
    adapter: LoadedAdapter


class Residency:
    """Owner of the slots' contents. `place` turns a file into device tensors (and checks it against the model)."""

    def __init__(self, pool: SlotPool, store: AdapterStore, place: Callable[[Adapter], LoadedAdapter]) -> None:
        self.pool, self._store, self._place = pool, store, place
        self._loaded: dict[str, _Loaded] = {}
        self._loading: dict[str, asyncio.Task[_Loaded]] = {}
        self._released = asyncio.Condition()

    @asynccontextmanager
    async def lease(self, tenant: str, refs: Sequence[AdapterRef]) -> AsyncIterator[Lease]:
        """Hold the adapters; waits while every slot is leased (the caller's deadline cancels the wait).

        Raises:
            NotFound: an adapter belongs to another tenant and is not shared.
            FailedPrecondition, InvalidArgument: an adapter cannot be loaded.
        """
        keys = [self._key(ref) for ref in refs]
        if len(set(keys)) > self.pool.slots:
            raise InvalidArgument("adapters", f"holds {len(set(keys))}, the executor has {self.pool.slots} slots", "send fewer")
        async with self._released:
            while (acquired := self.pool.acquire(keys)) is None:
                await self._released.wait()
        for key in acquired.evicted:
            self._loaded.pop(key, None)
        by_key = dict(zip(keys, refs, strict=True))
        try:
            for key in acquired.missing:
                self._loading[key] = asyncio.create_task(self._load(key, by_key[key]), name=f"load-{key}")
            loaded = [self._loaded[key] if key in self._loaded else await asyncio.shield(self._loading[key]) for key in keys]
            for one in loaded:
                if one.owner != tenant and not one.shared:
                    raise NotFound("adapter", one.ref.adapter_id)
            misses = len(acquired.missing)
            yield Lease(tuple(one.adapter for one in loaded), len(acquired.slots) - misses, misses)
        finally:
            self.pool.release(keys)
            for key in acquired.slots:
                if key not in self._loaded and key not in self._loading:
                    self.pool.forget(key)
            async with self._released:
                self._released.notify_all()

    def residents(self) -> list[Resident]:
        """What is in the slots, least recently used first."""
        pairs = [(self._loaded[key], leases) for key, leases in self.pool.residents() if key in self._loaded]
        return [Resident(one.ref, leases, one.adapter.nbytes) for one, leases in pairs]

    async def close(self) -> None:
        """End the loads that nobody waits for any more."""
        for task in list(self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)

    @staticmethod
    def _key(ref: AdapterRef) -> str:
        # The digest names the weights; id and version are part of the key so that a wrong pairing is noticed at every load.
        return f"{ref.adapter_id}:{ref.version}:{ref.digest}"

    async def _load(self, key: str, ref: AdapterRef) -> _Loaded:
        try:
            try:
                data = await self._store.get(ref.digest)
            except NotFound as error:
                raise FailedPrecondition(
                    f"adapter: the weights of {ref.adapter_id} ({ref.digest[:12]}) are gone, it was purged or never pushed; route again"
                ) from error
            adapter = await asyncio.to_thread(decode, data, ref.digest, self._store.max_bytes)
            if (adapter.manifest.adapter_id, adapter.manifest.version) != (ref.adapter_id, ref.version):
                raise InvalidArgument(
                    "adapters.digest", f"{ref.digest[:12]} is not {ref.adapter_id} version {ref.version}", "send the decision unchanged"
                )
            placed = await asyncio.to_thread(self._place, adapter)
            loaded = self._loaded[key] = _Loaded(ref, adapter.manifest.tenant, adapter.manifest.shared, placed)
            return loaded
        finally:
            del self._loading[key]
