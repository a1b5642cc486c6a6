"""Prototypes stand for their examples; confidence grows with the fit."""

from __future__ import annotations

import numpy as np
import pytest

from services.router.catalogue.port import Vector
from services.router.catalogue.prototypes import PROTOTYPES, prototypes_of
from services.router.routing.confidence import FIT_HALFWAY, confidence, nearest_prototype


def _around(centres: int, each: int, seed: int = 0) -> Vector:
    rng = np.random.default_rng(seed)
    middles = rng.standard_normal((centres, 64))
    made = (np.repeat(middles, each, 0) + 0.3 * rng.standard_normal((centres * each, 64))).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def test_few_examples_are_their_own_prototypes() -> None:
    examples = _around(5, 1)
    assert prototypes_of(examples) is examples


def test_every_group_of_examples_has_a_prototype_near() -> None:
    examples = _around(10, 5)
    prototypes = prototypes_of(examples)
    assert prototypes.shape == (PROTOTYPES, 64)
    assert np.linalg.norm(prototypes, axis=1) == pytest.approx(np.ones(PROTOTYPES), abs=1e-5)
    assert min(nearest_prototype(example, prototypes) for example in examples) > 0.85


def test_equal_examples_are_no_trouble() -> None:
    same = np.repeat(_around(1, 1), 20, 0)
    assert np.isfinite(prototypes_of(same)).all()
    assert nearest_prototype(same[0], prototypes_of(same)) == pytest.approx(1, abs=1e-5)


def test_confidence_grows_with_both_cosines_and_is_half_at_its_middle() -> None:
    assert confidence(FIT_HALFWAY - 0.3, 0.3) == pytest.approx(0.5)
    assert confidence(0.3, 0.5) > confidence(0.3, 0.4) > confidence(0.2, 0.4)
    assert confidence(0.15, None) == pytest.approx(0.5)
    assert confidence(-1, None) < 0.01 < 0.99 < confidence(1, None)
