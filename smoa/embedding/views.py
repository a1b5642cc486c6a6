"""Two views of a text in one vector: what it is about, by an `Embedder`, and how it looks (`surface.py`).

Each view is a unit vector; side by side they are divided by the root of two, so that the cosine of two texts is the mean of their cosines
in both views. A vector that somebody sends may hold the first view alone: its second is zeros, and it is compared by the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import numpy as np

from smoa.embedding import surface
from smoa.embedding.parts import in_parts
from smoa.embedding.port import LONG_CHARACTERS, Embedder, Vector, checked_unit, normalised, unit_rows
from smoa.errors import InvalidArgument
from smoa.fair_turns import ThreadTurns

_FEW: Final = 64


class Views:
    """An `Embedder` of both views."""

    def __init__(self, meaning: Embedder) -> None:
        self._meaning, self._turns = meaning, ThreadTurns()
        surface.flags_of_plane()  # now, and not in the first query

    @property
    def name(self) -> str:
        """See `Embedder`: of both views."""
        return f"{self._meaning.name} {surface.NAME}"

    @property
    def dimension(self) -> int:
        """See `Embedder`: of both views."""
        return self._meaning.dimension + surface.DIMENSION

    async def embed(self, texts: Sequence[str]) -> Vector:
        """See `Embedder`."""
        meanings = await self._meaning.embed(texts)
        if len(texts) == 1 and len(texts[0]) <= LONG_CHARACTERS:
            return joined(meanings[0], surface.vector_of(texts[0]))[None]
        looks = await in_parts(self._turns, texts, surface.vector_of)
        return beside(meanings, looks) if len(texts) <= _FEW else await asyncio.to_thread(beside, meanings, looks)

    def completed(self, sent: Vector, field: str, instead: str, text: str = "") -> Vector:
        """A vector that somebody sent, of the first view or of both, as `embed` gives it; the second view is of the text, if there is one.

        Raises:
            InvalidArgument: it has another length, numbers that are none, or only zeros.
        """
        meaning = self._meaning.dimension
        if sent.shape not in ((meaning,), (self.dimension,)):
            raise InvalidArgument(
                field, f"has {sent.size} numbers", f"send {meaning}, or {self.dimension}, or {instead} instead of a vector"
            )
        both = len(sent) > meaning and sent[meaning:].any()
        looks = checked_unit(sent[meaning:], field, surface.DIMENSION, instead) if both else surface.vector_of(text)
        return joined(checked_unit(sent[:meaning], field, meaning, instead), looks)

    async def close(self) -> None:
        """See `Embedder`."""
        await self._meaning.close()


def centroids(vectors: Vector) -> Vector:
    """Unit vectors [..., both]: the mean of each view of [..., n, both], scaled as one text's is, however well the texts agree in it."""
    mean = vectors.mean(-2).reshape(-1, vectors.shape[-1])
    meaning = mean.shape[-1] - surface.DIMENSION
    made: Vector = beside(mean[:, :meaning], mean[:, meaning:]).reshape(*vectors.shape[:-2], -1)
    return made


def joined(meaning: Vector, looks: Vector) -> Vector:
    """Unit vector [both] of two views, each of which is a unit vector, or zeros."""
    return normalised(np.concatenate([meaning, looks]))


def beside(meanings: Vector, looks: Vector) -> Vector:
    """Unit vectors [n, both] of two views, each scaled to length one before; zeros stay zeros."""
    return unit_rows(np.concatenate([unit_rows(meanings), unit_rows(looks)], 1))
