"""A request: a pipeline of mixtures, most often of one. Each stage's text is the next one's input; the last one's is shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from services.executor.adapters.leases import AdapterRef
from services.executor.engine.answers import run_answers
from services.executor.engine.port import Engine, EngineState, GenerationUsage, Piece, StageRequest
from services.executor.engine.sampling import Sampling
from services.executor.models.prompt import Message, PromptTokenizer, check_ids
from smoa.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from smoa.limits import AS_MANY_TOKENS

LONGEST_TOKEN: Final = 128
"""Characters of the longest tokens there are (runs of spaces): a text with more for each token of the context is refused unread."""
_SHORT_TEXT: Final = 16_384
"""Characters that are tokenised in a few milliseconds; longer texts are on a thread, so that the others' tokens go out meanwhile."""


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

    def request(self, number: int, prompt: Sequence[int], max_tokens: int) -> StageRequest:
        """A stage of it, as the engine takes it: stop strings and log-probabilities are of what is shown."""
        stage, shown = self.stages[number], number == len(self.before)
        return StageRequest(
            tenant=self.tenant,
            adapters=stage.adapters,
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=self.sampling if shown else replace(self.sampling, logprobs=None),
            stop=self.stop if shown else (),
        )

    def following(self, text: str) -> tuple[Message, ...]:
        """What a later stage is asked: the former one's text as the user's turn, after the request's system turn if it began with one."""
        return (*(turn for turn in self.messages[:1] if turn.role == "system"), Message("user", text))


