"""The example library's sixteen jobs as a routed library, and queries that are for none of them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.out_of_scope import SMALL_TALK
from benchmarks.routed_library import Described, Query
from examples.library.jobs import DECOY_JOBS, JOBS


def example_library() -> tuple[list[Described], list[Query]]:
    """The sixteen jobs; their test queries share neither templates nor words with the examples."""
    adapters = [Described(job.name, _inputs(job.generate("train", 50, 0)), (job.domain, *job.tags)) for job in JOBS.values()]
    queries = [
        Query(text, frozenset([place]), job.domain)
        for place, job in enumerate(JOBS.values())
        for seed in (1, 2, 3)
        for text in _inputs(job.generate("test", 20, seed))
    ]
    return adapters, queries


def example_strangers() -> list[Query]:
    """Small talk, and jobs that no adapter does."""
    decoys = [text for job in DECOY_JOBS.values() for text in _inputs(job.generate("test", 20, 1))]
    return [Query(text, frozenset()) for text in (*SMALL_TALK, *decoys)]


def _inputs(examples: Sequence[object]) -> list[str]:
    return [str(example.input) for example in examples][:50]  # type: ignore[attr-defined]
