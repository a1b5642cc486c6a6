"""How texts look: what changes the vector and what does not, and that it is the sum over words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smoa.embedding.surface import DIMENSION, Ends, Sizes, count_words, vector_of, vectors_of


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
@example("")
@example(" \n\t")
@example("\ud800")
@example("a" * 10_000)
@example("私は学生です")
def test_every_text_has_a_unit_vector_or_none(text: str) -> None:
    vector = vector_of(text)
    assert vector.shape == (DIMENSION,)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1 if text else 0, abs=1e-5)


def test_forms_are_nearer_to_each_other_than_to_other_forms() -> None:
    forms = {
        "dates": ["2024-03-05", "1999-12-31", "2010-07-19"],
        "questions": ["Who was the first king?", "Where does the river end?", "Why is the sky blue?"],
        "shouting": ["GIVE IT BACK NOW", "STOP THAT AT ONCE", "LEAVE ME ALONE"],
        "code": ["for (int i = 0; i < n; i++) {}", "if (a == b) { return c; }", "x[i] = y[j] + 1;"],
    }
    vectors = {name: np.stack([vector_of(text) for text in texts]) for name, texts in forms.items()}
    for name, own in vectors.items():
        for place, vector in enumerate(own):
            within = np.delete(own, place, 0) @ vector
            for other, theirs in vectors.items():
                assert other == name or within.max() > (theirs @ vector).max(), (name, other)


def test_counts_of_words_add_up_to_those_of_their_text() -> None:
    words = ["one", "more", "sentence", "Ümläut", "x"]
    together = count_words(words)
    assert together == pytest.approx(np.concatenate([count_words([word]) for word in words]))
    text = " ".join(words)
    made = vectors_of(together.sum(0)[None], Sizes(len(text), 5, 4, 0), Ends.of(text))
    assert made[0] == pytest.approx(vector_of(text), abs=1e-6)
