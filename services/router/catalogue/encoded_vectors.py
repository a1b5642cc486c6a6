"""Vectors in eight bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.router.catalogue.port import Vector

Codes = NDArray[np.int8]


@dataclass(frozen=True)
class Encoded:
    """Vectors in eight bits: codes [n, dimension] int8 and what one step of each row is worth, [n] float32."""

    codes: Codes
    steps: Vector

    @classmethod
    def of(cls, vectors: Vector) -> Encoded:
        """Encode float vectors [n, dimension]; the error of a cosine is about 0.001."""
        steps = np.maximum(np.abs(vectors).max(1, initial=0.0), 1e-12).astype(np.float32) / 127
        return cls(np.rint(vectors / steps[:, None]).astype(np.int8), steps)

    def decoded(self) -> Vector:
        """The vectors again, [n, dimension] float32."""
        return self.codes.astype(np.float32) * self.steps[:, None]

    def to_bytes(self) -> bytes:
        """Steps, then codes."""
        return self.steps.astype("<f4").tobytes() + self.codes.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, dimension: int) -> Encoded:
        """Inverse of `to_bytes`."""
        count = len(data) // (dimension + 4)
        steps = np.frombuffer(data, "<f4", count)
        return cls(np.frombuffer(data, np.int8, count * dimension, 4 * count).reshape(count, dimension), steps)
