"""The fit of a pool: it ranks, knows how sure it is, keeps what it promises of queries in scope, and never saw what it judges itself by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.router.catalogue.port import Vector
from services.router.learning import pool_fit
from services.router.learning.pool_fit import PoolFit, fit
from smoa.embedding.port import unit_rows

DIMENSION = 24 + 128


class World:
    """Adapters whose texts lie around a point each, far wider in directions that tell nothing than in those that do."""

    def __init__(self, adapters: int, seed: int = 0, distance: float = 1.0) -> None:
        self.rng = np.random.default_rng(seed)
        half = DIMENSION // 2
        self.spread = np.where(np.arange(DIMENSION) < half, 2.0, 0.4)
        self.points = self.rng.standard_normal((adapters, DIMENSION)) * np.where(np.arange(DIMENSION) < half, 0.2, distance)

    def texts(self, adapter: int, count: int) -> Vector:
        """Vectors of so many texts for an adapter."""
        return unit_rows((self.points[adapter] + self.spread * self.rng.standard_normal((count, DIMENSION))).astype(np.float32))

    def examples(self, count: int) -> dict[str, Vector]:
        """Of every adapter."""
        return {str(adapter): self.texts(adapter, count) for adapter in range(len(self.points))}


def _fitted(examples: dict[str, Vector], loss: float = 0.05) -> PoolFit:
    made = fit(examples, loss)
    assert made is not None
    return made


def _first(made: PoolFit, query: Vector, ids: list[str]) -> str:
    odds = made.log_odds(query, ids)
    return ids[int(np.argmax(odds))]


def test_it_ranks_by_what_tells_adapters_apart() -> None:
    world = World(12, distance=0.15)
    examples = world.examples(30)
    made, ids = _fitted(examples), list(examples)
    by_fit = by_cosine = 0
    for adapter in range(12):
        for query in world.texts(adapter, 20):
            by_fit += _first(made, query, ids) == str(adapter)
            by_cosine += int(np.argmax([query @ unit_rows(one.mean(0)[None])[0] for one in examples.values()])) == adapter
    assert by_fit > 1.2 * by_cosine


def test_one_that_comes_later_is_as_if_it_had_been_there() -> None:
    world = World(6)
    examples = world.examples(20)
    made, whole = _fitted({one: examples[one] for one in list(examples)[:5]}), _fitted(examples)
    made.learn("5", examples["5"])
    queries = world.texts(5, 20)
    assert sum(_first(made, query, list(examples)) == "5" for query in queries) >= 18
    closeness = [(made.closeness(query, "5", examples["5"]), whole.closeness(query, "5", examples["5"])) for query in queries]
    assert np.abs(np.diff(closeness)).mean() < 0.5


@pytest.mark.parametrize("loss", [0.02, 0.05, 0.1])
def test_of_queries_like_the_examples_at_most_the_asked_share_is_lost(loss: float) -> None:
    lost = []
    for seed in range(10):
        world = World(8, seed)
        examples = world.examples(25)
        made, ids = _fitted(examples, loss), list(examples)
        for adapter in range(8):
            for query in world.texts(adapter, 10):
                first = _first(made, query, ids)
                lost.append(made.closeness(query, first, examples[first]) < made.threshold)
    assert np.mean(lost) <= loss
    assert np.mean(lost) > 0 or loss < 0.05


def test_what_is_like_no_example_is_left_unanswered() -> None:
    world = World(8)
    examples = world.examples(25)
    made, ids = _fitted(examples), list(examples)
    strange = unit_rows(np.random.default_rng(9).standard_normal((100, DIMENSION)).astype(np.float32) * world.spread.astype(np.float32))
    left = [made.closeness(query, _first(made, query, ids), examples[_first(made, query, ids)]) < made.threshold for query in strange]
    assert np.mean(left) > 0.8


def test_probabilities_are_what_they_say() -> None:
    said, right = [], []
    for seed in range(6):
        world = World(10, seed, distance=0.25)
        examples = world.examples(20)
        made, ids = _fitted(examples), list(examples)
        for adapter in range(10):
            for query in world.texts(adapter, 10):
                odds = np.array(made.log_odds(query, ids))
                shares = np.exp(odds - odds.max()) / np.exp(odds - odds.max()).sum()
                said.append(shares.max())
                right.append(int(shares.argmax()) == adapter)
    assert np.mean(right) < 0.9, "else nothing is shown"
    assert np.mean(said) == pytest.approx(np.mean(right), abs=0.06)


def test_it_cannot_tell_from_few_examples_and_says_so() -> None:
    made = _fitted(World(1).examples(5))
    assert not made.can_tell
    assert not _fitted(World(2).examples(19)).can_tell
    assert _fitted(World(2).examples(20)).can_tell
    assert not _fitted(World(4).examples(20), loss=0.0).can_tell
    assert fit({}, 0.05) is None


def test_a_query_of_one_view_looks_as_the_pool_does() -> None:
    made = _fitted(World(3).examples(20))
    query = np.concatenate([np.ones(24), np.zeros(128)]).astype(np.float32)
    whole = made.whole(query)
    assert (whole[24:] == made.centre[24:]).all()
    both = np.ones(DIMENSION, np.float32)
    assert made.whole(both) is both


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.sampled_from(["equal", "zero", "usual"]), st.integers(0, 99))
def test_any_examples_make_a_fit_that_can_be_used(sizes: list[int], kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = {}
    for number, size in enumerate(sizes):
        rows = rng.standard_normal((size, DIMENSION)) if kind == "usual" else np.ones((size, DIMENSION)) * (kind == "equal")
        groups[str(number)] = unit_rows(rows.astype(np.float32))
    made = _fitted(groups)
    query = unit_rows(rng.standard_normal((1, DIMENSION)).astype(np.float32))[0]
    assert np.isfinite(made.log_odds(query, list(groups))).all()
    for name, group in groups.items():
        closeness = made.closeness(query, name, group)
        assert np.isfinite(closeness)
        assert 0 <= made.probability(closeness) <= 1
    assert not np.isnan(made.threshold)


@pytest.mark.parametrize("count", [2, 5, 12])
def test_what_is_left_out_is_as_if_it_had_never_been_there(count: int) -> None:
    """Beside a fit to the others alone, shrunk as much."""
    groups = list(World(4).examples(count).values())
    means, sizes, of = np.stack([group.mean(0) for group in groups]), np.full(4, count), np.repeat(np.arange(4), count)
    metric, share = pool_fit._inverse_covariance(groups, means)
    rest = np.linalg.inv(metric.astype(np.float64)) - share * _scatter(groups)
    rows = np.concatenate(groups)
    found = pool_fit._left_out(rows, of, means, sizes, metric, share)
    for place in range(0, len(rows), count - 1):
        others = [np.delete(group, place % count, 0) if number == of[place] else group for number, group in enumerate(groups)]
        without = np.linalg.inv(rest + share * _scatter(others))
        away = rows[place] - np.stack([group.mean(0) for group in others]).astype(np.float64)
        assert found[place] == pytest.approx(-0.5 * np.einsum("ad,de,ae->a", away, without, away), rel=5e-3, abs=2e-2)


def _scatter(groups: Sequence[Vector]) -> NDArray[np.float64]:
    away = np.concatenate([group - group.mean(0) for group in groups]).astype(np.float64)
    made: NDArray[np.float64] = away.T @ away
    return made


def _two_clouds(rng: np.random.Generator, count: int) -> dict[str, Vector]:
    """Adapters whose examples are of two kinds, far apart, and whose means are alike."""
    clouds = rng.standard_normal((3, DIMENSION))
    made = {}
    for adapter, cloud in enumerate(clouds):
        signs = np.where(np.arange(count) % 2, 1, -1)[:, None]
        made[str(adapter)] = unit_rows((signs * cloud + 0.6 * rng.standard_normal((count, DIMENSION))).astype(np.float32))
    return made


def test_the_nearest_example_counts_where_means_say_little() -> None:
    rng = np.random.default_rng(3)
    every = _two_clouds(rng, 60)
    examples, queries = {one: rows[:40] for one, rows in every.items()}, {one: rows[40:] for one, rows in every.items()}
    made, ids = _fitted(examples), list(examples)
    assert made.nearness > 0
    right = {"mean": 0, "nearest": 0}
    for adapter, rows in queries.items():
        for query in rows:
            odds = made.log_odds(query, ids)
            closer = made.with_nearest(odds, {place: float((examples[one] @ query).max()) for place, one in enumerate(ids)})
            for name, values in (("mean", odds), ("nearest", closer)):
                right[name] += ids[int(np.argmax(values))] == adapter
    assert right["nearest"] >= 55 > right["mean"]


def test_a_copy_of_an_adapter_does_not_make_nearness_worthless() -> None:
    """Its examples are the very texts that the other's are judged by; as they come from the catalogue, not quite of length 1."""
    every = {one: np.float32(0.998) * rows for one, rows in _two_clouds(np.random.default_rng(3), 40).items()}
    alone, beside, two = _fitted(every), _fitted({**every, "copy": every["0"]}), _fitted({"0": every["0"], "copy": every["0"]})
    assert alone.nearness > 0
    assert beside.nearness > 0
    assert max(two.log_odds(every["0"][0], ["0", "copy"])) - min(two.log_odds(every["0"][0], ["0", "copy"])) < 1e-3


