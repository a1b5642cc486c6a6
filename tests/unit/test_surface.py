"""How texts look: what changes the vector and what does not, and that it is the sum over words."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smoa.embedding import surface
from smoa.embedding.surface import DIMENSION, Ends, Sizes, SurfaceView, count_words, vectors_of

VIEW = SurfaceView()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
@example("")
@example(" \n\t")
@example("\ud800")
@example("a" * 10_000)
@example("私は学生です")
def test_every_text_has_a_unit_vector_or_none(text: str) -> None:
    vector = VIEW.vector_of(text)
    assert vector.shape == (DIMENSION,)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1 if text else 0, abs=1e-5)
    assert VIEW.vector_of(text) == pytest.approx(vector, abs=1e-6), "a word that is known already counts as it did"


def test_forms_are_nearer_to_each_other_than_to_other_forms() -> None:
    forms = {
        "dates": ["2024-03-05", "1999-12-31", "2010-07-19"],
        "questions": ["Who was the first king?", "Where does the river end?", "Why is the sky blue?"],
        "shouting": ["GIVE IT BACK NOW", "STOP THAT AT ONCE", "LEAVE ME ALONE"],
        "code": ["for (int i = 0; i < n; i++) {}", "if (a == b) { return c; }", "x[i] = y[j] + 1;"],
    }
    vectors = {name: np.stack([VIEW.vector_of(text) for text in texts]) for name, texts in forms.items()}
    for name, own in vectors.items():
        for place, vector in enumerate(own):
            within = np.delete(own, place, 0) @ vector
            for other, theirs in vectors.items():
                assert other == name or within.min() > (theirs @ vector).max(), (name, other)


def test_counts_of_words_add_up_to_those_of_their_text() -> None:
    words = ["one", "more", "sentence", "Ümläut", "x"]
    together = count_words(words)
    assert together == pytest.approx(np.concatenate([count_words([word]) for word in words]))
    text = " ".join(words)
    made = vectors_of(together.sum(0)[None], Sizes(len(text), 5, 4, 0), Ends.of(text))
    assert made[0] == pytest.approx(VIEW.vector_of(text), abs=1e-6)


def test_a_full_memory_of_words_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "_KEPT_WORDS", 8)
    view = SurfaceView()
    for number in range(20):
        text = " ".join(f"w{number}x{place}" for place in range(5))
        assert view.vector_of(text) == pytest.approx(VIEW.vector_of(text), abs=1e-6)


def test_threads_share_a_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "_KEPT_WORDS", 50)
    view, wrong = SurfaceView(), list[str]()
    texts = [" ".join(f"v{number * place % 97}" for place in range(9)) for number in range(200)]
    wanted = {text: VIEW.vector_of(text) for text in texts}

    def ask(seed: int) -> None:
        for place in np.random.default_rng(seed).permutation(len(texts)):
            if not np.allclose(view.vector_of(texts[place]), wanted[texts[place]], atol=1e-6):
                wrong.append(texts[place])

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
