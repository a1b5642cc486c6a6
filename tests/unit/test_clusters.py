"""Coarse clusters: leaders stay, adapters come and go."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.catalogue.port import Vector
from services.router.search.clusters import JOIN_COSINE, MAX_CLUSTERS, Clusters


def _unit(rows: Vector) -> Vector:
    made: Vector = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return made


def _vectors(count: int, seed: int, dimension: int = 16) -> Vector:
    return _unit(np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32))


def test_what_is_near_a_leader_joins_it_and_what_is_not_leads() -> None:
    clusters, axes = Clusters(4), np.eye(4, dtype=np.float32)
    near = _unit(axes[:1] + 0.3 * axes[1:2])
    assert clusters.join(np.concatenate([axes[:2], near])).tolist() == [0, 1, 0]
    assert clusters.nearest(axes[1], 1).tolist() == [1]


def test_an_empty_cluster_is_not_looked_into_and_can_be_joined_again() -> None:
    clusters, axes = Clusters(4), np.eye(4, dtype=np.float32)
    clusters.join(axes[:2])
    clusters.leave(1)
    assert len(clusters) == 1
    assert clusters.nearest(axes[1], 3).tolist() == [0]
    assert clusters.join(axes[1:2]).tolist() == [1]


def test_nothing_has_no_clusters() -> None:
    assert Clusters(4).nearest(np.ones(4, np.float32), 3).tolist() == []


def test_their_number_is_bounded() -> None:
    clusters = Clusters(2000)
    joined = clusters.join(np.eye(2000, dtype=np.float32)[: MAX_CLUSTERS + 50])
    assert len(clusters) == MAX_CLUSTERS
    assert joined.max() == MAX_CLUSTERS - 1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(0, 99), st.integers(1, 60))
def test_in_one_go_or_in_parts_the_leaders_are_the_same_and_near(count: int, seed: int, part: int) -> None:
    vectors, whole, parts = _vectors(count, seed), Clusters(16), Clusters(16)
    joined = [int(one) for start in range(0, count, part) for one in parts.join(vectors[start : start + part])]
    at_once = whole.join(vectors).tolist()
    assert np.array_equal(whole._leaders, parts._leaders)
    for clusters in (joined, at_once):
        assert all(vector @ whole._leaders[cluster] >= JOIN_COSINE for vector, cluster in zip(vectors, clusters, strict=True))