def test_what_is_not_looked_at_is_as_far_as_the_farthest_that_is() -> None:
    made = _fitted(World(3).examples(10))
    made.nearness = 10.0
    assert made.with_nearest([0.0, -1.0, -5.0], {0: 0.25, 1: 0.5}) == [-1.5, 0.0, -6.5]
    assert made.with_nearest([0.0, -30.0], {0: 0.25, 1: 0.75}) == [0.0, -10.0], "what is far behind does not overtake"
    assert made.with_nearest([0.0, -1.0], {}) == [0.0, -1.0]


def test_an_adapter_with_one_example_does_not_make_nearness_worthless() -> None:
    every = _two_clouds(np.random.default_rng(3), 40)
    one = unit_rows(np.random.default_rng(5).standard_normal((1, DIMENSION)).astype(np.float32))
    beside = _fitted({**every, "one": one, "same": np.repeat(-one, 3, 0)})
    assert beside.nearness == _fitted(every).nearness > 0
    assert _fitted({"one": one, "other": -one}).nearness >= 0


@pytest.mark.parametrize("length", [0.998, 1.0, 1.002])
def test_no_example_is_its_own_nearest(length: float) -> None:
    """Or nearness would seem worth all there is, where it says nothing."""
    rng = np.random.default_rng(4)
    made = _fitted({str(one): np.float32(length) * unit_rows(rng.standard_normal((40, DIMENSION)).astype(np.float32)) for one in range(4)})
    assert made.nearness == 0
