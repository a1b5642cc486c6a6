"""Text to vector: word by word it is what the tokenizer makes of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from smoa.embedding.static import StaticEmbedder, Words

EMBEDDER = StaticEmbedder()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet=st.one_of(st.sampled_from(" ▁\n<s>/ab"), st.characters(exclude_categories=["Cs"])), max_size=60))
@example("two  blanks and three   blanks ")
@example("a special </s> token, and <s>")
@example(" leading, trailing  ")
@example("▁ written out▁▁")
def test_word_by_word_is_the_whole(text: str) -> None:
    whole = EMBEDDER._tokenizer.encode(text, add_special_tokens=False).ids
    assert EMBEDDER._words.ids(text) == whole
    assert EMBEDDER._words.ids(text) == whole, "from the cache"


def test_embeddings_are_unit_vectors_or_zero() -> None:
    assert np.linalg.norm(EMBEDDER.vector_of("refund my order")) == pytest.approx(1, abs=1e-6)
    assert not EMBEDDER.vector_of("").any()


def test_a_tokenizer_whose_tokens_reach_over_a_blank_is_refused() -> None:
    with pytest.raises(ValueError, match="reaches over a blank"):
        Words(Tokenizer(models.BPE({"▁": 0, "a▁b": 1}, [])))
