"""A request to generate: a pipeline of mixtures, most often of one. Each stage's text is the next one's input; the last one's is shown."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from services.executor.adapters.residency import AdapterRef, Residency
from services.executor.engine.sampling import Sampling, TokenLogprob
from smoa.errors import FailedPrecondition

Finish = Literal["end", "stop_string", "length"]


@dataclass(frozen=True)
class Stage:
    """One mixture of a pipeline, and the most tokens that it may add."""

    adapters: tuple[AdapterRef, ...]
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A request to generate, already checked."""

    tenant: str
    prompt: str
    adapters: tuple[AdapterRef, ...] = ()
    max_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    before: tuple[Stage, ...] = ()
    """Stages whose text is the input of the next one, and not shown; the fields above are the last stage's."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them, in order."""
        return (*self.before, Stage(self.adapters, self.max_tokens))


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


class StageRunner(Protocol):
    """What a pipeline needs of the engine."""

    residency: Residency

    async def checked_prompt(self, field: str, text: str, max_tokens: int) -> list[int]:
        """A stage's input as the model sees it; InvalidArgument when it and max_tokens do not fit the context."""

    def run_stage(self, generation: Generation, stage: Stage, prompt: list[int], stop: Sequence[str]) -> AsyncGenerator[Piece, None]:
        """Stream one stage's text."""


async def run_pipeline(engine: StageRunner, generation: Generation) -> AsyncGenerator[Piece, None]:
    """Stream the last stage's text, with the usage of all.

    Every stage is checked, and its adapters are fetched, before the first one runs: a bad one costs nothing.

    Raises:
        InvalidArgument: a stage's input and max_tokens do not fit the context.
        FailedPrecondition: an adapter cannot be loaded, or a stage gave no text for the next.
    """
    began_ns = time.perf_counter_ns()
    prompt = await engine.checked_prompt("prompt", generation.prompt, generation.stages[0].max_tokens)
    for stage in generation.stages[1:]:
        await engine.checked_prompt("prompt", "", stage.max_tokens)
    # One hold for all stages: two pipelines that took them one by one could wait for each other.
    mixtures = [stage.adapters for stage in generation.stages] if generation.before else []
    held = await engine.residency.fetch(generation.tenant, *mixtures)
    try:
        spent: list[GenerationUsage] = []
        for number, stage in enumerate(generation.before):
            text = ""
            async with aclosing(engine.run_stage(generation, stage, prompt, ())) as pieces:
                async for piece in pieces:
                    text += piece.text
                    spent += [piece.usage] if piece.usage.finish else []
            if not text.strip():
                raise FailedPrecondition(f"stages[{number}]: gave no text for the next stage; give it more tokens or other adapters")
            prompt = await engine.checked_prompt(f"stages[{number}].text", text, generation.stages[number + 1].max_tokens)
        started_us = (time.perf_counter_ns() - began_ns) // 1000
        async with aclosing(engine.run_stage(generation, generation.stages[-1], prompt, generation.stop)) as pieces:
            async for piece in pieces:
                yield replace(piece, usage=_whole([*spent, piece.usage], started_us)) if spent else piece
    finally:
        held.release()


def _whole(spent: Sequence[GenerationUsage], started_us: int) -> GenerationUsage:
    last = spent[-1]
    return GenerationUsage(
        prompt_tokens=sum(one.prompt_tokens for one in spent),
        completion_tokens=sum(one.completion_tokens for one in spent),
        queue_us=sum(one.queue_us for one in spent),
        first_token_us=started_us + last.first_token_us,
        total_us=started_us + last.total_us,
        adapter_hits=sum(one.adapter_hits for one in spent),
        adapter_misses=sum(one.adapter_misses for one in spent),
        finish=last.finish,
        stages=tuple(spent),
    )
