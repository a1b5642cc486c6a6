"""Sketches find every pair that is alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.policy import candidates
from services.optimizer.policy.candidates import SLACK, near_pairs


@settings(max_examples=50, deadline=None, derandomize=True)
@given(count=st.integers(0, 40), seed=st.integers(0, 100), block=st.integers(1, 50))
def test_the_pairs_are_those_of_the_definition(count: int, seed: int, block: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = [(low, high) for low in range(count) for high in range(low + 1, count) if vectors[low] @ vectors[high] > 0.9 - SLACK]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(candidates, "_BLOCK_ROWS", block)
        assert sorted(near_pairs(vectors, 0.9, 1000)) == wanted
        assert near_pairs(vectors, 0.9, 3) == near_pairs(vectors, 0.9, 1000)[:3]
