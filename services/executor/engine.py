"""The engine: a loop of three verbs, schedule, run, postprocess, over one batch in which every row has its own mixture.

Torch runs on one worker thread; the loop around it owns every decision. Nothing outside this port may assume torch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from services.executor.mixture import Mixture
from services.executor.prompt import PromptTokenizer
from services.executor.residency import AdapterRef, Residency
from services.executor.runner import Row, Runner, Sampling
from services.executor.scheduler import Scheduler
from services.executor.text import TextAssembler
from smoa.errors import InvalidArgument, ResourceExhausted, SmoaError, Unavailable

T = TypeVar("T")
Finish = Literal["end", "stop_string", "length"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A request to generate, already checked."""

    tenant: str
    prompt: str
    adapters: tuple[AdapterRef, ...] = ()
    max_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GenerationUsage:
    """What a finished request cost; times in microseconds."""

    prompt_tokens: int
    completion_tokens: int
    queue_us: int
    first_token_us: int
    total_us: int
    adapter_hits: int
    adapter_misses: int
    finish: Finish


@dataclass(frozen=True)
class Piece:
    """New text; the last piece carries the usage."""

    text: str
    tokens: int
    usage: GenerationUsage | None = None


@dataclass(eq=False)
class _Sequence:
    prompt: list[int]
    mixture: Mixture
    generation: Generation
    row: Row | None = None
    tokens: asyncio.Queue[int | SmoaError] = field(default_factory=asyncio.Queue)  # bounded by max_tokens
    started_ns: int = 0


