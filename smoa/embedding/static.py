"""Static text embedding: the table of `wordllama` (256-d, MIT), read without its own loader, which asks a hub for a tokenizer."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from smoa.embedding.parts import in_parts
from smoa.embedding.port import LONG_CHARACTERS, Vector, normalised
from smoa.errors import FailedPrecondition
from smoa.fair_turns import ThreadTurns

_WORD: Final = re.compile("[ ▁]+[^ ▁]*")
_CACHED_WORDS, _CACHED_WORD_CHARACTERS = 65_536, 24


class Words:
    """Token ids of a text, word by word, so that a word is tokenised once and not in every query.

    That gives the tokens of the whole text: the tokenizer (byte-pair encoding, a blank written as `▁`) has no token with a blank after
    another character, so no merge reaches from one word into the next. A text that spells a special token is left to it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        if any("▁" in token.lstrip("▁") for token in tokenizer.get_vocab()):
            raise ValueError("a token of this tokenizer reaches over a blank")
        self._special = tuple(one.content for one in tokenizer.get_added_tokens_decoder().values())
        self._known: dict[str, list[int]] = {}
        self._begins = frozenset(number for token, number in tokenizer.get_vocab().items() if token.startswith("▁"))
        self._blank = tokenizer.get_vocab()["▁"]  # of one at the end: the tokenizer puts one before a text that is not empty

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        if not text or any(special in text for special in self._special):
            return self._tokenized(text)
        words: list[str] = _WORD.findall(" " + text)
        known = {word: self._known.get(word) for word in words}
        if new := [word for word, ids in known.items() if ids is None]:
            made = self._made(new)
            if len(self._known) + len(made) > _CACHED_WORDS:
                self._known.clear()
            self._known.update((word, ids) for word, ids in made.items() if len(word) <= _CACHED_WORD_CHARACTERS)
            known |= made
        return [one for word in words for one in known[word] or ()]

    def _made(self, words: Sequence[str]) -> dict[str, list[int]]:
        """Ids by word. Those with one blank before them in one call, for a call costs more than a word."""
        plain = [word for word in words if len(word) > 1 and word[0] == " " and word[1] not in " ▁"]
        made = {word: self._tokenized(word[1:]) if len(word) > 1 else [self._blank] for word in set(words).difference(plain)}
        parts = list[list[int]]()
        for one in self._tokenized("".join(plain)[1:]) if plain else ():
            if one in self._begins:
                parts.append([one])
            else:
                parts[-1].append(one)
        made.update(zip(plain, parts, strict=True))
        return made

    def _tokenized(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class StaticEmbedder:
    """Mean of token vectors, their lengths damped, normalised. numpy only; about 0.1 ms a query."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("wordllama")
        if spec is None or spec.origin is None:
            raise FailedPrecondition("embedding: the package wordllama is not installed; run `make setup`")
        folder = Path(spec.origin).parent
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        self._tokenizer.no_padding()
        self._words, self._turns = Words(self._tokenizer), ThreadTurns()
        table = next(iter(load_file(folder / "weights" / "l2_supercat_256.safetensors").values())).astype(np.float32)
        # Token vectors differ tenfold in length; the root of it routes the example library better (docs/decisions/0003).
        self._table: Vector = table / np.sqrt(np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-6))

    @property
    def name(self) -> str:
        """Of what makes the vectors: those of two names are not to be compared."""
        return "wordllama-l2-supercat"

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self._table.shape[1])

    async def embed(self, texts: Sequence[str]) -> Vector:
        """See `Embedder`. Much text at once, as fifty long examples, takes a tenth of a second: on a thread."""
        if len(texts) == 1 and len(texts[0]) <= LONG_CHARACTERS:
            return self.vector_of(texts[0])[None]
        return await in_parts(self._turns, texts, self.vector_of)

    async def close(self) -> None:
        """See `Embedder`: it holds nothing."""

    def vector_of(self, text: str) -> Vector:
        """Unit vector [dimension] of a text (zeros if it has no token)."""
        ids = self._words.ids(text)
        return normalised(np.add.reduce(self._table[ids], 0)) if ids else np.zeros(self.dimension, np.float32)

    def vocabulary(self) -> tuple[NDArray[np.str_], Vector]:
        """Plain words of the table, in order, and the sum of each one's token vectors [words, dimension]: to make up libraries from."""
        known = (token[1:] for token in self._tokenizer.get_vocab() if token.startswith("▁"))
        words = sorted(word for word in known if len(word) > 4 and word.isascii() and word.isalpha())
        encoded = self._tokenizer.encode_batch(words, add_special_tokens=False)
        return np.array(words), np.stack([self._table[one.ids].sum(0) for one in encoded])
