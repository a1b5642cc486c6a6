"""Three tiers of adapters: device slots, host memory, the store. A request's `AdapterLease` owns its adapters from the fetch to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from services.executor.adapters.device import Device
from services.executor.adapters.host_memory import HostMemory
from services.executor.adapters.mixture import LoadedAdapter
from services.executor.adapters.slots import Acquired, SlotPool
from smoa.adapter import Adapter, decode
from smoa.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from smoa.store import AdapterStore

T = TypeVar("T")
CONCURRENT_LOADS = 4
CONCURRENT_FETCHES = 8
"""Requests that bring adapters to the host at a time. What they load before it is held is all that may exceed the host's budget; none
has more than the budget itself."""
MOST_WAIT_FOR_BASES_S = 60.0
"""Longer ones are told to come again: finding the bases takes minutes for a large model."""


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
    owner: str
    """Its tenant."""
    shared: bool
    """Whether others may use it."""


@dataclass(frozen=True)
class _Known:
    """What is known of an adapter that was loaded, wherever its weights are now."""

    ref: AdapterRef
    owner: str
    shared: bool
    slot_bytes: int


@dataclass
class _Loaded:
    known: _Known
    adapter: LoadedAdapter
    was_placed: bool
    """Whether it has been on the device: the next time it is the host that had it, not the store."""


@dataclass
class LoadCounts:
    """What the tiers below the slots did (the slots count their own hits), and what loading from the store took.

    `host_hits`: adapters that came into a slot again without the store.
    """

    host_hits: int = 0
    store_loads: int = 0
    load_us: int = 0


class AdapterLease:
    """A request's adapters: held in host memory from the fetch on; once acquired and placed, in slots."""

    def __init__(self, tiers: AdapterTiers, known: Sequence[_Known]) -> None:
        self._tiers, self._held = tiers, [one.ref.key for one in known]
        self.sizes = {one.ref.key: one.slot_bytes for one in known}
        """Slot key -> bytes it takes in a slot."""
        self._refs = [one.ref for one in known]
        self._acquired: Acquired | None = None

    @property
    def missing(self) -> int:
        """Adapters that were in no slot when theirs were acquired."""
        return len(self._acquired.missing) if self._acquired else 0

    def acquire(self) -> bool:
        """Take slots for all of them at once; False, and nothing is taken, while others need too much."""
        self._acquired = self._tiers.slots.acquire(self.sizes)
        if self._acquired is None:
            return False
        self._tiers._evict(self._acquired.evicted)
        return True

    async def place(self) -> None:
        """Put them on the device.

        Raises:
            FailedPrecondition: the device has no room for one.
        """
        await self._tiers._place(self._refs)
        self._let_go_of_host()

    def release(self) -> None:
        """Let go of all that it has; again is fine."""
        self._let_go_of_host()
        if self._acquired is not None:
            self._acquired = None
            self._tiers.slots.release(self.sizes)
            self._tiers._forget_unplaced(self.sizes)

    def _let_go_of_host(self) -> None:
        held, self._held = self._held, []
        self._tiers._release_host(held)


