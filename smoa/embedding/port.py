"""The port behind which texts become vectors. One contract test for all of its implementations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from smoa.errors import InvalidArgument

Vector = NDArray[np.float32]
LONG_CHARACTERS: Final = 8192
"""A longer text takes too long on a loop."""


class Embedder(Protocol):
    """Texts to unit vectors: the nearer two texts are in meaning, the larger their cosine."""

    @property
    def name(self) -> str:
        """Of what makes the vectors: those of two names are not to be compared."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    async def embed(self, texts: Sequence[str]) -> Vector:
        """Unit vectors [n, dimension], of each text; zeros of one in which there is nothing to go by.

        Raises:
            InvalidArgument: a text that cannot be embedded.
            Unavailable: what makes the vectors is away.
        """

    async def close(self) -> None:
        """Release what it holds."""


def normalised(vector: Vector) -> Vector:
    """Vector / |vector|; zeros stay zeros."""
    length = math.sqrt(float(vector @ vector))
    return (vector / length if length else vector).astype(np.float32, copy=False)


def unit_rows(vectors: Vector) -> Vector:
    """Rows [n, dimension] / their lengths; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vector = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32, copy=False)
    return scaled


def checked_unit(vector: Vector, field: str, dimension: int, instead: str) -> Vector:
    """A vector that somebody sent, normalised.

    Raises:
        InvalidArgument: it has another length, numbers that are none, or only zeros.
    """
    if vector.shape != (dimension,):
        raise InvalidArgument(field, f"has {vector.size} numbers", f"send {dimension}, or {instead} instead of a vector")
    wide = vector.astype(np.float64)
    length = math.sqrt(float(wide @ wide))
    if not math.isfinite(length):
        raise InvalidArgument(field, "holds NaN or infinite numbers", "make it again")
    if not length:
        raise InvalidArgument(field, "is all zeros, so it is near nothing", "make it again")
    return (wide / length).astype(np.float32)
