"""Pools of vectors: exact while small, near enough when large, right at every moment of growing, dropping and retraining."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.router.catalogue.encoded_vectors import Encoded
from services.router.catalogue.port import Vector
from services.router.search import clusters
from services.router.search.part import Part
from services.router.search.pool import EXACT_ROWS, VectorPool
from services.router.search.scan import FLAT_ROWS, Scan, cells_for

DIMENSION = 128


def _vectors(count: int, seed: int = 0, dimension: int = DIMENSION) -> Vector:
    """Unit vectors around twenty centres, as a library of tasks is."""
    rng, centres = np.random.default_rng(seed), np.random.default_rng(42).standard_normal((20, dimension))
    made = (centres[rng.integers(0, 20, count)] + rng.standard_normal((count, dimension))).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def _trained(pool: VectorPool, rows: int | None = None) -> Scan:
    successor = Scan.train(pool.sample(50_000), rows or pool.positions)
    successor.watch(pool.sample(64, seed=1))
    for start in range(0, pool.positions, 1000):
        successor.fill(pool.encoded(start, start + 1000))
    if successor.watching:
        successor.calibrate()
    return successor


def _recall(pool: VectorPool, vectors: Vector, queries: Vector) -> float:
    shares = []
    for query in queries:
        true = np.sort(vectors @ query)[-10:]
        rows, _ = pool.nearest(query, 10)
        shares.append(np.mean(vectors[rows] @ query >= true[0] - 1e-4))
    return float(np.mean(shares))


def test_eight_bits_keep_a_cosine_to_a_thousandth() -> None:
    vectors, query = _vectors(200, dimension=256), _vectors(1, 1, 256)[0]
    assert np.abs(Encoded.of(vectors).decoded() @ query - vectors @ query).max() < 2e-3


def test_small_pools_are_exact_and_ordered() -> None:
    vectors, pool = _vectors(500), VectorPool(DIMENSION)
    pool.add(np.arange(500) + 1000, Encoded.of(vectors))
    rows, cosines = pool.nearest(vectors[7], 5)
    assert rows[0] == 1007
    assert list(cosines) == sorted(cosines, reverse=True)
    assert not pool.wants_training


def test_an_empty_pool_finds_nothing() -> None:
    pool = VectorPool(DIMENSION)
    assert [len(part) for part in pool.nearest(_vectors(1)[0], 5)] == [0, 0]


def test_scanned_pools_find_nearly_all_and_what_came_later() -> None:
    vectors, pool = _vectors(6000), VectorPool(DIMENSION)
    pool.add(np.arange(5000), Encoded.of(vectors[:5000]))
    assert pool.wants_training
    pool.adopt(_trained(pool))
    assert not pool.wants_training
    pool.add(np.arange(5000, 6000), Encoded.of(vectors[5000:]))
    assert _recall(pool, vectors, _vectors(50, 9)) > 0.97
    assert pool.nearest(vectors[5999], 1)[0][0] == 5999


@pytest.mark.parametrize("rows", [None, FLAT_ROWS + 1])
def test_dropped_neighbours_do_not_hide_those_behind_them(rows: int | None) -> None:
    query = _vectors(1, 3)[0]
    near = query + 0.02 * _vectors(900, 4)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    vectors, pool = np.concatenate([near, _vectors(5000)]), VectorPool(DIMENSION)
    pool.add(np.arange(len(vectors)), Encoded.of(vectors))
    pool.adopt(_trained(pool, rows))
    for position in range(900):
        pool.drop(position)
    assert not pool.wants_compaction
    found, _ = pool.nearest(query, 10)
    assert len(found) == 10
    assert found.min() >= 900


def test_other_clusters_do_not_hide_the_nearest_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for the nearest cluster alone, a scan goes on until it has met it."""
    monkeypatch.setattr(clusters, "CLUSTERED_FROM", 0)
    query = _vectors(1, 3)[0]
    near = query + 0.02 * _vectors(900, 4)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    pool = VectorPool(DIMENSION)
    for row, vector in enumerate(np.concatenate([near, _vectors(5000)])):
        pool.add(np.array([row]), Encoded.of(vector[None]))
    pool.adopt(_trained(pool))
    assert pool._clusters is not None
    exact = [int(row) for row, cluster in enumerate(pool._cluster[: pool.positions]) if cluster == pool._clusters.nearest(query, 1)[0]]
    assert len(pool.nearest(query, 1200, clusters=1)[0]) >= 0.9 * min(1200, len(exact))


def test_parts_whose_nearest_are_in_other_clusters_are_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CLUSTERED_FROM", 0)
    vectors, pool = _vectors(5_000), VectorPool(DIMENSION)
    pool.add(np.arange(5_000), Encoded.of(vectors))
    positions = np.arange(5_000, dtype=np.int32)
    scan = Scan.from_bytes(Scan.train(pool.sample(5_000), 1).to_bytes(), 1, 1, 10)
    scan.fill(pool.at(positions))
    assert pool._clusters is not None
    exact = np.flatnonzero(np.isin(pool._cluster[:5_000], pool._clusters.nearest(vectors[7], 2)))
    assert len(pool.nearest(vectors[7], 40, [Part(positions, scan, positions)], clusters=2)[0]) == min(40, len(exact)) > 10