class AdapterTiers:
    """Owner of what the slots and the host hold.

    `check_and_convert` turns a file into host tensors in the model's dtype, checked against the model, so that an adapter that cannot
    run is refused before it takes a slot.
    """

    def __init__(
        self,
        slots: SlotPool,
        store: AdapterStore,
        check_and_convert: Callable[[Adapter], LoadedAdapter],
        device: Device,
        *,
        host_bytes: int,
        load_timeout_s: float,
    ) -> None:
        self.slots, self._store, self._convert, self._device = slots, store, check_and_convert, device
        self._load_timeout_s = load_timeout_s
        self.host: HostMemory[_Loaded] = HostMemory(host_bytes)
        self.counts = LoadCounts()
        self._released = asyncio.Event()
        self._waiting = asyncio.Lock()  # first come first served: a large request is not overtaken for ever
        self._placed: dict[str, _Known] = {}
        self._loading: dict[str, asyncio.Task[_Loaded]] = {}
        self._placing: dict[str, asyncio.Task[None]] = {}
        self._bases_are_there = False
        self._finding: dict[str, asyncio.Task[None]] = {}
        self._concurrent = asyncio.Semaphore(CONCURRENT_LOADS)
        self._fetching = asyncio.Semaphore(CONCURRENT_FETCHES)
        self._one_placement = asyncio.Lock()  # a slot that a late one gives back is there for the next

    async def lease(self, tenant: str, *mixtures: Sequence[AdapterRef]) -> AdapterLease:
        """Bring the adapters of a request's mixtures to the host ahead of their slots, and hold them there.

        What is in a slot or in host memory is not asked of the store, so one that hangs stops nobody whose adapters are here. When others
        hold too much of the host's memory, it waits for them.

        Raises:
            NotFound: an adapter belongs to another tenant and is not shared.
            FailedPrecondition, InvalidArgument: an adapter cannot be loaded, or they do not fit the slots or the host together.
            Unavailable: they are not here in time.
        """
        refs = list({ref.key: ref for mixture in mixtures for ref in mixture}.values())
        items = await self._brought(tenant, mixtures, refs)
        # What is held already takes no room, so it waits for nobody: a pipeline's stages must not wait for those behind it.
        at_once = all(self.host.is_held(key) for key in items) or not self._waiting.locked()
        if not (at_once and self.host.hold(items)):
            nbytes = sum(size for _, size in items.values())
            items.clear()  # its turn may be far: others may have the memory
            async with self._waiting:
                while not self.host.reserve(nbytes):
                    self._released.clear()
                    await self._released.wait()
            try:  # not within its turn: a store that hangs would hold up those behind it
                items = await self._brought(tenant, mixtures, refs)
            finally:
                self.host.unreserve(nbytes)
                self._released.set()
            held = self.host.hold(items)
            assert held, "the room was kept"
        return AdapterLease(self, [one.known for one, _ in items.values()])

    async def _brought(
        self, tenant: str, mixtures: Sequence[Sequence[AdapterRef]], refs: Sequence[AdapterRef]
    ) -> dict[str, tuple[_Loaded, int]]:
        """Adapters in host memory, by key with their bytes, in the order asked for: not held yet, so others may take their place."""
        here = {ref.key: one for ref in refs if (one := await self._here(ref)) is not None}
        if len(here) < len(refs):
            begun = False
            try:
                async with asyncio.timeout(self._load_timeout_s), self._fetching:
                    begun = True
                    here = await self._fetched(tenant, mixtures, refs)
            except TimeoutError as error:
                if not begun:
                    raise Unavailable(
                        f"executor: other requests' adapters were still being brought after {self._load_timeout_s:g} s; retry", 1.0
                    ) from error
                raise self._late(next((ref for ref in refs if ref.key not in self.host), refs[0])) from error
        items = self._checked(tenant, mixtures, here)  # first: who is refused waits for no bases
        if any(one.adapter.cores for one in here.values()):
            await self._bases()
        return items

    async def _fetched(self, tenant: str, mixtures: Sequence[Sequence[AdapterRef]], refs: Sequence[AdapterRef]) -> dict[str, _Loaded]:
        """All of them, side by side; what is wrong with one, or with those there are together, is told before the rest is read."""
        tasks = {ref.key: asyncio.create_task(self._on_host(ref)) for ref in refs}
        try:
            here: dict[str, _Loaded] = {}
            for ended in asyncio.as_completed(tasks.values()):
                one = await ended
                here[one.known.ref.key] = one
                self._checked(tenant, mixtures, here)
            return {ref.key: here[ref.key] for ref in refs}
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _checked(
        self, tenant: str, mixtures: Sequence[Sequence[AdapterRef]], here: Mapping[str, _Loaded]
    ) -> dict[str, tuple[_Loaded, int]]:
        """What is to be held in host memory, with its bytes: that the tenant may use, and that fits the slots mixture by mixture."""
        for one in here.values():
            if one.known.owner != tenant and not one.known.shared:
                raise NotFound("adapter", one.known.ref.adapter_id)
        for mixture in mixtures:
            if len(mixture) > self.slots.slots:
                raise InvalidArgument("adapters", f"holds {len(mixture)}, the executor has {self.slots.slots} slots", "send fewer")
            if sum(here[ref.key].known.slot_bytes for ref in mixture if ref.key in here) > self.slots.max_bytes:
                raise InvalidArgument(
                    "adapters",
                    f"take more than the {self.slots.max_bytes:,} bytes of the executor's slots",
                    "send fewer, or raise SMOA_EXECUTOR_SLOT_BYTES",
                )
        if sum(one.adapter.nbytes for one in here.values()) > self.host.max_bytes:
            raise InvalidArgument(
                "adapters",
                f"take more than the {self.host.max_bytes:,} bytes of the executor's host memory",
                "send fewer, or raise SMOA_EXECUTOR_HOST_BYTES",
            )
        return {key: (one, one.adapter.nbytes) for key, one in here.items()}

    async def _bases(self) -> None:
        """Have the device ready for LoRA-XS adapters: before one has a slot, so that whoever needs none waits for nothing."""
        if self._bases_are_there:
            return
        try:
            async with asyncio.timeout(MOST_WAIT_FOR_BASES_S):
                await _shared(self._finding, "bases", partial(asyncio.to_thread, self._device.add_bases))
        except TimeoutError as error:
            raise Unavailable(
                "executor: is finding the LoRA-XS bases of its base model, once for each machine; retry in a minute", 60.0
            ) from error
        self._bases_are_there = True

    def _late(self, ref: AdapterRef) -> Unavailable:
        return Unavailable(f"store: {self._store.location} did not give {ref.adapter_id} in {self._load_timeout_s:g} s; retry", 1.0)

    def residents(self) -> list[Resident]:
        """What is in the slots, least recently used first."""
        placed = [(self._placed[key], leases) for key, leases in self.slots.residents() if key in self._placed]
        return [Resident(one.ref, leases, one.slot_bytes, one.owner, one.shared) for one, leases in placed]

    def hosted(self, count: int) -> list[AdapterRef]:
        """What is in host memory, most recently used first."""
        return [one.known.ref for one in self.host.latest(count)]

    async def close(self) -> None:
        """End the loads that nobody waits for any more."""
        tasks = [*self._loading.values(), *self._placing.values(), *self._finding.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _here(self, ref: AdapterRef) -> _Loaded | None:
        """One that is in host memory, or in a slot only, out of which it is copied.

        Nothing is written to the device meanwhile, so that what is there stays whole even if the slot is given up.
        """
        if ref.key in self.host or ref.key not in self._placed:
            return self.host.get(ref.key)
        async with self._one_placement:
            if ref.key in self.host or (known := self._placed.get(ref.key)) is None:
                return self.host.get(ref.key)
            try:
                adapter = await asyncio.to_thread(self._device.read, ref.key)
            except KeyError:  # the slot was given up before the thread looked
                return None
            return self._kept(_Loaded(known, adapter, was_placed=True))

    async def _on_host(self, ref: AdapterRef) -> _Loaded:
        while (here := await self._here(ref)) is None:
            if ref.key not in self._loading:
                # The place is taken by who waits and given back by the load: what nobody waits for any more is not begun.
                await self._concurrent.acquire()
                if ref.key in self._loading or ref.key in self.host or ref.key in self._placed:
                    self._concurrent.release()
                    continue
            return await _shared(self._loading, ref.key, partial(self._load, ref), self._concurrent.release)
        return here

    async def _load(self, ref: AdapterRef) -> _Loaded:
        began_ns = time.perf_counter_ns()
        try:
            async with asyncio.timeout(self._load_timeout_s):
                data = await self._store.get(ref.digest)
        except NotFound as error:
            raise FailedPrecondition(
                f"adapter: the weights of {ref.adapter_id} ({ref.digest[:12]}) are gone, it was purged or never pushed; route again"
            ) from error
        except TimeoutError as error:
            raise self._late(ref) from error
        adapter = await asyncio.to_thread(decode, data)
        if (adapter.manifest.adapter_id, adapter.manifest.version) != (ref.adapter_id, ref.version):
            raise InvalidArgument(
                "adapters.digest", f"{ref.digest[:12]} is not {ref.adapter_id} version {ref.version}", "send the decision unchanged"
            )
        converted = await asyncio.to_thread(self._convert, adapter)
        known = _Known(ref, adapter.manifest.tenant, adapter.manifest.shared, self._device.slot_bytes_of(converted))
        self.counts.store_loads += 1
        self.counts.load_us += (time.perf_counter_ns() - began_ns) // 1000
        return self._kept(_Loaded(known, converted, was_placed=False))

    def _kept(self, loaded: _Loaded) -> _Loaded:
        self.host.keep(loaded.known.ref.key, loaded, loaded.adapter.nbytes)
        return loaded

    async def _place(self, refs: Sequence[AdapterRef]) -> None:
        missing = [ref for ref in refs if ref.key not in self._placed]
        await asyncio.gather(*(_shared(self._placing, ref.key, partial(self._place_one, ref)) for ref in missing))

    async def _place_one(self, ref: AdapterRef) -> None:
        loaded = await self._on_host(ref)
        async with self._one_placement:
            await asyncio.to_thread(self._device.place, ref.key, loaded.adapter)
            self.counts.host_hits += loaded.was_placed
            loaded.was_placed = True
            if ref.key in self.slots:
                self._placed[ref.key] = loaded.known
            else:  # whoever asked has left, and the slot went to another
                self._device.evict(ref.key)

    def _evict(self, keys: Sequence[str]) -> None:
        """Empty slots that were taken for others: before anything else is placed in them."""
        for key in keys:
            if self._placed.pop(key, None) is not None:
                self._device.evict(key)

    def _forget_unplaced(self, keys: Iterable[str]) -> None:
        """Empty the slots of adapters whose load failed or was given up."""
        for key in keys:
            if key not in self._placed and key not in self._placing:
                self.slots.forget(key)

    def _release_host(self, keys: Sequence[str]) -> None:
        self.host.release(keys)
        self._released.set()

    def check_integrity(self) -> None:
        """Raise AssertionError if a tier holds what it does not account for."""
        self.slots.check_integrity()
        self.host.check_integrity()
        assert set(self._placed) <= {key for key, _ in self.slots.residents()}, "an adapter is on the device without a slot"


async def _shared(
    running: dict[str, asyncio.Task[T]], key: str, work: Callable[[], Coroutine[None, None, T]], after: Callable[[], None] = lambda: None
) -> T:
    """One task for all who want the same; it goes on, and may fail, after everybody who waited for it has left. At last `after`."""
    if key not in running:
        task = running[key] = asyncio.create_task(work(), name=key)

        def ended(task: asyncio.Task[T]) -> None:
            del running[key]
            after()
            if not task.cancelled():
                task.exception()

        task.add_done_callback(ended)
    return await asyncio.shield(running[key])
