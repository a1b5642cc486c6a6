"""A request to generate: a pipeline of mixtures, most often of one. Each stage's text is the next one's input; the last one's is shown."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from services.executor.adapters.residency import AdapterRef, Residency
from services.executor.engine.runner import Sampling
from services.executor.models.prompt import Message
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
    messages: tuple[Message, ...]
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

    def following(self, text: str) -> tuple[Message, ...]:
        """What a later stage is asked: the former one's text as the user's turn, after the request's system turn if it began with one."""
        return (*(turn for turn in self.messages[:1] if turn.role == "system"), Message("user", text))


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
    stages: tuple[GenerationUsage, ...] = ()
    """Of a pipeline: each stage's own; the fields above are their sums, times from the request on, and how the last one ended."""


@dataclass(frozen=True)
class Piece:
    """New text; the last piece carries the usage."""

    text: str
    tokens: int
    usage: GenerationUsage | None = None


class StageRunner(Protocol):
    """What a pipeline needs of the engine."""

    residency: Residency

    def checked_prompt(self, field: str, messages: Sequence[Message], max_tokens: int) -> list[int]:
        """A stage's input as the model sees it; InvalidArgument when it and max_tokens do not fit the context."""

    def run_stage(self, generation: Generation, stage: Stage, prompt: list[int], stop: Sequence[str]) -> AsyncGenerator[Piece, None]:
        """Stream one stage's text; the last piece carries its usage."""


async def run_pipeline(engine: StageRunner, generation: Generation) -> AsyncGenerator[Piece, None]:
    """Stream the last stage's text; the last piece carries the usage of all.

    Every stage is checked, and its adapters are fetched, before the first one runs: a bad one costs nothing.

    Raises:
        InvalidArgument: a stage's input and max_tokens do not fit the context.
        FailedPrecondition: an adapter cannot be loaded, or a stage gave no text for the next.
    """
    began_ns = time.perf_counter_ns()
    prompt = engine.checked_prompt("prompt", generation.messages, generation.stages[0].max_tokens)
    for stage in generation.stages[1:]:
        engine.checked_prompt("prompt", generation.following(""), stage.max_tokens)
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
                    spent += [piece.usage] if piece.usage else []
            if not text.strip():
                raise FailedPrecondition(f"stages[{number}]: gave no text for the next stage; give it more tokens or other adapters")
            prompt = engine.checked_prompt(f"stages[{number}].text", generation.following(text), generation.stages[number + 1].max_tokens)
        started_us = (time.perf_counter_ns() - began_ns) // 1000
        async with aclosing(engine.run_stage(generation, generation.stages[-1], prompt, generation.stop)) as pieces:
            async for piece in pieces:
                usage = piece.usage and _whole([*spent, piece.usage], started_us)
                yield replace(piece, usage=usage)
    finally:
        held.release()


def _whole(spent: Sequence[GenerationUsage], started_us: int) -> GenerationUsage:
    last = spent[-1]
    if len(spent) == 1:
        return last
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
