"""Regions of failures: which belong together, which are missing an adapter, and what one is tried on."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.library.jobs import JOBS
from services.optimizer.policy.gaps import Region, regions
from smoa.embedding.static import StaticEmbedder
from smoa.v1.events_pb2 import Example


def _example(number: int, text: str = "", adapters: tuple[str, ...] = ()) -> Example:
    return Example(decision_id=f"d{number}", input=text or f"question {number}", output=str(number), adapter_ids=adapters)


def test_failures_of_three_jobs_come_apart() -> None:
    embed = StaticEmbedder().vector_of
    pairs = [(job, one) for job in ("legal_request", "log_severity", "med_department") for one in JOBS[job].generate("train", 40, 3)]
    random.Random(1).shuffle(pairs)
    examples = [_example(number, one.input) for number, (_, one) in enumerate(pairs)]
    found = regions(np.stack([embed(one.input) for one in examples]), examples, 20, 0.5)
    jobs = {f"d{number}": job for number, (job, _) in enumerate(pairs)}
    assert [len({jobs[one.decision_id] for one in region.examples}) for region in found] == [1, 1, 1]
    assert sum(len(region.examples) for region in found) >= 90
    assert [len(region.examples) for region in found] == sorted((len(region.examples) for region in found), reverse=True)


def test_where_adapters_were_found_none_is_missing() -> None:
    vectors = np.tile(np.array([[1.0, 0.0]], np.float32), (10, 1))
    covered = [_example(number, adapters=("a",) if number < 6 else ()) for number in range(10)]
    assert regions(vectors, covered, 10, 0.5) == []
    [region] = regions(vectors, covered, 10, 0.4)
    assert region.uncovered == pytest.approx(0.4)


def test_few_failures_are_no_region() -> None:
    vectors = np.eye(4, dtype=np.float32)
    assert regions(vectors, [_example(one) for one in range(4)], 2, 0.0) == []
    assert regions(np.zeros((0, 4), np.float32), [], 1, 0.0) == []


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(2, 7))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_is_held_out_was_not_learned(inputs: list[int], every: int) -> None:
    region = Region(tuple(_example(number, str(text)) for number, text in enumerate(inputs)))
    lessons, held_out = region.split(every)
    assert not {one.input for one in lessons} & {one.input for one in held_out}
    assert sorted(one.decision_id for one in lessons + held_out) == sorted(one.decision_id for one in region.examples)
    assert held_out


def test_a_region_has_the_same_name_in_any_order() -> None:
    first, second = _example(1), _example(2)
    assert Region((first, second)).name == Region((second, first)).name != Region((first,)).name