class Engine:
    """Continuous batching over a fixed number of rows."""

    def __init__(
        self, runner: Runner, tokenizer: PromptTokenizer, residency: Residency, *, rows: int, max_waiting: int, max_tokens: int
    ) -> None:
        self._runner, self._tokenizer, self.residency = runner, tokenizer, residency
        # In flight is the one bound: a burst may all be waiting for a moment, with rows still free.
        self.scheduler: Scheduler[_Sequence] = Scheduler(rows, rows + max_waiting)
        self._max_tokens, self._max_in_flight, self._in_flight = max_tokens, rows + max_waiting, 0
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "engine")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin the loop."""
        self._task = asyncio.create_task(self._loop(), name="engine")

    async def stop(self) -> None:
        """End the loop; requests still running get UNAVAILABLE."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for sequence, _ in self.scheduler.running:
            sequence.tokens.put_nowait(Unavailable("executor: is shutting down; retry on another", 0.5))
        await self.residency.close()
        self._thread.shutdown()

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Stream a completion. Closing the iterator frees the row and the leases at once.

        Raises:
            InvalidArgument: the prompt and max_tokens do not fit the context.
            ResourceExhausted: too many requests are in flight.
        """
        arrived_ns = time.perf_counter_ns()
        prompt = self._checked_prompt(generation)
        if self._in_flight >= self._max_in_flight:
            raise ResourceExhausted(f"queue: {self._in_flight} requests are in flight", "retry with backoff or add executors")
        self._in_flight += 1
        try:
            async with self.residency.lease(generation.tenant, generation.adapters) as lease:
                weighted = [(adapter, ref.weight) for adapter, ref in zip(lease.adapters, generation.adapters, strict=True)]
                mixture = await self._compute(lambda: Mixture.of(weighted, self._runner.model.dtype))
                sequence = _Sequence(prompt, mixture, generation)
                self.scheduler.add(sequence)
                self._work.set()
                try:
                    async for piece, finish, tokens, first_ns in self._pieces(sequence):
                        if finish is None:
                            yield Piece(piece, 1)
                            continue
                        now = time.perf_counter_ns()
                        usage = GenerationUsage(
                            prompt_tokens=len(prompt),
                            completion_tokens=tokens,
                            queue_us=(sequence.started_ns - arrived_ns) // 1000,
                            first_token_us=(first_ns - arrived_ns) // 1000,
                            total_us=(now - arrived_ns) // 1000,
                            adapter_hits=lease.hits,
                            adapter_misses=lease.misses,
                            finish=finish,
                        )
                        yield Piece(piece, 1, usage)
                finally:
                    self.scheduler.remove(sequence)
        finally:
            self._in_flight -= 1

    async def score(self, tenant: str, prompt: str, completion: str, adapters: Sequence[AdapterRef]) -> list[float]:
        """Log-probabilities of the completion's tokens under a mixture.

        Raises:
            InvalidArgument: an empty completion, or more tokens than the context.
        """
        before, after = self._tokenizer.prompt_ids(prompt), self._tokenizer.ids(completion)
        if not after:
            raise InvalidArgument("completion", "has no token", "send the text to score")
        if len(before) + len(after) > self._runner.context:
            raise InvalidArgument(
                "prompt", f"and completion have {len(before) + len(after)} tokens, over {self._runner.context}", "shorten them"
            )
        async with self.residency.lease(tenant, adapters) as lease:
            weighted = [(adapter, ref.weight) for adapter, ref in zip(lease.adapters, adapters, strict=True)]
            return await self._compute(lambda: self._runner.score(Mixture.of(weighted, self._runner.model.dtype), before, after))

    def _checked_prompt(self, generation: Generation) -> list[int]:
        if not 1 <= generation.max_tokens <= self._max_tokens:
            raise InvalidArgument("max_tokens", f"{generation.max_tokens} is outside 1..{self._max_tokens}", "ask for fewer tokens")
        prompt = self._tokenizer.prompt_ids(generation.prompt)
        if len(prompt) + generation.max_tokens > self._runner.context:
            raise InvalidArgument(
                "prompt",
                f"has {len(prompt)} tokens, with max_tokens over the context of {self._runner.context}",
                "shorten it or lower max_tokens",
            )
        return prompt

    async def _pieces(self, sequence: _Sequence) -> AsyncIterator[tuple[str, Finish | None, int, int]]:
        assembler = TextAssembler(self._tokenizer.text, sequence.generation.stop)
        tokens, first_ns = 0, 0
        while True:
            token = await sequence.tokens.get()
            if isinstance(token, SmoaError):
                raise token
            tokens += 1
            first_ns = first_ns or time.perf_counter_ns()
            if token in self._tokenizer.eos_ids:
                yield assembler.finish(), "end", tokens, first_ns
                return
            text = assembler.push(token)
            if assembler.stopped:
                yield text, "stop_string", tokens, first_ns
                return
            if tokens == sequence.generation.max_tokens:
                yield text + assembler.finish(), "length", tokens, first_ns
                return
            yield text, None, tokens, first_ns

    async def _compute(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _loop(self) -> None:
        while True:
            for sequence, index in self.scheduler.admit():
                await self._start(sequence, index)
            running = [(sequence, sequence.row) for sequence, _ in self.scheduler.running if sequence.row is not None]
            if not running:
                self._work.clear()
                if not self.scheduler.waiting:
                    await self._work.wait()
                continue
            rows = [row for _, row in running]
            tokens = await self._guarded([sequence for sequence, _ in running], lambda rows=rows: self._runner.decode(rows))  # type: ignore[misc]
            for (sequence, row), token in zip(running, tokens or (), strict=False):
                self._deliver(sequence, row, token)
            await asyncio.sleep(0)  # let readers leave before the next step

    def _deliver(self, sequence: _Sequence, row: Row, token: int) -> None:
        """Hand a token to its reader; a finished sequence gives up its row now, however slow its reader is."""
        sequence.tokens.put_nowait(token)
        length = row.length - len(sequence.prompt) + 1
        if token in self._tokenizer.eos_ids or length >= sequence.generation.max_tokens:
            self.scheduler.remove(sequence)

    async def _start(self, sequence: _Sequence, index: int) -> None:
        sequence.started_ns = time.perf_counter_ns()
        row = Row(index, sequence.mixture, sequence.generation.sampling)
        token = await self._guarded([sequence], lambda: self._runner.prefill(row, sequence.prompt))
        if token is not None:
            sequence.row = row
            self._deliver(sequence, row, token)

    async def _guarded(self, sequences: Sequence[_Sequence], function: Callable[[], T]) -> T | None:
        """A step that fails fails its own requests, with the trace in the log; the loop goes on for the others."""
        try:
            return await self._compute(function)
        except (RuntimeError, ValueError, IndexError) as error:
            _log.exception("a model step failed")
            for sequence in sequences:
                sequence.tokens.put_nowait(Unavailable(f"executor: the model step failed ({type(error).__name__}); retry", 1.0))
                self.scheduler.remove(sequence)
            return None
