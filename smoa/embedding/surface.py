"""How a text looks, beside what it is about: its characters, and its shape.

Characters: n-grams of one to three within each word and the blank before it, counted in hashed buckets (as fastText's subwords: Bojanowski
et al. 2017, "Enriching word vectors with subword information"), the root of each count. Shape: lengths, shares of kinds of characters, how
it begins and ends. Both are sums over words, so a word is taken apart once and not in every query.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np

from smoa.embedding.port import Vector, normalised, unit_rows

BUCKETS: Final = 112
SHAPES: Final = 16
DIMENSION: Final = BUCKETS + SHAPES
NAME: Final = "surface-1"
"""Of what makes these vectors: those of two names are not to be compared."""
_WORD: Final = re.compile(r"\s*\S+|\s+$")
_LONGEST_GRAM: Final = 3
_CACHED_WORDS, _CACHED_WORD_CHARACTERS = 32_768, 24
_SHAPE_WEIGHT: Final = 0.5
_KINDS: Final = ("characters", "lines", "blanks", "digits", "capitals", "letters", "marks", "signs", "foreign", "long words")
BLANK: Final = [BUCKETS + _KINDS.index("characters"), BUCKETS + _KINDS.index("blanks")]
"""Where a blank is counted."""
_KIND_OF_CATEGORY: Final = {"N": "digits", "P": "marks", "S": "signs"}


class SurfaceView:
    """Unit vectors [`DIMENSION`] of how texts look. Threads may share it."""

    def __init__(self) -> None:
        self._words, self._lock = _Words(), Lock()

    def vector_of(self, text: str) -> Vector:
        """Unit vector of a text; zeros of one without characters."""
        words = _WORD.findall(text)
        if not words:
            return np.zeros(DIMENSION, np.float32)
        total = self._counted(words)
        made = np.empty(DIMENSION, np.float32)
        made[:BUCKETS] = normalised(np.sqrt(total[:BUCKETS]))
        made[BUCKETS:] = _shape(total[BUCKETS:].tolist(), len(words), Ends.of(text))
        return normalised(made)

    def _counted(self, words: Sequence[str]) -> Vector:
        """Counts over all words, [buckets and kinds]."""
        known = self._words
        row_of, rows, long = known.row_of, list[int](), list[Vector]()
        for word in words:
            row = row_of.get(word)
            if row is not None:
                rows.append(row)
            elif len(word) > _CACHED_WORD_CHARACTERS:
                long.append(counts_of(word))
            else:
                long.append(counts := counts_of(word))
                self._keep(word, counts)
        total: Vector = np.add.reduce(known.rows[rows], 0)
        return total if not long else np.add.reduce([total, *long], 0)

    def _keep(self, word: str, counts: Vector) -> None:
        with self._lock:
            if len(self._words.row_of) == _CACHED_WORDS:
                self._words = _Words()  # whoever is in the middle of a text still has the old ones
            known = self._words
            if word not in known.row_of:  # another thread may have been faster
                known.rows[len(known.row_of)] = counts
                known.row_of[word] = len(known.row_of)


class _Words:
    """Words seen before, and their counts."""

    def __init__(self) -> None:
        self.row_of: dict[str, int] = {}
        self.rows: Vector = np.zeros((_CACHED_WORDS, BUCKETS + len(_KINDS)), np.float32)  # the system gives pages as they are used


def counts_of(word: str) -> Vector:
    """Of a word with the blanks before it, [buckets and kinds]: n-grams by bucket, then kinds of characters. A text's are their sum."""
    counts = np.zeros(BUCKETS + len(_KINDS), np.float32)
    encoded = f" {word.lstrip()} ".encode("utf-32-le", "surrogatepass")
    for length in range(4, 4 * _LONGEST_GRAM + 1, 4):
        for start in range(0, len(encoded) - length + 1, 4):
            counts[zlib.crc32(encoded[start : start + length]) % BUCKETS] += 1
    kinds = dict.fromkeys(_KINDS, 0)
    for character in word:
        kinds["characters"] += 1
        kinds["lines"] += character == "\n"
        kinds["blanks"] += character.isspace()
        kinds["capitals"] += character.isupper()
        kinds["letters"] += character.isalpha()
        kinds["foreign"] += ord(character) > 127
        if (kind := _KIND_OF_CATEGORY.get(unicodedata.category(character)[0])) is not None:
            kinds[kind] += 1
    kinds["long words"] = len(word) > 8
    counts[BUCKETS:] = list(kinds.values())
    return counts


def vectors_of(counts: Vector, words: int, ends: Ends) -> Vector:
    """Unit vectors [n, `DIMENSION`] of counts [n, buckets and kinds] of texts of so many words, which begin and end alike."""
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


def _shape(kinds: Iterable[Any], words: int, ends: Ends) -> tuple[Any, ...]:
    """`SHAPES` numbers from 0 to about 1, of a text or of many."""
    characters, lines, blanks, digits, capitals, letters, marks, signs, foreign, long = kinds
    log1p: Any = math.log1p if isinstance(characters, float) else np.log1p  # numpy's takes a microsecond for one number
    shown = characters - blanks + 1
    lengths = (log1p(characters) / 4, math.log1p(words) / 4, log1p(lines), blanks / characters, long / words, shown / words / 10)
    shares = (digits / shown, capitals / shown, letters / shown, marks / shown, signs / shown, foreign / shown)
    return tuple(_SHAPE_WEIGHT * value for value in (*lengths, *shares, *ends))
