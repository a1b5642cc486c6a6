"""Three tiers of adapters: device slots, host memory, the store. One load of an adapter, however many ask for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace

from services.executor.adapters.device import Device
from services.executor.adapters.host_memory import HostMemory
from services.executor.adapters.mixture import LoadedAdapter
from services.executor.adapters.slots import Acquired, SlotPool
from smoa.adapter import Adapter, decode
from smoa.errors import FailedPrecondition, InvalidArgument, NotFound
from smoa.store import AdapterStore

CONCURRENT_LOADS = 4
CONCURRENT_FETCHES = 8
"""Requests that bring their adapters to the host at a time: what they load before it is held is all that may exceed the host's budget."""


@dataclass(frozen=True)
class AdapterRef:
    """Exactly which weights a request wants, and how much of them."""

    adapter_id: str
    version: int
    digest: str
    weight: float

    @property
    def key(self) -> str:
        """Names the adapter in every tier. Id and version are part of it so that a wrong pairing with the digest is noticed."""
        return f"{self.adapter_id}:{self.version}:{self.digest}"


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


@dataclass
class ResidencyCounts:
    """What the tiers below the slots did (the slots count their own hits), and what loading from the store took."""

    host_hits: int = 0
    store_loads: int = 0
    load_us: int = 0


class Held:
    """A request's hold on its adapters in host memory, from before it is queued until they are in slots."""

    def __init__(self, sizes: dict[str, int], release: Callable[[dict[str, int]], None]) -> None:
        self.sizes, self._release = sizes, release
        """Slot key -> bytes it takes in a slot."""
        self._held = True

    def release(self) -> None:
        """Let go; again is fine."""
        if self._held:
            self._held = False
            self._release(self.sizes)


