"""Which adapters may be alike: pairs whose sketches are near, so that only those are compared exactly. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Sketches: TypeAlias = NDArray[np.float32]
Pairs: TypeAlias = list[tuple[int, int]]
"""Rows: the lower, the higher."""
SLACK: Final = 0.15
"""A sketch's cosine is the delta's give or take a few hundredths where that is over 0.9 (`tests/unit/test_merging.py`)."""
_BLOCK_ROWS: Final = 1024
_OF_A_CELL: Final = 150
"""Rows of a cell, about."""
_BY: Final = 64
"""Numbers of a sketch that its cell is found by: a projection of the projection."""


def near_pairs(sketches: Sketches, min_cosine: float, most: int, new: Sequence[int] | None = None) -> Pairs:
    """The first `most` pairs of unit vectors [n, 256] whose cosine is over `min_cosine` less `SLACK`; of which at least one is `new`.

    As many products as there are pairs, in blocks.
    """
    every = new is None
    rows = np.arange(len(sketches)) if new is None else np.unique(np.asarray(new, np.int64))
    place = np.full(len(sketches), len(rows))  # among the new ones; of all others after those
    place[rows] = np.arange(len(rows))
    found: Pairs = []
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        left = start if every else 0
        first, second = np.nonzero(sketches[block] @ sketches[left:].T > min_cosine - SLACK)  # few; each is with itself
        one, other = block[first], second + left
        later = place[one] < place[other]
        one, other = one[later][: most - len(found)], other[later][: most - len(found)]
        found += zip(np.minimum(one, other).tolist(), np.maximum(one, other).tolist(), strict=True)
        if len(found) == most:
            break
    return found


def near_pairs_in_cells(sketches: Sketches, min_cosine: float, most: int, seed: int) -> Pairs:
    """Some of the same of many rows: those that are in one cell of a random partition, which near ones often are.

    Each row is in the cell of that of some random rows that it is nearest to. Of pairs whose cosine is 0.9, two of five are in one cell; so
    after ten partitions hardly one is missed, and each takes n^1.5 products instead of n^2 (a Voronoi partition, as an inverted file has
    one: Jegou, Douze and Schmid 2011).
    """
    count = max(1, len(sketches) // _OF_A_CELL)
    rng = np.random.default_rng(seed)
    places = rng.permutation(sketches.shape[1])[:_BY]
    by = np.ascontiguousarray(sketches[:, places])
    centres = by[rng.choice(len(sketches), count, replace=False)]
    cells = np.concatenate([np.argmax(by[start : start + _BLOCK_ROWS] @ centres.T, 1) for start in range(0, len(by), _BLOCK_ROWS)])
    order = np.argsort(cells, kind="stable")
    found: Pairs = []
    for rows in np.split(order, np.flatnonzero(np.diff(cells[order])) + 1):
        inside = near_pairs(sketches[rows], min_cosine, most - len(found))
        found += [(int(rows[low]), int(rows[high])) for low, high in inside]  # a stable order: the rows of a cell rise
        if len(found) == most:
            break
    return found
