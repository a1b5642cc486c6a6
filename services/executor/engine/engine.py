"""The engine: a loop of three verbs, schedule, run, postprocess, over one batch in which every row has its own mixture.

The backend runs on one worker thread; the loop around it owns every decision. Nothing outside this port may assume torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from services.executor.adapters.mixture import Mixture
from services.executor.adapters.residency import AdapterRef, Held, Residency
from services.executor.backends.port import BLOCK_TOKENS, Backend, Chunk
from services.executor.engine.blocks import BlockPool
from services.executor.engine.pipeline import Finish, Generation, GenerationUsage, Piece, Stage, run_pipeline
from services.executor.engine.runner import Result, Sampler, Work, run_step
from services.executor.engine.scheduler import Job, Scheduler
from services.executor.engine.text import TextAssembler
from services.executor.models.prompt import Message, PromptTokenizer
from smoa.errors import InvalidArgument, ResourceExhausted, Unavailable

FAILED = "executor: its engine does not run; retry on another"
_log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class _Sequence(Job):
    refs: tuple[AdapterRef, ...]
    sampler: Sampler | None = None
    scored: list[int] = field(default_factory=list)
    """The whole text of a sequence that is only read; log-probabilities are wanted from `scored_from` on."""
    scored_from: int = 0
    mixture: Mixture | None = None
    held: Held | None = None
    results: asyncio.Queue[Result | Exception] = field(default_factory=asyncio.Queue)  # bounded by the sequence's tokens
    admitted_ns: int = 0

    def work(self, count: int) -> Work:
        """The next `count` tokens, as the runner takes them."""
        assert self.mixture is not None
        end = self.computed + count
        targets = self.scored[max(self.computed + 1, self.scored_from) : end + 1]
        sampler = self.sampler if end == len(self.tokens) else None
        outputs = len(targets) or int(sampler is not None)
        return Work(Chunk(self.tokens[self.computed : end], self.computed, self.blocks, self.mixture, outputs), sampler, targets)


class Engine:
    """Continuous batching: sequences join and leave at any step, each with its own mixture."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: PromptTokenizer,
        residency: Residency,
        *,
        rows: int,
        step_tokens: int,
        max_waiting: int,
        max_tokens: int,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._broken = broken
        self._backend, self.tokenizer, self.residency = backend, tokenizer, residency
        # In flight is the one bound: a burst may all be waiting for a moment, with rows still free.
        self._max_in_flight, self._in_flight = rows + max_waiting, 0
        self.steps = self.step_tokens = 0
        self.scheduler: Scheduler[_Sequence] = Scheduler(
            rows=rows,
            slots=residency.pool,
            blocks=BlockPool(backend.blocks),
            block_tokens=BLOCK_TOKENS,
            step_tokens=step_tokens,
            max_waiting=self._max_in_flight,
        )
        self._max_tokens = max_tokens
        self._base = backend.mix([])
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "engine")
        self._preparing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin the loop."""
        self._task = asyncio.create_task(self._loop(), name="engine")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The loop is not meant to end: when it does, nobody may wait for it, and the process is of no more use."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.critical("the engine's loop failed", exc_info=error)
        for sequence in self.scheduler.jobs:
            self._fail(sequence, Unavailable(FAILED, 1.0))
        self._broken()

    async def stop(self) -> None:
        """End the loop; requests in flight get UNAVAILABLE."""
        tasks = [*self._preparing, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sequence in self.scheduler.jobs:
            sequence.results.put_nowait(Unavailable("executor: is shutting down; retry on another", 0.5))
        await self.residency.close()
        self._thread.shutdown()

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Stream a completion; of a pipeline, the last stage's. Closing the iterator frees row, cache and leases at once.

        Raises:
            InvalidArgument: a stage's input and max_tokens do not fit the context.
            FailedPrecondition: a stage gave no text for the next.
            ResourceExhausted: too many requests are in flight.
        """
        async with self._place(), aclosing(run_pipeline(self, generation)) as pieces:
            async for piece in pieces:
                yield piece

    async def run_stage(self, generation: Generation, stage: Stage, prompt: list[int], stop: Sequence[str]) -> AsyncGenerator[Piece, None]:
        """Stream one stage's text; the last piece carries its usage."""
        arrived_ns = time.perf_counter_ns()
        sequence = _Sequence(
            tenant=generation.tenant,
            tokens=prompt,
            max_new=stage.max_tokens,
            mixture_key=_mixture_key(generation.tenant, stage.adapters),
            refs=stage.adapters,
            sampler=Sampler(generation.sampling),
        )
        assembler = TextAssembler(self.tokenizer.text, stop)
        tokens, first_ns = 0, 0
        async with self._submitted(sequence):
            while True:
                token = (await self._result(sequence)).token
                assert token is not None, "a sampler picks a token"
                tokens += 1
                first_ns = first_ns or time.perf_counter_ns()
                text, finish = self._finish(assembler, token, last=tokens == stage.max_tokens)
                if finish is None:
                    yield Piece(text, 1)
                    continue
                misses = len(sequence.acquired.missing) if sequence.acquired else 0
                usage = GenerationUsage(
                    prompt_tokens=sequence.prompt_tokens,
                    completion_tokens=tokens,
                    queue_us=(sequence.admitted_ns - arrived_ns) // 1000,
                    first_token_us=(first_ns - arrived_ns) // 1000,
                    total_us=(time.perf_counter_ns() - arrived_ns) // 1000,
                    adapter_hits=len(stage.adapters) - misses,
                    adapter_misses=misses,
                    finish=finish,
                )
                yield Piece(text, 1, usage)
                return

    async def score(self, tenant: str, messages: Sequence[Message], completion: str, adapters: Sequence[AdapterRef]) -> list[float]:
        """Log-probabilities of the completion's tokens under a mixture.

        Raises:
            InvalidArgument: an empty completion, or more tokens than the context.
            ResourceExhausted: too many requests are in flight.
        """
        before, after = self.tokenizer.prompt_ids(messages), self.tokenizer.answer_ids(messages, completion)
        if not after:
            raise InvalidArgument("completion", "has no token", "send the text to score")
        if len(before) + len(after) > self._backend.context:
            raise InvalidArgument(
                "prompt", f"and completion have {len(before) + len(after)} tokens, over {self._backend.context}", "shorten them"
            )
        whole = before + after
        sequence = _Sequence(tenant=tenant, tokens=whole[:-1], max_new=0, refs=tuple(adapters), scored=whole, scored_from=len(before))
        logprobs: list[float] = []
        async with self._place(), self._submitted(sequence):
            while len(logprobs) < len(after):
                logprobs += (await self._result(sequence)).logprobs
        return logprobs

    def checked_prompt(self, field: str, messages: Sequence[Message], max_tokens: int) -> list[int]:
        """A stage's input as the model sees it.

        Raises:
            InvalidArgument: it and max_tokens do not fit the context.
        """
        if not 1 <= max_tokens <= self._max_tokens:
            raise InvalidArgument("max_tokens", f"{max_tokens} is outside 1..{self._max_tokens}", "ask for fewer tokens")
        prompt = self.tokenizer.prompt_ids(messages)
        if len(prompt) + max_tokens > self._backend.context:
            raise InvalidArgument(
                field,
                f"has {len(prompt)} tokens, with max_tokens over the context of {self._backend.context}",
                "shorten it or lower max_tokens",
            )
        return prompt

    def _finish(self, assembler: TextAssembler, token: int, *, last: bool) -> tuple[str, Finish | None]:
        if token in self.tokenizer.eos_ids:
            return assembler.finish(), "end"
        text = assembler.push(token)
        if assembler.stopped:
            return text, "stop_string"
        return (text + assembler.finish(), "length") if last else (text, None)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of the requests in flight, however many stages it has."""
        if self._task is None or self._task.done():
            raise Unavailable(FAILED, 1.0)
        if self._in_flight >= self._max_in_flight:
            raise ResourceExhausted(f"queue: {self._in_flight} requests are in flight", "retry with backoff or add executors")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    @asynccontextmanager
    async def _submitted(self, sequence: _Sequence) -> AsyncIterator[None]:
        """Have a sequence run, once its adapters are in host memory; leaving frees all it holds."""
        try:
            sequence.held = await self.residency.fetch(sequence.tenant, sequence.refs)
            sequence.adapters = sequence.held.sizes
            self.scheduler.add(sequence)
            self._work.set()
            yield
        finally:
            self._remove(sequence)

    async def _result(self, sequence: _Sequence) -> Result:
        result = await sequence.results.get()
        if isinstance(result, Exception):
            raise result
        return result

    async def _loop(self) -> None:
        while True:
            for sequence in self.scheduler.admit():
                self._admitted(sequence)
            plan = self.scheduler.plan()
            if not plan:
                self._work.clear()
                await self._work.wait()
                continue
            self.steps, self.step_tokens = self.steps + 1, self.step_tokens + sum(count for _, count in plan)
            try:
                works = [sequence.work(count) for sequence, count in plan]
                results = await asyncio.get_running_loop().run_in_executor(self._thread, run_step, self._backend, works)
            except Exception as error:  # noqa: BLE001  a step that fails fails its own requests; the loop goes on for the others
                _log.exception("a model step failed")
                for sequence, _ in plan:
                    self._fail(sequence, Unavailable(f"executor: the model step failed ({type(error).__name__}); retry", 1.0))
                continue
            for (sequence, count), result in zip(plan, results, strict=True):
                self._deliver(sequence, count, result)
            await asyncio.sleep(0)  # let readers leave before the next step

    def _admitted(self, sequence: _Sequence) -> None:
        sequence.admitted_ns = time.perf_counter_ns()
        assert sequence.acquired is not None
        self.residency.evict(sequence.acquired)
        if not sequence.refs:
            sequence.mixture, sequence.ready = self._base, True
            return
        task = asyncio.create_task(self._prepare(sequence), name="prepare")
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def _prepare(self, sequence: _Sequence) -> None:
        """Put a sequence's adapters on the device and mix them, while the others decode."""
        if not self.scheduler.is_running(sequence):
            return  # it left before its turn
        try:
            adapters = await self.residency.place(sequence.refs)
            weighted = [(adapter, ref.weight) for adapter, ref in zip(adapters, sequence.refs, strict=True)]
            sequence.mixture = await asyncio.to_thread(self._backend.mix, weighted)
        except Exception as error:  # noqa: BLE001  not passed over: it goes to the request that it belongs to, which raises it
            self._fail(sequence, error)
            return
        if sequence.held is not None:
            sequence.held.release()  # the slots have them now
        sequence.ready = True
        self._work.set()

    def _deliver(self, sequence: _Sequence, count: int, result: Result) -> None:
        """Hand a result to its reader; a finished sequence gives up its place now, however slow its reader is."""
        if result.error is not None:
            self._fail(sequence, result.error)
            return
        self.scheduler.computed(sequence, count)
        if result.token is not None:
            sequence.tokens.append(result.token)
        if result.token is not None or result.logprobs:
            sequence.results.put_nowait(result)
        ended = len(sequence.tokens) - sequence.prompt_tokens >= sequence.max_new or result.token in self.tokenizer.eos_ids
        if ended and sequence.computed >= sequence.prompt_tokens:
            self._remove(sequence)

    def _fail(self, sequence: _Sequence, error: Exception) -> None:
        sequence.results.put_nowait(error)
        self._remove(sequence)

    def _remove(self, sequence: _Sequence) -> None:
        self.scheduler.remove(sequence)
        if sequence.held is not None:
            sequence.held.release()
        self.residency.discard(sequence.adapters)
        self._work.set()  # others may fit now


def _mixture_key(tenant: str, refs: Sequence[AdapterRef]) -> bytes:
    return hashlib.blake2b(repr((tenant, [(ref.key, ref.weight) for ref in refs])).encode(), digest_size=16).digest()