class Residency:
    """Owner of what the slots and the host tier hold.

    `check_and_convert` turns a file into host tensors in the model's dtype, checked against the model, so that an adapter that cannot
    run is refused before it takes a slot.
    """

    def __init__(
        self,
        pool: SlotPool,
        store: AdapterStore,
        check_and_convert: Callable[[Adapter], LoadedAdapter],
        device: Device,
        *,
        host_bytes: int,
    ) -> None:
        self.pool, self._store, self._convert, self._device = pool, store, check_and_convert, device
        self.host: HostMemory[_Loaded] = HostMemory(host_bytes)
        self.counts = ResidencyCounts()
        self._released = asyncio.Event()
        self._waiting = asyncio.Lock()  # first come first served: a large request is not overtaken for ever
        self._on_device: dict[str, _Loaded] = {}
        self._loading: dict[str, asyncio.Task[_Loaded]] = {}
        self._placing: dict[str, asyncio.Task[_Loaded]] = {}
        self._concurrent = asyncio.Semaphore(CONCURRENT_LOADS)
        self._fetching = asyncio.Semaphore(CONCURRENT_FETCHES)
        self._one_placement = asyncio.Lock()  # a slot that a late one gives back is there for the next

    async def fetch(self, tenant: str, *mixtures: Sequence[AdapterRef]) -> Held:
        """Bring the adapters of a request's mixtures to the host ahead of their slots, and hold them there.

        When others hold too much of the host's memory, it waits for them.

        Raises:
            NotFound: an adapter belongs to another tenant and is not shared.
            FailedPrecondition, InvalidArgument: an adapter cannot be loaded, or they do not fit the slots or the host together.
        """
        refs = list({ref.key: ref for mixture in mixtures for ref in mixture}.values())
        if not refs:
            return Held({}, lambda sizes: None)
        if all(self.host.is_held(ref.key) for ref in refs):  # waits for nobody: a pipeline's stages must not wait for those behind it
            held = [one for ref in refs if (one := self.host.get(ref.key)) is not None]
            sizes = self._checked(tenant, mixtures, held)
            assert self.host.hold({one.ref.key: (one, one.adapter.nbytes) for one in held}), "what is held has room"
            return Held(sizes, self._release)
        async with self._fetching:
            for ref in refs:
                self.counts.host_hits += ref.key not in self._on_device and ref.key in self.host
            loaded = await asyncio.gather(*(self._on_host(ref) for ref in refs))
            sizes = self._checked(tenant, mixtures, loaded)
            items = {one.ref.key: (one, one.adapter.nbytes) for one in loaded}
            if (total := sum(nbytes for _, nbytes in items.values())) > self.host.max_bytes:
                raise InvalidArgument(
                    "adapters",
                    f"take {total:,} bytes, the executor's host memory holds {self.host.max_bytes:,}",
                    "send fewer, or raise SMOA_EXECUTOR_HOST_BYTES",
                )
            async with self._waiting:
                while not self.host.hold(items):
                    self._released.clear()
                    await self._released.wait()
        return Held(sizes, self._release)

    def _checked(self, tenant: str, mixtures: Sequence[Sequence[AdapterRef]], loaded: Sequence[_Loaded]) -> dict[str, int]:
        """Slot bytes of adapters that the tenant may use and that fit, mixture by mixture."""
        for one in loaded:
            if one.owner != tenant and not one.shared:
                raise NotFound("adapter", one.ref.adapter_id)
        sizes = {one.ref.key: self._device.slot_bytes_of(one.adapter) for one in loaded}
        for mixture in mixtures:
            self._check_fits({ref.key: sizes[ref.key] for ref in mixture})
        return sizes

    def _release(self, sizes: dict[str, int]) -> None:
        self.host.release(sizes)
        self._released.set()

    def _check_fits(self, sizes: Mapping[str, int]) -> None:
        if len(sizes) > self.pool.slots:
            raise InvalidArgument("adapters", f"holds {len(sizes)}, the executor has {self.pool.slots} slots", "send fewer")
        if sum(sizes.values()) > self.pool.max_bytes:
            raise InvalidArgument(
                "adapters",
                f"take {sum(sizes.values()):,} bytes, the executor's slots hold {self.pool.max_bytes:,}",
                "send fewer, or raise SMOA_EXECUTOR_SLOT_BYTES",
            )

    def evict(self, acquired: Acquired) -> None:
        """Empty the slots that were taken for a request: before anything else is placed in them."""
        for key in acquired.evicted:
            if (gone := self._on_device.pop(key, None)) is not None:
                self._device.evict(gone.adapter)

    async def place(self, refs: Sequence[AdapterRef]) -> list[LoadedAdapter]:
        """Put leased adapters that the host holds on the device; returns them in the order of `refs`."""
        for ref in refs:
            if ref.key not in self._on_device and ref.key not in self._placing:
                self._placing[ref.key] = _owned(self._place(ref), f"place-{ref.key}")
        waits = {ref.key: self._placing[ref.key] for ref in refs if ref.key in self._placing}
        placed = {key: await asyncio.shield(task) for key, task in waits.items()}
        return [(placed.get(ref.key) or self._on_device[ref.key]).adapter for ref in refs]

    def discard(self, sizes: Mapping[str, int]) -> None:
        """Empty the slots of adapters whose load failed or was given up."""
        for key in sizes:
            if key not in self._on_device and key not in self._placing:
                self.pool.forget(key)

    def residents(self) -> list[Resident]:
        """What is in the slots, least recently used first."""
        pairs = [(self._on_device[key], leases) for key, leases in self.pool.residents() if key in self._on_device]
        return [Resident(one.ref, leases, one.adapter.nbytes) for one, leases in pairs]

    def hosted(self, count: int) -> list[AdapterRef]:
        """What is in host memory, most recently used first."""
        return [one.ref for one in self.host.latest(count)]

    async def close(self) -> None:
        """End the loads that nobody waits for any more."""
        tasks = [*self._loading.values(), *self._placing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _on_host(self, ref: AdapterRef) -> _Loaded:
        if loaded := self.host.get(ref.key):
            return loaded
        if ref.key not in self._loading:
            self._loading[ref.key] = _owned(self._load(ref), f"load-{ref.key}")
        return await asyncio.shield(self._loading[ref.key])

    async def _load(self, ref: AdapterRef) -> _Loaded:
        try:
            async with self._concurrent:
                began_ns = time.perf_counter_ns()
                try:
                    data = await self._store.get(ref.digest)
                except NotFound as error:
                    raise FailedPrecondition(
                        f"adapter: the weights of {ref.adapter_id} ({ref.digest[:12]}) are gone, it was purged or never pushed; route again"
                    ) from error
                adapter = await asyncio.to_thread(decode, data)
                if (adapter.manifest.adapter_id, adapter.manifest.version) != (ref.adapter_id, ref.version):
                    raise InvalidArgument(
                        "adapters.digest", f"{ref.digest[:12]} is not {ref.adapter_id} version {ref.version}", "send the decision unchanged"
                    )
                converted = await asyncio.to_thread(self._convert, adapter)
                loaded = _Loaded(ref, adapter.manifest.tenant, adapter.manifest.shared, converted)
                self.counts.store_loads += 1
                self.counts.load_us += (time.perf_counter_ns() - began_ns) // 1000
                self.host.keep(ref.key, loaded, converted.nbytes)
                return loaded
        finally:
            del self._loading[ref.key]

    async def _place(self, ref: AdapterRef) -> _Loaded:
        try:
            loaded = await self._on_host(ref)
            async with self._one_placement:
                placed = replace(loaded, adapter=await asyncio.to_thread(self._device.place, loaded.adapter))
                if ref.key in self.pool:
                    self._on_device[ref.key] = placed
                else:  # whoever asked has left, and the slot went to another
                    self._device.evict(placed.adapter)
            return placed
        finally:
            del self._placing[ref.key]

    def check_integrity(self) -> None:
        """Raise AssertionError if a tier holds what it does not account for."""
        self.pool.check_integrity()
        self.host.check_integrity()
        assert set(self._on_device) <= {key for key, _ in self.pool.residents()}, "an adapter is on the device without a slot"


def _owned(work: Coroutine[None, None, _Loaded], name: str) -> asyncio.Task[_Loaded]:
    """A task that may fail after everybody who waited for it has left."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
