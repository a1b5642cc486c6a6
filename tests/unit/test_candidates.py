"""Sketches find every pair that is alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimizer.policy import candidates
from services.optimizer.policy.candidates import SLACK, near_pairs, near_pairs_in_cells


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


@settings(max_examples=50, deadline=None, derandomize=True)
@given(count=st.integers(0, 40), seed=st.integers(0, 100), new=st.sets(st.integers(0, 39)))
def test_of_what_is_new_the_pairs_are_those_with_one_of_it(count: int, seed: int, new: set[int]) -> None:
    vectors = np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    here = sorted(one for one in new if one < count)
    wanted = [pair for pair in near_pairs(vectors, 0.9, 1000) if not new.isdisjoint(pair)]
    found = near_pairs(vectors, 0.9, 1000, here)
    assert sorted(found) == sorted(wanted)
    assert len(found) == len(set(found))


def test_partitions_find_what_is_alike_among_thousands_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6000, 256)).astype(np.float32)
    vectors[3000:3500] = vectors[:500] + 0.4 * rng.standard_normal((500, 256)).astype(np.float32)  # a cosine of 0.93
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = set(near_pairs(vectors, 0.9, 10_000))
    assert exact == {(row, row + 3000) for row in range(500)}
    found: set[tuple[int, int]] = set()
    shares = []
    for seed in range(12):
        some = near_pairs_in_cells(vectors, 0.9, 10_000, seed)
        assert exact.issuperset(some)
        found.update(some)
        shares.append(len(found) / len(exact))
    assert shares[0] > 0.3
    assert shares[-1] > 0.99
