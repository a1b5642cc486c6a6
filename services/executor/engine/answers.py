"""Several answers to one request, as one stream. Each is a generation of its own, and all share the prompt's cache blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from services.executor.engine.pipeline import Generation
from services.executor.engine.port import Piece


class Generator(Protocol):
    """What answers need of the engine."""

    def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Stream a completion."""


async def run_answers(engine: Generator, generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Piece], None]:
    """Stream (which generation, piece) as they come. Closing the iterator ends them all.

    The others begin once the first has a token: they find the prompt in the cache then, where all at once would each compute it.

    Raises:
        SmoaError: of the first generation that fails; the others end with it.
    """
    if len(generations) == 1:
        async with aclosing(engine.generate(generations[0])) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    arrived: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue(1)  # a slow reader holds them up here, as it does a lone one

    async def run(index: int) -> None:
        try:
            async with aclosing(engine.generate(generations[index])) as pieces:
                async for piece in pieces:
                    await arrived.put((index, piece))
        except Exception as error:  # noqa: BLE001  not passed over: the reader raises it
            await arrived.put(error)

    running = [asyncio.create_task(run(0), name="answer")]
    try:
        unfinished = len(generations)
        while unfinished:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if len(running) == 1:
                running += [asyncio.create_task(run(index), name="answer") for index in range(1, len(generations))]
            unfinished -= item[1].usage.finish is not None
            yield item
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
