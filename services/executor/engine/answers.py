"""Several answers to one request, as one stream. Each is a generation of its own, and all share the prompt's cache blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from services.executor.engine.port import Piece


async def run_answers(answers: Sequence[Callable[[], AsyncGenerator[Piece, None]]]) -> AsyncGenerator[tuple[int, Piece], None]:
    """Stream (which answer, piece) as they come. Closing the iterator ends them all.

    The others begin once the first has a token: they find the prompt in the cache then, where all at once would each compute it.

    Raises:
        SmoaError: of the first that fails; the others end with it.
    """
    if len(answers) == 1:
        async with aclosing(answers[0]()) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    arrived: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue(1)  # a slow reader holds them up here, as it does a lone one

    async def run(index: int) -> None:
        try:
            async with aclosing(answers[index]()) as pieces:
                async for piece in pieces:
                    await arrived.put((index, piece))
        except Exception as error:  # noqa: BLE001  not passed over: the reader raises it
            await arrived.put(error)

    running = [asyncio.create_task(run(0), name="answer")]
    try:
        unfinished = len(answers)
        while unfinished:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if len(running) == 1:
                running += [asyncio.create_task(run(index), name="answer") for index in range(1, len(answers))]
            unfinished -= item[1].usage.finish is not None
            yield item
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
