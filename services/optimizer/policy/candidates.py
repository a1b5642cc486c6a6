"""Which adapters may be alike: pairs whose sketches are near, so that only those are compared exactly. Pure numpy."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SLACK: Final = 0.15
"""A sketch's cosine is the delta's give or take a few hundredths where that is over 0.9 (`tests/unit/test_merging.py`)."""
_BLOCK_ROWS: Final = 1024


def near_pairs(sketches: NDArray[np.float32], min_cosine: float, most: int) -> list[tuple[int, int]]:
    """The first `most` pairs (lower row, higher row) of unit vectors [n, 256] whose cosine is over `min_cosine` less `SLACK`.

    n^2 products, in blocks.
    """
    found: list[tuple[int, int]] = []
    for start in range(0, len(sketches), _BLOCK_ROWS):
        likeness = sketches[start : start + _BLOCK_ROWS] @ sketches[start:].T
        low, high = np.nonzero(np.triu(likeness > min_cosine - SLACK, 1))
        room = most - len(found)
        found += zip((low[:room] + start).tolist(), (high[:room] + start).tolist(), strict=True)
        if len(found) == most:
            break
    return found
