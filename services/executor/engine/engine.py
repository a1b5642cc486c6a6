"""Our own engine: a loop of three verbs, schedule, run, take, over one batch in which every sequence has its own mixture.

The backend runs on one worker thread; the loop around it owns every decision. Nothing outside this port may assume torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeAlias

from services.executor.adapters.leases import AdapterRef, AdapterTiers
from services.executor.backends.port import BLOCK_TOKENS, Backend, MixtureT
from services.executor.engine.blocks import BlockPool
from services.executor.engine.port import MAX_HOSTED, EngineState, Piece, StageRequest
from services.executor.engine.runner import run_step
from services.executor.engine.sampling import Sampler, TokenPicker
from services.executor.engine.scheduler import Scheduler
from services.executor.engine.sequences import Generating, Reading, Sequence
from services.executor.engine.text import Answer
from services.executor.models.prompt import PromptTokenizer
from smoa.errors import ResourceExhausted, Unavailable

FAILED: Final = "executor: its engine does not run; retry on another"
MAX_FAILED_STEPS: Final = 3
"""Steps in a row that may fail: more is not any request's fault, and who started the process should start another."""
CONCURRENT_READINGS: Final = 8
"""Completions of one request that are scored at once."""
_log = logging.getLogger(__name__)


class BatchingEngine(Generic[MixtureT]):
    """`Engine` by continuous batching: sequences join and leave at any step, each with its own mixture."""

    def __init__(
        self,
        backend: Backend[MixtureT],
        tokenizer: PromptTokenizer,
        adapters: AdapterTiers,
        *,
        rows: int,
        step_tokens: int,
        max_waiting: int,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        """`broken` is called once when the engine cannot go on."""
        self._backend, self._tokenizer, self._adapters, self._broken = backend, tokenizer, adapters, broken
        self.context, self.vocabulary, self.rows = backend.context, backend.config.vocabulary, rows
        self._steps = self._step_tokens = self._failed_steps = 0
        self._scheduler: Scheduler[Sequence[MixtureT]] = Scheduler(
            rows=rows, blocks=BlockPool(backend.blocks), block_tokens=BLOCK_TOKENS, step_tokens=step_tokens, max_waiting=max_waiting
        )
        self._base = backend.mix([])
        self._picker = TokenPicker(rows)
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "engine")
        self._preparing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See `Engine`."""
        self._task = asyncio.create_task(self._loop(), name="engine")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The loop is not meant to end: when it does, nobody may wait for it, and the process is of no more use."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.critical("the engine's loop failed", exc_info=error)
        for sequence in self._scheduler.jobs:
            self._fail(sequence, Unavailable(FAILED, 1.0))
        self._broken()

    async def stop(self) -> None:
        """See `Engine`."""
        tasks = [*self._preparing, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sequence in self._scheduler.jobs:
            sequence.fail(Unavailable("executor: is shutting down; retry on another", 0.5))
        await self._adapters.close()
        self._thread.shutdown()

    @asynccontextmanager
    async def hold(self, tenant: str, mixtures: Many[Many[AdapterRef]]) -> AsyncIterator[None]:
        """See `Engine`."""
        lease = await self._adapters.lease(tenant, *mixtures)
        try:
            yield
        finally:
            lease.release()

    async def run_stage(self, stage: StageRequest) -> AsyncGenerator[Piece, None]:
        """See `Engine`."""
        arrived_ns = time.perf_counter_ns()
        refs = _in_order(stage.adapters)
        sequence = Generating[MixtureT](
            tenant=stage.tenant,
            tokens=list(stage.prompt),
            lease=await self._adapters.lease(stage.tenant, refs),
            refs=refs,
            mixture_key=_mixture_key(stage.tenant, refs),
            sampler=Sampler(stage.sampling, stage.prompt),
            answer=Answer(self._tokenizer.text, stage.stop, () if stage.sampling.ignore_eos else self._tokenizer.eos_ids, stage.max_tokens),
            arrived_ns=arrived_ns,
            ended=stage.ended,
        )
        async with self._submitted(sequence):
            while True:
                piece = await sequence.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.usage.finish:
                    return

    async def score(self, tenant: str, prompt: Many[int], completions: Many[Many[int]], mixture: Many[AdapterRef]) -> list[list[float]]:
        """See `Engine`. The first completion leaves the prompt in the cache for the others."""
        refs, most = _in_order(mixture), asyncio.Semaphore(CONCURRENT_READINGS)

        async def read(completion: Many[int]) -> list[float]:
            async with most:
                sequence = Reading[MixtureT](
                    tenant=tenant,
                    tokens=[*prompt, *completion[:-1]],
                    last=completion[-1],
                    wanted_from=len(prompt) - 1,
                    lease=await self._adapters.lease(tenant, refs),
                    refs=refs,
                    mixture_key=_mixture_key(tenant, refs),
                )
                async with self._submitted(sequence):
                    return await sequence.done

        others: list[asyncio.Task[list[float]]] = []
        async with self.hold(tenant, [refs]):
            try:
                first = await read(completions[0])
                others += [asyncio.create_task(read(completion)) for completion in completions[1:]]
                return [first, *await asyncio.gather(*others)]
            finally:
                for task in others:
                    task.cancel()

    def make_room(self, tenant: str, count: int) -> bool:
        """See `Engine`."""
        displaced = self._scheduler.displaceable(tenant, count)
        for sequence in displaced:
            self._fail(sequence, ResourceExhausted(f"queue: is full, and {sequence.tenant} has the most in it", "retry with backoff"))
        return bool(displaced)

    def state(self) -> EngineState:
        """See `Engine`."""
        scheduler, slots, host, counts = self._scheduler, self._adapters.slots, self._adapters.host, self._adapters.counts
        return EngineState(
            rows=self.rows,
            running=len(scheduler.running),
            waiting=scheduler.waiting,
            slots=slots.slots,
            slots_used=slots.used,
            slot_bytes=slots.used_bytes,
            residents=self._adapters.residents(),
            host_bytes=host.used_bytes,
            hosted=self._adapters.hosted(MAX_HOSTED),
            cache_blocks=scheduler.blocks.blocks,
            cache_blocks_free=scheduler.blocks.available,
            steps=self._steps,
            step_tokens=self._step_tokens,
            prefix_lookups=scheduler.prefix_lookups,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            adapter_hits=slots.hits,
            adapter_misses=slots.misses,
            slot_evictions=slots.evictions,
            host_hits=counts.host_hits,
            host_evictions=host.evictions,
            store_loads=counts.store_loads,
            store_load_us=counts.load_us,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if anything is lost, shared or left over."""
        self._scheduler.check_integrity()
        self._adapters.check_integrity()

    @asynccontextmanager
    async def _submitted(self, sequence: Sequence[MixtureT]) -> AsyncIterator[None]:
        """Have a sequence run; leaving frees all it holds."""
        try:
            if self._task is None or self._task.done():
                raise Unavailable(FAILED, 1.0)
            self._scheduler.add(sequence)
            self._work.set()
            yield
        finally:
            self._remove(sequence)

    async def _loop(self) -> None:
        while True:
            for sequence in self._scheduler.admit():
                self._admitted(sequence)
            plan = self._scheduler.plan()
            if not plan:
                self._work.clear()
                await self._work.wait()
                continue
            await self._step(plan)
            await asyncio.sleep(0)  # let readers leave before the next step

    async def _step(self, plan: list[tuple[Sequence[MixtureT], int]]) -> None:
        self._steps, self._step_tokens = self._steps + 1, self._step_tokens + sum(count for _, count in plan)
        try:
            works = [sequence.work(count) for sequence, count in plan]
            results = await asyncio.get_running_loop().run_in_executor(self._thread, run_step, self._backend, self._picker, works)
        except Exception as error:
            self._failed_steps += 1
            if self._failed_steps >= MAX_FAILED_STEPS:
                raise
            _log.exception("a model step failed")
            for sequence, _ in plan:
                self._fail(sequence, Unavailable(f"executor: the model step failed ({type(error).__name__}); retry", 1.0))
            return
        self._failed_steps = 0
        for (sequence, count), result in zip(plan, results, strict=True):
            if not self._scheduler.is_running(sequence):
                continue  # its reader left
            if result.error is not None:
                self._fail(sequence, result.error)
                continue
            self._scheduler.computed(sequence, count)
            if sequence.take(result, sequence.computed):
                self._remove(sequence)  # now, however slow its reader is

    def _admitted(self, sequence: Sequence[MixtureT]) -> None:
        sequence.admitted_ns = time.perf_counter_ns()
        if not sequence.refs:
            sequence.mixture, sequence.ready = self._base, True
            return
        task = asyncio.create_task(self._prepare(sequence), name="prepare")
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def _prepare(self, sequence: Sequence[MixtureT]) -> None:
        """Put a sequence's adapters on the device and mix them, while the others decode."""
        if not self._scheduler.is_admitted(sequence):
            return  # it left before its turn
        try:
            await sequence.lease.place()
            sequence.mixture = await asyncio.to_thread(self._backend.mix, [(ref.key, ref.weight) for ref in sequence.refs])
        except Exception as error:  # noqa: BLE001  not passed over: it goes to the request that it belongs to, which raises it
            self._fail(sequence, error)
            return
        sequence.ready = True
        self._work.set()

    def _fail(self, sequence: Sequence[MixtureT], error: Exception) -> None:
        sequence.fail(error)
        self._remove(sequence)

    def _remove(self, sequence: Sequence[MixtureT]) -> None:
        self._scheduler.remove(sequence)
        sequence.ended()
        self._work.set()  # others may fit now


AnyEngine: TypeAlias = BatchingEngine[Any]


def _in_order(refs: Many[AdapterRef]) -> tuple[AdapterRef, ...]:
    """A mixture is the same whatever the order of its adapters: the same sum, and the same prefixes in the cache."""
    return tuple(sorted(refs, key=lambda ref: ref.key))


def _mixture_key(tenant: str, refs: Many[AdapterRef]) -> bytes:
    return hashlib.blake2b(repr((tenant, [(ref.key, ref.weight) for ref in refs])).encode(), digest_size=16).digest()
