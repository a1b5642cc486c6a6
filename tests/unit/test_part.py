"""Parts of a pool: what is scored of them, with a scan, without one, and while they change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.router.catalogue.encoded_vectors import Encoded
from services.router.catalogue.port import Vector
from services.router.search import part as part_module
from services.router.search.part import Part
from services.router.search.scan import Scan
from smoa.embedding.port import unit_rows

DIMENSION = 128


def _vectors(count: int, seed: int = 0) -> Vector:
    """Around twenty centres, as a library of tasks is."""
    rng, centres = np.random.default_rng(seed), np.random.default_rng(42).standard_normal((20, DIMENSION))
    return unit_rows((centres[rng.integers(0, 20, count)] + rng.standard_normal((count, DIMENSION))).astype(np.float32))


def _places(count: int) -> NDArray[np.int32]:
    return np.arange(count, dtype=np.int32)


def _scan(vectors: Vector, rescored: int) -> Scan:
    scan = Scan.from_bytes(Scan.train(Encoded.of(vectors), 1).to_bytes(), 1, 1, rescored)
    scan.fill(Encoded.of(vectors))
    return scan


@pytest.fixture(autouse=True)
def _fewer_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "SCORED", 2_000)


VECTORS = _vectors(6_000)
SCANNED = np.arange(0, 6_000, 2, dtype=np.int32)
SCAN = _scan(VECTORS[SCANNED], 512)


def test_without_a_scan_all_are_scored_and_many_want_one() -> None:
    few, many = Part(_places(2_000)), Part(_places(2_001))
    assert (few.wants_scan, many.wants_scan) == (False, True)
    assert many.near(VECTORS[0], 10).tolist() == list(range(2_001))
    assert many.scored == 2_001


def test_one_that_became_few_is_scored_whole_again_whatever_its_scan_holds() -> None:
    few = Part(SCANNED, SCAN, SCANNED).now(SCANNED[1_000:])
    assert not few.wants_scan
    assert few.near(VECTORS[0], 10).tolist() == SCANNED[1_000:].tolist()


def test_as_many_that_count_are_scored_again_however_many_are_gone() -> None:
    query = _vectors(1, 4)[0]
    nearest = SCANNED[np.argsort(-(VECTORS[SCANNED] @ query))]
    rest = Part(SCANNED, SCAN, SCANNED).now(np.sort(nearest[400:]))
    assert rest.scored == 400
    assert len(rest.near(query, 10)) >= 400


def test_a_scan_finds_nearly_all_of_the_nearest_among_a_few_hundred() -> None:
    part, shares = Part(SCANNED, SCAN, SCANNED), []
    for query in _vectors(50, 1):
        near = part.near(query, 10)
        assert len(near) == 512
        true = SCANNED[np.argsort(-(VECTORS[SCANNED] @ query))[:10]]
        shares.append(np.isin(true, near).mean())
    assert np.mean(shares) > 0.99
    assert not part.wants_scan


def test_memory_counts_positions_and_codes() -> None:
    assert Part(SCANNED).nbytes == 4 * len(SCANNED)
    codes = 65_536  # of 3,008 times 16 bytes, as faiss makes room
    meant = DIMENSION // 4 * 16 * 4 * 4  # sixteen of four floats for each code
    assert Part(SCANNED, SCAN, SCANNED).nbytes == 4 * len(SCANNED) + codes + meant
    assert Part(SCANNED, SCAN, SCANNED).now(SCANNED[1:]).nbytes == 8 * len(SCANNED) - 4 + codes + meant


@settings(deadline=None, derandomize=True, max_examples=60)
@given(gone=st.sets(st.integers(0, 2_999), max_size=400), late=st.sets(st.integers(0, 2_999), max_size=400), seed=st.integers(0, 50))
def test_what_came_late_is_near_and_what_is_gone_never(gone: set[int], late: set[int], seed: int) -> None:
    there = np.sort([2 * place for place in range(3_000) if place not in gone] + [2 * place + 1 for place in late]).astype(np.int32)
    part, query = Part(SCANNED, SCAN, SCANNED).now(there), _vectors(1, seed)[0]
    near = part.near(query, 10)
    assert len(part) == len(there)
    assert len(set(near.tolist())) == len(near), "each once"
    assert set(near.tolist()) <= set(there.tolist())
    assert {2 * place + 1 for place in late} <= set(near.tolist())
    assert len(near) >= 10


def test_those_that_are_gone_do_not_hide_those_behind_them() -> None:
    whole, query = Part(SCANNED, SCAN, SCANNED), _vectors(1, 3)[0]
    rest = np.setdiff1d(SCANNED, whole.near(query, 10))
    assert len(whole.now(rest).near(query, 10)) >= 10


def test_a_scan_is_made_anew_when_an_eighth_came_late_or_is_gone() -> None:
    positions = _places(6_000)
    part = Part(positions[:5_000], SCAN, positions[:5_000])
    assert not part.now(positions[:5_700]).wants_scan
    assert part.now(positions[:5_800]).wants_scan
    assert part.now(positions[700:5_000]).wants_scan
    assert not part.now(positions[3_000:5_000]).wants_scan, "few are all scored"