@pytest.mark.parametrize("rows", [None, FLAT_ROWS + 1])
def test_a_dimension_that_no_code_divides_is_scanned_like_any_other(rows: int | None) -> None:
    vectors, pool = _vectors(4_000, dimension=51), VectorPool(51)
    pool.add(np.arange(4_000), Encoded.of(vectors))
    pool.adopt(_trained(pool, rows))
    assert _recall(pool, vectors, _vectors(50, 9, 51)) > 0.95


def test_cells_are_calibrated_until_recall_is_there() -> None:
    vectors, pool = _vectors(6000), VectorPool(DIMENSION)
    pool.add(np.arange(6000), Encoded.of(vectors))
    successor = _trained(pool, rows=FLAT_ROWS + 1)
    assert successor.cells == cells_for(FLAT_ROWS + 1) == 512
    assert 8 <= successor.probes <= successor.cells
    pool.adopt(successor)
    assert _recall(pool, vectors, _vectors(50, 9)) > 0.95


def test_what_training_learned_is_kept_without_the_vectors() -> None:
    vectors, pool = _vectors(3000), VectorPool(DIMENSION)
    pool.add(np.arange(3000), Encoded.of(vectors))
    learned = Scan.train(pool.sample(3000), 3000).to_bytes()
    again = Scan.from_bytes(learned, 3000, 1, 256)
    again.fill(pool.encoded(0, 3000))
    pool.adopt(again)
    assert _recall(pool, vectors, _vectors(20, 9)) > 0.97


def test_a_successor_that_lags_is_refused() -> None:
    pool = VectorPool(DIMENSION)
    pool.add(np.arange(3000), Encoded.of(_vectors(3000)))
    successor = _trained(pool)
    pool.add(np.array([3000]), Encoded.of(_vectors(1)))
    with pytest.raises(ValueError, match="3000 of 3001"):
        pool.adopt(successor)


def test_dropped_vectors_are_never_found_again() -> None:
    vectors, pool = _vectors(EXACT_ROWS + 500), VectorPool(DIMENSION)
    pool.add(np.arange(len(vectors)), Encoded.of(vectors))
    pool.adopt(_trained(pool))
    for position in range(1200):
        pool.drop(position)
        pool.drop(position)
    assert len(pool) == EXACT_ROWS + 500 - 1200
    assert pool.wants_compaction
    assert all(row >= 1200 for row in pool.nearest(vectors[0], 50)[0])


def test_only_the_parts_count() -> None:
    vectors, pool = _vectors(300), VectorPool(DIMENSION)
    pool.add(np.arange(300), Encoded.of(vectors))
    some, others = Part(np.array([5, 9], np.int32)), Part(np.array([2, 5], np.int32))
    assert set(pool.nearest(vectors[0], 10, [some])[0]) == {5, 9}
    found = pool.nearest(vectors[5], 10, [some, others])[0].tolist()
    assert found[0] == 5
    assert sorted(found) == [2, 5, 9], "one that is in both is found once"
    assert list(pool.holds(np.array([5, 5, -1, 900], np.int32), np.array([5, 6, 7, 900]))) == [True, False, False, False]


class PoolMachine(RuleBasedStateMachine):
    """Small pools against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.model, self.following = VectorPool(DIMENSION), dict[int, tuple[int, Vector]](), 0

    @rule(count=st.integers(1, 40), seed=st.integers(0, 99))
    def add(self, count: int, seed: int) -> None:
        rows, vectors = np.arange(self.following, self.following + count), _vectors(count, seed)
        first = self.pool.add(rows, Encoded.of(vectors))
        self.model |= {int(row): (first + n, vectors[n]) for n, row in enumerate(rows)}
        self.following += count

    @rule(which=st.integers(0, 10_000))
    def drop(self, which: int) -> None:
        if self.model:
            row = sorted(self.model)[which % len(self.model)]
            self.pool.drop(self.model.pop(row)[0])

    @rule(seed=st.integers(0, 99))
    def search(self, seed: int) -> None:
        query = _vectors(1, seed)[0]
        rows, cosines = self.pool.nearest(query, 5)
        true = sorted((float(vector @ query) for _, vector in self.model.values()), reverse=True)[:5]
        assert list(cosines) == pytest.approx(true, abs=5e-3)
        assert set(rows.tolist()) <= set(self.model)

    @invariant()
    def counts(self) -> None:
        assert len(self.pool) == len(self.model)


PoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None, derandomize=True)
TestPool = PoolMachine.TestCase
