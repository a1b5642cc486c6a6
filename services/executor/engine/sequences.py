"""A sequence in the engine: what of it runs next, and what becomes of the results."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic

from services.executor.adapters.leases import AdapterLease, AdapterRef
from services.executor.backends.port import Chunk, MixtureT
from services.executor.engine.port import GenerationUsage, Piece
from services.executor.engine.runner import Result, Work
from services.executor.engine.sampling import Sampler
from services.executor.engine.scheduler import Job
from services.executor.engine.text import Answer


@dataclass(eq=False, kw_only=True)
class Sequence(Job, ABC, Generic[MixtureT]):
    """A job of the engine. Subclasses say what is wanted of its tokens."""

    lease: AdapterLease
    refs: tuple[AdapterRef, ...]
    mixture: MixtureT | None = None
    arrived_ns: int = field(default_factory=time.perf_counter_ns)
    admitted_ns: int = 0
    ended: Callable[[], None] = lambda: None
    """Called when it is out of the scheduler; perhaps again."""

    @abstractmethod
    def work(self, count: int) -> Work[MixtureT]:
        """The next `count` tokens, as the runner takes them."""

    @abstractmethod
    def take(self, result: Result, until: int) -> bool:
        """Take in the results of the tokens before `until`; True: it is finished."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Tell whoever waits for it."""

    def chunk(self, count: int, outputs: int) -> Chunk[MixtureT]:
        """The next `count` tokens, of which the last `outputs` are asked for what follows them."""
        assert self.mixture is not None
        return Chunk(self.tokens[self.computed : self.computed + count], self.computed, self.blocks, self.mixture, outputs)


@dataclass(eq=False, kw_only=True)
class Generating(Sequence[MixtureT]):
    """One that is answered."""

    sampler: Sampler
    answer: Answer
    pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)  # bounded by the answer's tokens
    first_ns: int = 0

    def work(self, count: int) -> Work[MixtureT]:
        """See `Sequence`."""
        sampler = self.sampler if self.computed + count == len(self.tokens) else None
        return Work(self.chunk(count, int(sampler is not None)), sampler)

    def take(self, result: Result, until: int) -> bool:
        """See `Sequence`. The text is put together here: a slow reader keeps no row."""
        if result.token is None:
            return False
        self.tokens.append(result.token)
        self.first_ns = self.first_ns or time.perf_counter_ns()
        text, finish = self.answer.push(result.token)
        usage = GenerationUsage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.answer.tokens,
            queue_us=(self.admitted_ns - self.arrived_ns) // 1000,
            first_token_us=(self.first_ns - self.arrived_ns) // 1000,
            total_us=(time.perf_counter_ns() - self.arrived_ns) // 1000,
            adapter_hits=len(self.refs) - self.lease.missing,
            adapter_misses=self.lease.missing,
            finish=finish,
        )
        self.pieces.put_nowait(Piece(text, 1, usage, (result.token_logprob,) if result.token_logprob else ()))
        return finish is not None

    def fail(self, error: Exception) -> None:
        """See `Sequence`."""
        self.pieces.put_nowait(error)


@dataclass(eq=False, kw_only=True)
class Reading(Sequence[MixtureT]):
    """One whose text is there: the log-probabilities of its tokens from `wanted_from + 1` on are wanted."""

    last: int
    """Its last token, which nothing has to follow."""
    logprobs: dict[int, float] = field(default_factory=dict)
    """By the place of the token that it is of."""
    done: asyncio.Future[list[float]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def work(self, count: int) -> Work[MixtureT]:
        """See `Sequence`."""
        end = self.computed + count
        targets = [*self.tokens, self.last][max(self.computed, self.wanted_from) + 1 : end + 1]
        return Work(self.chunk(count, len(targets)), None, targets)

    def take(self, result: Result, until: int) -> bool:
        """See `Sequence`."""
        self.logprobs |= zip(range(until - len(result.logprobs) + 1, until + 1), result.logprobs, strict=True)
        if until < len(self.tokens):
            return False
        if not self.done.done():
            self.done.set_result([self.logprobs[at] for at in range(self.wanted_from + 1, len(self.tokens) + 1)])
        return True

    def fail(self, error: Exception) -> None:
        """See `Sequence`."""
        if not self.done.done():
            self.done.set_exception(error)
