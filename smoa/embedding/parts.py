"""Many texts, or a long one, embedded on a thread: in parts, so that whoever has little to embed waits for a part of another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from smoa.access.principal import caller
from smoa.embedding.port import Vector
from smoa.fair_turns import ThreadTurns

PART_CHARACTERS: Final = 16_384
"""A few milliseconds' work."""


async def in_parts(turns: ThreadTurns, texts: Sequence[str], vector_of: Callable[[str], Vector]) -> Vector:
    """Vectors [n, dimension] of the texts, made on a thread in the caller's turns."""
    made: list[Vector] = []
    for part in _parts(texts):
        made += await turns.run(caller().name, lambda part=part: [vector_of(text) for text in part])  # type: ignore[misc]
    return np.stack(made)


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts, each of one or of no more characters than a part has."""
    start, characters = 0, 0
    for place, text in enumerate(texts):
        if place > start and characters + len(text) > PART_CHARACTERS:
            yield texts[start:place]
            start, characters = place, 0
        characters += len(text)
    yield texts[start:]