class Requests:
    """Takes requests in: their prompts become tokens, their stages run one after the other, and only so many are in flight."""

    def __init__(self, engine: Engine, tokenizer: PromptTokenizer, *, max_in_flight: int, max_tokens: int) -> None:
        # In flight is the one bound: a burst may all be waiting for a moment, with rows still free.
        self._engine, self.tokenizer, self._max_in_flight, self._max_tokens = engine, tokenizer, max_in_flight, max_tokens
        self._in_flight = 0

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """`answers` of one."""
        async with aclosing(self.answers([generation])) as pieces:
            async for _, piece in pieces:
                yield piece

    async def answers(self, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Piece], None]:
        """Stream (which generation, piece of its last stage's text), with the usage of all its stages. They are alike but for their seeds.

        Closing the iterator frees all that it holds. All are taken in at once or none, and every stage is checked, and its adapters are
        fetched, before the first one runs: a bad one costs nothing.

        Raises:
            InvalidArgument: a stage's input and max_tokens do not fit the context.
            FailedPrecondition: an adapter cannot be loaded, or a stage gave no text for the next.
            ResourceExhausted: too many requests are in flight.
        """
        async with self._places(generations[0].tenant, len(generations)) as places:
            began_ns, first = time.perf_counter_ns(), generations[0]
            prompt, most = await self._checked_prompt("prompt", first.messages, first.stages[0].max_tokens)
            for stage in first.stages[1:]:
                await self._checked_prompt("prompt", first.following(""), stage.max_tokens)
            runs = [partial(self._run, *each, prompt, most, began_ns) for each in zip(generations, places, strict=True)]
            async with aclosing(run_answers(runs)) as pieces:
                async for index, piece in pieces:
                    yield index, piece

    async def _run(
        self, generation: Generation, place: _Place, prompt: Sequence[int], most: int, began_ns: int
    ) -> AsyncGenerator[Piece, None]:
        async with AsyncExitStack() as held:
            # Before the first stage is queued: two pipelines that took theirs one by one could wait for each other.
            if generation.before:
                mixtures = [stage.adapters for stage in generation.stages]
                await held.enter_async_context(self._engine.hold(generation.tenant, mixtures))
            spent: list[GenerationUsage] = []
            for number in range(len(generation.before)):
                text = ""
                async with aclosing(self._engine.run_stage(generation.request(number, prompt, most))) as pieces:
                    async for piece in pieces:
                        text += piece.text
                        spent += [piece.usage] if piece.usage.finish else []
                if not text.strip():
                    raise FailedPrecondition(f"stages[{number}]: gave no text for the next stage; give it more tokens or other adapters")
                following, max_tokens = generation.following(text), generation.stages[number + 1].max_tokens
                prompt, most = await self._checked_prompt(f"stages[{number}].text", following, max_tokens)
            started_us = (time.perf_counter_ns() - began_ns) // 1000
            last = replace(generation.request(len(generation.before), prompt, most), ended=place.give_back)
            async with aclosing(self._engine.run_stage(last)) as pieces:
                async for piece in pieces:
                    await held.aclose()  # the last stage has what it needs: a slow reader keeps nothing else
                    yield replace(piece, usage=_whole([*spent, piece.usage], started_us)) if spent else piece

    async def score(
        self, tenant: str, messages: Sequence[Message], completions: Sequence[str], mixture: Sequence[AdapterRef]
    ) -> list[list[float]]:
        """Log-probabilities of each completion's tokens under a mixture.

        Raises:
            InvalidArgument: an empty completion, or more tokens than the context.
            ResourceExhausted: too many requests are in flight.
        """
        async with self._places(tenant, 1):
            before = await self._prompt_ids("prompt", messages)
            size = sum(len(turn.content) for turn in messages)
            longest = max(map(len, completions))
            after = await self._ids(
                "completion",
                size + longest,
                (size + longest) * len(completions),
                lambda: [self.tokenizer.answer_ids(messages, completion) for completion in completions],
            )
            if not all(after):
                raise InvalidArgument("completion", "has no token", "send the text to score")
            if (most := len(before) + max(map(len, after))) > self._engine.context:
                raise InvalidArgument("prompt", f"and completion have {most} tokens, over {self._engine.context}", "shorten them")
            return await self._engine.score(tenant, before, after, mixture)

    @property
    def vocabulary(self) -> int:
        """The base model's token ids are under it."""
        return self._engine.vocabulary

    def state(self) -> EngineState:
        """The engine's."""
        return self._engine.state()

    async def _checked_prompt(self, field: str, messages: Sequence[Message], max_tokens: int) -> tuple[list[int], int]:
        """A stage's input as the model sees it, and the most tokens of its answer; InvalidArgument when they do not fit the context."""
        if not 1 <= max_tokens <= self._max_tokens and max_tokens != AS_MANY_TOKENS:
            raise InvalidArgument("max_tokens", f"{max_tokens} is outside 1..{self._max_tokens}", "ask for fewer tokens")
        prompt = await self._prompt_ids(field, messages)
        if len(prompt) + (1 if max_tokens == AS_MANY_TOKENS else max_tokens) > self._engine.context:
            raise InvalidArgument(
                field,
                f"has {len(prompt)} tokens, with max_tokens over the context of {self._engine.context}",
                "shorten it or lower max_tokens",
            )
        return prompt, min(self._max_tokens, self._engine.context - len(prompt)) if max_tokens == AS_MANY_TOKENS else max_tokens

    async def _prompt_ids(self, field: str, messages: Sequence[Message]) -> list[int]:
        size = sum(len(turn.content) for turn in messages)
        return (await self._ids(field, size, size, lambda: [self.tokenizer.prompt_ids(messages)]))[0]

    async def _ids(self, field: str, longest: int, characters: int, encode: Callable[[], list[list[int]]]) -> list[list[int]]:
        """What `encode` makes of texts of so many characters, the longest and all."""
        if longest > self._engine.context * LONGEST_TOKEN:
            raise InvalidArgument(field, f"has more tokens than the context of {self._engine.context}", "shorten it")
        texts = encode() if characters <= _SHORT_TEXT else await asyncio.to_thread(encode)
        for ids in texts:
            check_ids(field, ids, self._engine.vocabulary)
        return texts

    @asynccontextmanager
    async def _places(self, tenant: str, count: int) -> AsyncIterator[list[_Place]]:
        """So many of the requests in flight, however many stages they have. When all are taken, one that waits gives its place up, of the
        tenant that has most, to one of a tenant that has fewer.
        """
        if count > self._max_in_flight:
            raise InvalidArgument("n", f"{count} is over the {self._max_in_flight} requests that may be in flight", "ask for fewer answers")
        missing = self._in_flight + count - self._max_in_flight
        if missing > 0 and not self._engine.make_room(tenant, missing):
            raise ResourceExhausted(
                f"queue: {self._in_flight} of {self._max_in_flight} requests are in flight", "retry with backoff or add executors"
            )
        places = [_Place(self) for _ in range(count)]
        try:
            yield places
        finally:
            for place in places:
                place.give_back()


class _Place:
    """Of a request in flight, until it computes no more."""

    def __init__(self, requests: Requests) -> None:
        self._requests, self._held = requests, True
        requests._in_flight += 1

    def give_back(self) -> None:
        """Others may have it; again is fine."""
        self._requests._in_flight -= self._held
        self._held = False


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
