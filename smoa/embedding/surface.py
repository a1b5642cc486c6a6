"""How a text looks, beside what it is about: its characters, and its shape.

Characters: n-grams of one to three within each word and the blanks around it, counted in hashed buckets (as fastText's subwords: Bojanowski
et al. 2017, "Enriching word vectors with subword information"), the root of each count. Shape: lengths, shares of kinds of characters, how
it begins and ends. Both are sums over words; what is made of them is turned in space, so that no number of a vector is much larger than
the others, and eight bits each say more of it (cosines stay). A text is counted in one pass of numpy: a memory of words would save nothing.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smoa.embedding.port import Vector, unit_rows

BUCKETS: Final = 112
SHAPES: Final = 16
DIMENSION: Final = BUCKETS + SHAPES
NAME: Final = "surface-2"
"""Of what makes these vectors: those of two names are not to be compared."""
_SHAPE_WEIGHT: Final = 0.5
_LONG_WORD: Final = 9
_KINDS: Final = 7
"""Digits, capitals, letters, marks, signs, others than ASCII; and long words."""
COUNTED: Final = BUCKETS + _KINDS
_NEXT, _MIXED, _UPPER, _BUCKETS = (np.uint32(one) for one in (0x85EBCA77, 0x9E3779B1, 16, BUCKETS))
_SPACE: Final = 32
_PLANE: Final = 0x10000
Points = NDArray[np.uint32]


def vector_of(text: str) -> Vector:
    """Unit vector [`DIMENSION`] of how a text looks; zeros of one without characters."""
    if not text:
        return np.zeros(DIMENSION, np.float32)
    words = text.split()
    points = _points(words)
    buckets = _buckets(points, points != _SPACE)
    kinds = np.bincount(_flags(points), minlength=len(_KINDS_OF_FLAGS)) @ _KINDS_OF_FLAGS  # a blank is of none
    sizes = Sizes(len(text), len(words), len(text) - sum(map(len, words)), text.count("\n"))
    shape = _shape([*kinds.tolist(), sum(len(word) >= _LONG_WORD for word in words)], sizes, Ends.of(text))
    squared = 1 + sum(value * value for value in shape)
    made = np.empty(DIMENSION, np.float32)
    made[:BUCKETS] = np.sqrt(np.bincount(buckets, minlength=BUCKETS) * (1 / (len(buckets) * squared)))
    made[BUCKETS:] = np.array(shape) * (1 / math.sqrt(squared))
    return made @ _TURNED


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


def is_known(vector: Vector) -> bool:
    """Whether a vector of both views [..., this one last] holds this one: zeros are of a text that did not come."""
    return bool(vector[-DIMENSION:].any())


def count_words(words: Sequence[str]) -> Vector:
    """Counts [n, `COUNTED`] of words, at least one, none with a blank in it: n-grams by bucket, then kinds of characters."""
    points = _points(words)
    inside = points != _SPACE
    word_of = np.cumsum(~inside) - 1  # a blank is of the word behind it, and the last of none
    of = np.concatenate([word_of[inside], word_of[:-1], word_of[1:-1][inside[1:-1]]])
    counts = np.empty((len(words), COUNTED), np.float32)
    buckets = np.bincount(of * BUCKETS + _buckets(points, inside), minlength=len(words) * BUCKETS)
    counts[:, :BUCKETS] = buckets.reshape(len(words), BUCKETS)
    lengths = [len(word) for word in words]
    counts[:, BUCKETS:-1] = np.add.reduceat(_KINDS_OF_FLAGS[_flags(points[inside])], np.cumsum([0, *lengths[:-1]]), 0)
    counts[:, -1] = np.array(lengths) >= _LONG_WORD
    return counts


def _points(words: Sequence[str]) -> Points:
    """Characters of words, with a blank around each."""
    return np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le", "surrogatepass"), "<u4")


def _buckets(points: Points, inside: NDArray[np.bool_]) -> Points:
    """Of each n-gram: those of one character of a word, then all of two, then those of three around one of a word."""
    twos = points[:-1] * _NEXT + points[1:]
    threes = twos[:-1] * _NEXT + points[2:]
    grams: Points = np.concatenate([points[inside], twos, threes[inside[1:-1]]])
    grams *= _MIXED  # multiplicative hashing: the upper bits of a product with an odd number
    grams >>= _UPPER
    grams %= _BUCKETS
    return grams


def _flags(points: Points) -> NDArray[np.uint8]:
    return np.take(flags_of_plane(), points, mode="clip")


def vectors_of(counts: Vector, sizes: Sizes, ends: Ends) -> Vector:
    """Unit vectors [n, `DIMENSION`] of counts [n, `COUNTED`] of texts which begin and end alike."""
    made = np.empty((len(counts), DIMENSION), np.float32)
    made[:, :BUCKETS] = unit_rows(np.sqrt(counts[:, :BUCKETS]))
    for column, value in enumerate(_shape(list(counts.T[BUCKETS:]), sizes, ends), BUCKETS):
        made[:, column] = value
    return unit_rows(made) @ _TURNED


def _shape(kinds: Sequence[Any], sizes: Sizes, ends: Ends) -> tuple[Any, ...]:
    """`SHAPES` numbers from 0 to about 1, of a text or of many."""
    characters, count, blanks, lines = sizes
    words, shown = max(count, 1), characters - blanks + 1
    *shares, long = kinds
    log1p: Any = np.log1p if isinstance(characters, np.ndarray) else math.log1p  # numpy's takes a microsecond for one number
    lengths = (log1p(characters) / 4, math.log1p(words) / 4, math.log1p(lines), blanks / characters, long / words, shown / words / 10)
    return tuple(_SHAPE_WEIGHT * value for value in (*lengths, *(share / shown for share in shares), *ends))


@cache
def flags_of_plane() -> NDArray[np.uint8]:
    """Of each character of the first plane, its kinds, a bit each; beyond it all are letters of some script, or pictures. Made at the first
    call, in a tenth of a second.
    """
    flags = np.zeros(_PLANE, np.uint8)
    for point in range(_PLANE):
        character, category = chr(point), unicodedata.category(chr(point))[0]
        kinds = (category == "N", character.isupper(), character.isalpha(), category == "P", category == "S", point > 127)
        flags[point] = sum(is_so << place for place, is_so in enumerate(kinds))
    return flags


_KINDS_OF_FLAGS: Final[Vector] = (np.arange(64)[:, None] >> np.arange(_KINDS - 1) & 1).astype(np.float32)


def _turned() -> Vector:
    """An orthogonal matrix [`DIMENSION`, `DIMENSION`] that is the same everywhere: signs at random, then Hadamard's."""
    made = np.ones((1, 1))
    while len(made) < DIMENSION:
        made = np.block([[made, made], [made, -made]])
    signs = np.random.RandomState(0).choice([-1, 1], DIMENSION)  # whose numbers are the same in every version of numpy
    return (signs[:, None] * made / math.sqrt(DIMENSION)).astype(np.float32)


_TURNED: Final = _turned()
