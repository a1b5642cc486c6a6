"""Both views in one vector, and vectors that hold only one of them."""

from __future__ import annotations

import numpy as np
import pytest

from smoa.embedding.port import Vector
from smoa.embedding.static import StaticEmbedder
from smoa.embedding.surface import DIMENSION
from smoa.embedding.views import Views, beside, centroids
from smoa.errors import InvalidArgument

VIEWS = Views(StaticEmbedder())
TEXT = "how do i get my money back"


async def test_a_cosine_is_the_mean_of_those_of_the_views() -> None:
    one, other = await VIEWS.embed([TEXT, "WHERE IS MY REFUND?"])
    (alone,) = await VIEWS.embed([TEXT])
    assert alone == pytest.approx(one, abs=1e-6)
    assert one.shape == (VIEWS.dimension,) == (256 + DIMENSION,)
    meanings, looks = (2 * one[part] @ other[part] for part in (slice(256), slice(256, None)))
    assert one @ other == pytest.approx((meanings + looks) / 2, abs=1e-6)
    assert "surface" in VIEWS.name


async def test_a_vector_that_was_sent_may_hold_one_view_or_both() -> None:
    (both,) = await VIEWS.embed([TEXT])
    assert VIEWS.completed(7 * both, "vector", "") == pytest.approx(both, abs=1e-6)
    assert VIEWS.completed(both[:256], "vector", "", TEXT) == pytest.approx(both, abs=1e-6)
    meaning = VIEWS.completed(both[:256], "vector", "")
    assert not meaning[256:].any()
    assert meaning[:256] == pytest.approx(both[:256] * 2**0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        (np.ones(3), "has 3 numbers; send 256, or 384, or a text instead of a vector"),
        (np.zeros(256), "is all zeros"),
        (np.full(256, np.nan), "holds NaN"),
        (np.concatenate([np.ones(256), np.full(DIMENSION, np.inf)]), "holds NaN"),
        (np.concatenate([np.zeros(256), np.ones(DIMENSION)]), "is all zeros"),
    ],
)
def test_a_vector_that_cannot_be_used_is_refused(vector: Vector, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        VIEWS.completed(vector.astype(np.float32), "vector", "a text")


def test_the_centre_of_texts_weighs_both_views_alike() -> None:
    rng = np.random.default_rng(0)
    meanings, looks = rng.standard_normal((5, 8)).astype(np.float32), np.ones((5, DIMENSION), np.float32)
    centre = centroids(beside(meanings, looks))
    assert np.linalg.norm(centre[:8]) == pytest.approx(np.linalg.norm(centre[8:]), abs=1e-6)
    assert centroids(np.stack([beside(meanings, looks)] * 3)).shape == (3, 8 + DIMENSION)
