"""How a text looks, beside what it is about: its characters, and its shape.

Characters: n-grams of one to three within each word and the blanks around it, counted in hashed buckets (as fastText's subwords: Bojanowski
et al. 2017, "Enriching word vectors with subword information"), the root of each count. Shape: lengths, shares of kinds of characters, how
it begins and ends. Both are sums over words; the words of a text that were not seen before are counted in one pass of numpy, and kept.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smoa.embedding.port import Vector, unit_rows

BUCKETS: Final = 112
SHAPES: Final = 16
DIMENSION: Final = BUCKETS + SHAPES
NAME: Final = "surface-1"
"""Of what makes these vectors: those of two names are not to be compared."""
_SHAPE_WEIGHT: Final = 0.5
_LONG_WORD: Final = 9
_KINDS: Final = 7
"""Digits, capitals, letters, marks, signs, others than ASCII; and long words."""
COUNTED: Final = BUCKETS + _KINDS
_KEPT_WORDS, _KEPT_CHARACTERS = 32_768, 24
_FIRST, _SECOND, _THIRD, _MIXED = (np.uint32(one) for one in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F))
_SPACE: Final = 32
_PLANE: Final = 0x10000


class SurfaceView:
    """Unit vectors [`DIMENSION`] of how texts look. Threads may share it."""

    def __init__(self) -> None:
        self._words, self._lock = _Words(), Lock()
        _flags_of_plane()  # a tenth of a second, and not of the first query's

    def vector_of(self, text: str) -> Vector:
        """Unit vector of a text; zeros of one without characters."""
        if not text:
            return np.zeros(DIMENSION, np.float32)
        words = text.split()
        counts = self._counted(words)
        sizes = Sizes(len(text), len(words), len(text) - sum(map(len, words)), text.count("\n"))
        shape = _shape(counts[BUCKETS:].tolist(), sizes, Ends.of(text))
        grams = float(counts[:BUCKETS].sum())  # the squared length of their roots
        length = math.sqrt(bool(grams) + sum(value * value for value in shape))
        made = np.empty(DIMENSION, np.float32)
        made[:BUCKETS] = np.sqrt(counts[:BUCKETS] / (max(grams, 1) * length * length))
        made[BUCKETS:] = np.array(shape, np.float32) / length
        return made

    def _counted(self, words: Sequence[str]) -> Vector:
        """Counts over all words, [`COUNTED`]."""
        known = self._words
        row_of, rows, new = known.row_of, list[int](), list[str]()
        for word in words:
            row = row_of.get(word)
            if row is None:
                new.append(word)
            else:
                rows.append(row)
        total: Vector = np.add.reduce(known.rows[rows], 0)
        if new:
            counts = count_words(new)
            self._keep(new, counts)
            total = total + np.add.reduce(counts, 0)
        return total

    def _keep(self, words: Sequence[str], counts: Vector) -> None:
        with self._lock:
            for word, row in zip(words, counts, strict=True):
                if len(self._words.row_of) == _KEPT_WORDS:
                    self._words = _Words()  # whoever is in the middle of a text still has the old ones
                known = self._words
                if len(word) <= _KEPT_CHARACTERS and word not in known.row_of:  # another thread may have been faster
                    known.rows[len(known.row_of)] = row
                    known.row_of[word] = len(known.row_of)


class _Words:
    """Words seen before, and their counts."""

    def __init__(self) -> None:
        self.row_of: dict[str, int] = {}
        self.rows: Vector = np.zeros((_KEPT_WORDS, COUNTED), np.float32)  # the system gives pages as they are used


class Sizes(NamedTuple):
    """Of a text; of texts with as many words, `characters` may be an array [n]."""

    characters: int | NDArray[np.int64]
    words: int
    blanks: int
    lines: int


class Ends(NamedTuple):
    """How a text begins and ends."""

    capital: bool
    asks: bool
    stops: bool
    plain: bool

    @classmethod
    def of(cls, text: str) -> Ends:
        """Those of a text."""
        last = text.rstrip()[-1:]
        return cls(text[:1].isupper(), last == "?", last in (".", "!"), last.isalnum())


def count_words(words: Sequence[str]) -> Vector:
    """Counts [n, `COUNTED`] of words, at least one, none with a blank in it: n-grams by bucket, then kinds of characters."""
    points = np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le", "surrogatepass"), "<u4")
    inside = points != _SPACE
    word_of = np.cumsum(~inside) - 1  # a blank is of the word behind it, and the last of none
    first = points * _FIRST
    twos = first[:-1] + points[1:] * _SECOND
    threes = (twos[:-1] + points[2:] * _THIRD)[inside[1:-1]]
    grams = np.concatenate([first[inside], twos, threes])  # a multiplicative hash: products of the characters, added and mixed
    grams ^= grams >> np.uint32(15)
    grams *= _MIXED
    grams ^= grams >> np.uint32(13)
    of = np.concatenate([word_of[inside], word_of[:-1], word_of[1:-1][inside[1:-1]]])
    counts = np.empty((len(words), COUNTED), np.float32)
    buckets = np.bincount(of * BUCKETS + grams % np.uint32(BUCKETS), minlength=len(words) * BUCKETS)
    counts[:, :BUCKETS] = buckets.reshape(len(words), BUCKETS)
    kinds = _KINDS_OF_FLAGS[_flags_of_plane()[np.minimum(points[inside], _PLANE - 1)]]
    lengths = [len(word) for word in words]
    counts[:, BUCKETS:-1] = np.add.reduceat(kinds, np.cumsum([0, *lengths[:-1]]), 0)
    counts[:, -1] = np.array(lengths) >= _LONG_WORD
    return counts


def vectors_of(counts: Vector, sizes: Sizes, ends: Ends) -> Vector:
    """Unit vectors [n, `DIMENSION`] of counts [n, `COUNTED`] of texts which begin and end alike."""
    made = np.empty((len(counts), DIMENSION), np.float32)
    made[:, :BUCKETS] = unit_rows(np.sqrt(counts[:, :BUCKETS]))
    for column, value in enumerate(_shape(list(counts.T[BUCKETS:]), sizes, ends), BUCKETS):
        made[:, column] = value
    return unit_rows(made)


def _shape(kinds: Sequence[Any], sizes: Sizes, ends: Ends) -> tuple[Any, ...]:
    """`SHAPES` numbers from 0 to about 1, of a text or of many."""
    characters, count, blanks, lines = sizes
    words, shown = max(count, 1), characters - blanks + 1
    *shares, long = kinds
    log1p: Any = np.log1p if isinstance(characters, np.ndarray) else math.log1p  # numpy's takes a microsecond for one number
    lengths = (log1p(characters) / 4, math.log1p(words) / 4, math.log1p(lines), blanks / characters, long / words, shown / words / 10)
    return tuple(_SHAPE_WEIGHT * value for value in (*lengths, *(share / shown for share in shares), *ends))


@cache
def _flags_of_plane() -> NDArray[np.uint8]:
    """Of each character of the first plane, its kinds, a bit each; beyond it all are letters of some script, or pictures."""
    flags = np.zeros(_PLANE, np.uint8)
    for point in range(_PLANE):
        character, category = chr(point), unicodedata.category(chr(point))[0]
        kinds = (category == "N", character.isupper(), character.isalpha(), category == "P", category == "S", point > 127)
        flags[point] = sum(is_so << place for place, is_so in enumerate(kinds))
    return flags


_KINDS_OF_FLAGS: Final[Vector] = (np.arange(64)[:, None] >> np.arange(_KINDS - 1) & 1).astype(np.float32)
