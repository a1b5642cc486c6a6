"""The data of the example library: reproducible, balanced, and with disjoint training and test halves."""

from __future__ import annotations

import re
from collections import Counter
from typing import get_args

import pytest

from examples.library.jobs import DECOY_JOBS, JOBS, Job, Split

SPLITS: tuple[Split, ...] = get_args(Split)
SPECIALIZATIONS = {"general", "domain", "task", "language", "style", "format", "reasoning", "tool", "persona", "safety"}
# For each job, how many distinct training and test inputs it must be able to give.
SIZES = dict.fromkeys(JOBS, (400, 40)) | dict.fromkeys(DECOY_JOBS, (30, 20))
ALL = {**JOBS, **DECOY_JOBS}

each_job = pytest.mark.parametrize("job", ALL.values(), ids=ALL.keys())


def _folded(values: frozenset[str]) -> set[str]:
    """Values without case and without the names of their slots, which do not make two templates differ."""
    return {re.sub(r"\{[a-z_]+\}", "{_}", value).casefold() for value in values}


def _count(job: Job, split: Split) -> int:
    return SIZES[job.name][SPLITS.index(split)]


def test_registries_hold_the_jobs_under_their_names() -> None:
    assert len(JOBS) == 16
    assert len(DECOY_JOBS) == 4
    assert len(ALL) == 20
    assert all(name == job.name for name, job in ALL.items())


@each_job
def test_description_is_complete(job: Job) -> None:
    assert job.specialization in SPECIALIZATIONS
    assert job.domain
    assert job.tags
    assert job.description.endswith(".")
    assert 3 <= len(job.labels) <= 6
    assert all(label == label.lower() and 1 <= len(label.split()) <= 3 for label in job.labels)


@each_job
@pytest.mark.parametrize("split", SPLITS)
def test_generation_is_deterministic_and_seeded(job: Job, split: Split) -> None:
    count = _count(job, split)
    assert job.generate(split, count, 7) == job.generate(split, count, 7)
    assert job.generate(split, count, 7) != job.generate(split, count, 8)


@each_job
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_examples_are_distinct_balanced_and_short(job: Job, split: Split, seed: int) -> None:
    count = _count(job, split)
    examples = job.generate(split, count, seed)
    assert len(examples) == count
    assert len({example.input.casefold() for example in examples}) == count
    shares = Counter(example.output for example in examples)
    assert set(shares) == set(job.labels)
    assert max(shares.values()) - min(shares.values()) <= 1
    for example in examples:
        assert 0 < len(example.input) <= 200
        assert example.input.isascii()
        assert example.input == example.input.strip()


@each_job
def test_splits_share_no_template_no_value_and_no_input(job: Job) -> None:
    assert not _folded(job.templates("train")) & _folded(job.templates("test"))
    assert not _folded(job.vocabulary("train")) & _folded(job.vocabulary("test"))
    train, test = ({example.input.casefold() for example in job.generate(split, 500, 3)} for split in SPLITS)
    assert not train & test


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS.keys())
def test_grammar_has_enough_templates(job: Job) -> None:
    assert len(job.templates("train")) >= 10 * len(job.labels)
    assert len(job.templates("test")) >= 5 * len(job.labels)
