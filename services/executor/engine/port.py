"""The port to an engine, at the level of one stage: so that one with a scheduler, cache and sampler of its own can stand beside ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

from services.executor.adapters.leases import AdapterRef, Resident
from services.executor.engine.sampling import Sampling, TokenLogprob
from services.executor.engine.text import Finish

MAX_HOSTED: Final = 2000
"""Adapters in host memory that `EngineState` names."""


@dataclass(frozen=True, kw_only=True)
class StageRequest:
    """One mixture's answer to one prompt."""

    tenant: str
    adapters: tuple[AdapterRef, ...]
    prompt: Sequence[int]
    """Token ids."""
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    ended: Callable[[], None] = lambda: None
    """Called when it computes no more, however slow its reader is; perhaps again."""


@dataclass(frozen=True, kw_only=True)
class GenerationUsage:
    """What a request has cost; times in microseconds."""

    prompt_tokens: int
    completion_tokens: int
    queue_us: int
    first_token_us: int
    total_us: int
    adapter_hits: int
    adapter_misses: int
    finish: Finish | None
    """How it ended; None while it goes on."""
    stages: tuple[GenerationUsage, ...] = ()
    """Of a pipeline: each stage's own; the fields above are their sums, times from the request on, and how the last one ended."""


@dataclass(frozen=True)
class Piece:
    """New text and tokens, and what has been spent with them; the last piece's usage says how the text ended."""

    text: str
    tokens: int
    usage: GenerationUsage
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of the tokens, if the sampling asks for them."""


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What an engine holds and does now, and what it has counted since it started."""

    rows: int
    running: int
    waiting: int
    slots: int
    slots_used: int
    slot_bytes: int
    residents: Sequence[Resident]
    """In slots, least recently used first."""
    host_bytes: int
    hosted: Sequence[AdapterRef]
    """In host memory, most recently used first; `MAX_HOSTED` at most."""
    cache_blocks: int
    cache_blocks_free: int
    steps: int
    step_tokens: int
    prefix_lookups: int
    prefix_hits: int
    preemptions: int
    adapter_hits: int
    adapter_misses: int
    slot_evictions: int
    host_hits: int
    host_evictions: int
    store_loads: int
    store_load_us: int


class Engine(Protocol):
    """Runs stages. Every method but `start` and `stop` may be called by many at once."""

    context: int
    """Most tokens of a prompt and its answer."""
    vocabulary: int
    """Ids are under it."""
    rows: int
    """Sequences that are computed at once."""

    async def start(self) -> None:
        """Begin to compute."""

    async def stop(self) -> None:
        """End it; requests in flight get UNAVAILABLE."""

    def hold(self, tenant: str, mixtures: Sequence[Sequence[AdapterRef]]) -> AbstractAsyncContextManager[None]:
        """Keep the adapters of all of a request's stages at hand: a bad one costs nothing, and no two requests wait for each other.

        Raises:
            NotFound, InvalidArgument, FailedPrecondition, Unavailable: the tenant may not use one, or one cannot be loaded.
        """

    def run_stage(self, stage: StageRequest) -> AsyncGenerator[Piece, None]:
        """Stream its text. Closing the iterator frees row, cache and leases at once.

        Raises:
            As `hold`, and Unavailable: the engine stopped, or its step failed.
        """

    async def score(
        self, tenant: str, prompt: Sequence[int], completions: Sequence[Sequence[int]], mixture: Sequence[AdapterRef]
    ) -> list[list[float]]:
        """Natural log-probabilities of every completion's tokens after the prompt's; the prompt is computed once.

        Raises:
            As `run_stage`.
        """

    def make_room(self, tenant: str, count: int) -> bool:
        """End so many waiting stages of tenants that have more, for as many of this one's; False: there are too few, and none was ended."""

    def state(self) -> EngineState:
        """Now."""
