"""Corrections by context: what outcomes at a place teach about it, about others, and about nothing at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.catalogue.port import Vector
from services.router.learning import contexts as module
from services.router.learning.contexts import CONTEXT, KEPT, NOTHING_LEARNED, Contexts, context_of, projected
from smoa.embedding.port import unit_rows

RNG = np.random.default_rng(0)
ORIGIN = np.zeros(CONTEXT, np.float32)


def _context(*axes: int) -> bytes:
    made = np.zeros(CONTEXT, np.int8)
    made[list(axes)] = 100
    return made.tobytes()


def _rows(count: int, rng: np.random.Generator = RNG) -> Vector:
    return unit_rows(rng.standard_normal((count, 384)).astype(np.float32))


def test_what_failed_there_is_expected_to_fail_there_and_not_elsewhere() -> None:
    contexts = Contexts()
    for _ in range(3):
        contexts.observe("t", "a", _context(0), -0.9)
        contexts.observe("t", "a", _context(1), 0.05)
    there, like_it, elsewhere = (contexts.correction("t", "a", _context(*axes), ORIGIN) for axes in ((0,), (0, 1), (2,)))
    assert there.mean < -0.6
    assert -0.7 < like_it.mean < -0.3
    assert elsewhere.mean == pytest.approx(0, abs=1e-6)
    assert max(there.spread, like_it.spread) < 0.4 < elsewhere.spread == 1


def test_tenants_and_adapters_are_apart() -> None:
    contexts = Contexts()
    contexts.observe("t", "a", _context(0), -0.9)
    assert contexts.correction("u", "a", _context(0), ORIGIN) == contexts.correction("t", "b", _context(0), ORIGIN) == NOTHING_LEARNED


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_it_is_the_ridge_regression_of_discounted_outcomes(count: int, seed: int) -> None:
    """In its primal form: weights (X'WX / noise + 1)^-1 X'W r / noise."""
    rng, contexts = np.random.default_rng(seed), Contexts()
    rows, residuals, weights = _rows(count, rng), rng.uniform(-1, 1, count), rng.uniform(0.1, 1, count)
    made = [context_of(row.astype(np.float32)) for row in rows]
    for one, residual, weight in zip(made, residuals, weights, strict=True):
        contexts.observe("t", "a", one, float(residual), float(weight))
    units = np.stack([np.frombuffer(one, np.int8).astype(float) for one in made])
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    later = np.array([module.DISCOUNT ** weights[place + 1 :].sum() for place in range(count)])
    kept = weights * later / module._NOISES[0]
    primal = np.linalg.solve((units * kept[:, None]).T @ units + np.eye(CONTEXT), (units * kept[:, None]).T @ residuals)
    query = context_of(_rows(1, rng)[0])
    unit = np.frombuffer(query, np.int8) / np.linalg.norm(np.frombuffer(query, np.int8).astype(float))
    assert contexts.correction("t", "a", query, ORIGIN).mean == pytest.approx(unit @ primal, abs=1e-3)


def test_outcomes_that_follow_no_line_correct_little() -> None:
    noisy, steady = Contexts(), Contexts()
    places = [context_of(one) for one in _rows(60)]
    line = context_of(_rows(1)[0])
    for place in places:
        noisy.observe("t", "a", place, float(RNG.choice([-0.5, 0.5])))
        steady.observe("t", "a", place, float(np.sign(np.frombuffer(place, np.int8).astype(int) @ np.frombuffer(line, np.int8))) / 2)
    wrong, right = (np.std([one.correction("t", "a", place, ORIGIN).mean for place in places]) for one in (noisy, steady))
    assert wrong < 0.6 * right


def test_it_follows_an_adapter_that_changes() -> None:
    contexts = Contexts()
    for _ in range(KEPT):
        contexts.observe("t", "a", _context(0), 0.5)
    for _ in range(KEPT):
        contexts.observe("t", "a", _context(0), -0.5)
    assert contexts.correction("t", "a", _context(0), ORIGIN).mean < -0.25


def test_its_memory_is_bounded() -> None:
    contexts = Contexts(max_bytes=200_000)
    for number in range(3_000):
        contexts.observe("t", f"a{number % 100}", _context(number % CONTEXT), 0.5)
    assert contexts._seen.bytes <= 200_000
    for _ in range(2 * KEPT):
        contexts.observe("t", "one", _context(0), 0.5)
    seen = contexts._seen.get(("t", "one"))
    assert seen is not None
    assert len(seen.residuals) == KEPT


@pytest.mark.parametrize(
    ("context", "residual", "weight"),
    [
        (b"", 0.5, 1.0),
        (bytes(CONTEXT), 0.5, 1.0),
        (_context(0) + b"x", 0.5, 1.0),
        (_context(0), float("nan"), 1.0),
        (_context(0), float("inf"), 1.0),
        (_context(0), 0.5, 0.0),
        (_context(0), 0.5, float("nan")),
    ],
    ids=["none", "zeros", "longer", "no number", "infinite", "no share", "no number of a share"],
)
def test_what_cannot_be_learned_from_teaches_nothing(context: bytes, residual: float, weight: float) -> None:
    contexts = Contexts()
    contexts.observe("t", "a", context, residual, weight)
    assert contexts.correction("t", "a", _context(0), ORIGIN) == NOTHING_LEARNED
    assert contexts.correction("t", "a", context, ORIGIN) == NOTHING_LEARNED


def test_near_queries_have_near_contexts() -> None:
    rows = _rows(40)
    near = unit_rows(rows + 0.3 * _rows(40))
    cosines = _directions(rows, ORIGIN) @ _directions(near, ORIGIN).T
    assert np.diag(cosines).min() > 0.85
    assert np.abs(cosines[~np.eye(40, dtype=bool)]).max() < 0.6


def test_where_the_centre_lies_is_said_when_a_context_is_looked_at() -> None:
    """Of queries that all lie near one another, a pool's centre is what shows how they differ; and what was learned outlives its moves."""
    common = _rows(1)
    rows = unit_rows(2 * common + _rows(2))
    apart, together = (_directions(rows, centre)[0] @ _directions(rows, centre)[1] for centre in (projected(rows.mean(0)), ORIGIN))
    assert together > 0.7
    assert apart < -0.95
    contexts = Contexts()
    for _ in range(4):
        contexts.observe("t", "a", context_of(rows[0]), 0.5)
    for near_the_mean in (0.9, 1.0):
        first, second = (contexts.correction("t", "a", context_of(row), projected(near_the_mean * rows.mean(0))).mean for row in rows)
        assert first > 0.3 > 0 > second


def test_a_context_is_of_so_many_bytes() -> None:
    assert not any(context_of(np.zeros(384, np.float32)))
    assert len(context_of(_rows(1)[0])) == CONTEXT
    assert max(np.frombuffer(context_of(1e6 * _rows(1)[0]), np.int8)) == 127, "no number turns over"


def _directions(vectors: Vector, centre: Vector) -> Vector:
    return unit_rows(np.stack([np.frombuffer(context_of(one), np.int8) for one in vectors]) - centre)
