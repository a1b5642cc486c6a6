"""How a text looks, beside what it is about: its characters, and its shape.

Characters: n-grams of one to three within each word and the blanks around it, counted in hashed buckets (as fastText's subwords: Bojanowski
et al. 2017, "Enriching word vectors with subword information"), the root of each count. Shape: lengths, shares of kinds of characters, how
it begins and ends. A few passes of numpy over the text's characters, about 40 us for a sentence.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smoa.embedding.port import Vector, normalised, unit_rows

BUCKETS: Final = 112
SHAPES: Final = 16
DIMENSION: Final = BUCKETS + SHAPES
NAME: Final = "surface-1"
"""Of what makes these vectors: those of two names are not to be compared."""
_SHAPE_WEIGHT: Final = 0.5
_LONG_WORD: Final = 9
_KINDS: Final = ("characters", "lines", "blanks", "digits", "capitals", "letters", "marks", "signs", "foreign")
BLANK: Final = [BUCKETS + _KINDS.index("characters"), BUCKETS + _KINDS.index("blanks")]
"""Where a blank is counted."""
_FIRST, _SECOND, _THIRD, _MIXED = (np.uint32(one) for one in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F))
_SPACE: Final = 32
_PLANE: Final = 0x10000


def vector_of(text: str) -> Vector:
    """Unit vector [`DIMENSION`] of a text; zeros of one without characters."""
    if not text:
        return np.zeros(DIMENSION, np.float32)
    words = text.split()
    counts = _counts(text, words)
    made = np.empty(DIMENSION, np.float32)
    made[:BUCKETS] = normalised(np.sqrt(counts[:BUCKETS]))
    made[BUCKETS:] = _shape(counts[BUCKETS:].tolist(), max(len(words), 1), Ends.of(text))
    return normalised(made)


def counts_of(text: str) -> Vector:
    """Of a text, [buckets, kinds and long words]: n-grams by bucket, then kinds of characters. Those of words with a blank before each add
    up to their text's, but for the first blank.
    """
    return _counts(text, text.split())


def vectors_of(counts: Vector, words: int, ends: Ends) -> Vector:
    """Unit vectors [n, `DIMENSION`] of counts [n, ...] of texts of so many words, which begin and end alike."""
    made = np.empty((len(counts), DIMENSION), np.float32)
    made[:, :BUCKETS] = unit_rows(np.sqrt(counts[:, :BUCKETS]))
    for column, value in enumerate(_shape(counts.T[BUCKETS:], words, ends), BUCKETS):
        made[:, column] = value
    return unit_rows(made)


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


def _counts(text: str, words: list[str]) -> Vector:
    counts = np.empty(BUCKETS + len(_KINDS) + 1, np.float32)
    if words:
        counts[:BUCKETS] = np.bincount(_buckets(_points(f" {' '.join(words)} ")), minlength=BUCKETS)
    else:
        counts[:BUCKETS] = 0
    counts[BUCKETS:-1] = np.bincount(_flags(_points(text)), minlength=256) @ _KINDS_OF_FLAGS
    counts[-1] = sum(len(word) >= _LONG_WORD for word in words)
    return counts


def _points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _buckets(points: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Of all n-grams of words with a blank on either side. A multiplicative hash: products of the characters, added and mixed."""
    first, second = points * _FIRST, points * _SECOND
    inside = points != _SPACE
    ones = first[inside]
    twos = first[:-1] + second[1:]
    threes = (twos[:-1] + points[2:] * _THIRD)[inside[1:-1]]
    grams = np.concatenate([ones, twos, threes])
    grams ^= grams >> np.uint32(15)
    grams *= _MIXED
    grams ^= grams >> np.uint32(13)
    return grams % np.uint32(BUCKETS)


def _flags(points: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Kinds of characters, a bit each; beyond the first plane all are letters of some script, or pictures."""
    return _FLAGS[np.minimum(points, _PLANE - 1)]


def _flags_of_plane() -> NDArray[np.uint8]:
    flags = np.zeros(_PLANE, np.uint8)
    for point in range(_PLANE):
        character = chr(point)
        category = unicodedata.category(character)[0]
        kinds = (
            character == "\n",
            character.isspace(),
            category == "N",
            character.isupper(),
            character.isalpha(),
            category == "P",
            category == "S",
            point > 127,
        )
        flags[point] = sum(is_so << place for place, is_so in enumerate(kinds))
    return flags


_FLAGS: Final = _flags_of_plane()
_KINDS_OF_FLAGS: Final = np.concatenate([np.ones((256, 1)), np.arange(256)[:, None] >> np.arange(8) & 1], 1)
"""[flags, `_KINDS`]: every character counts, and then by its kinds."""


def _shape(kinds: Iterable[Any], words: int, ends: Ends) -> tuple[Any, ...]:
    """`SHAPES` numbers from 0 to about 1, of a text or of many."""
    characters, lines, blanks, digits, capitals, letters, marks, signs, foreign, long = kinds
    log1p: Any = math.log1p if isinstance(characters, float) else np.log1p  # numpy's takes a microsecond for one number
    shown = characters - blanks + 1
    lengths = (log1p(characters) / 4, math.log1p(words) / 4, log1p(lines), blanks / characters, long / words, shown / words / 10)
    shares = (digits / shown, capitals / shown, letters / shown, marks / shown, signs / shown, foreign / shown)
    return tuple(_SHAPE_WEIGHT * value for value in (*lengths, *shares, *ends))
