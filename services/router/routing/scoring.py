"""Routing strategies: pure scorers over one candidate list, and how scores become weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from services.router.catalogue.records import AdapterRef, Candidate, Labels
from smoa.errors import InvalidArgument
from smoa.limits import MAX_NAME_CHARACTERS, MAX_TAGS

SEMANTIC_SHARE, TASK_SHARE = 0.6, 0.4
MAX_MIXED: Final = 16
"""Most adapters of the mixture strategy."""
MIN_MIXED: Final = 0.02
"""Least weight in it."""
_HALVINGS: Final = 30


class Hints(NamedTuple):
    """What the caller says of the task."""

    tags: tuple[str, ...] = ()
    specialization: str = ""
    task_id: str = ""

    def __bool__(self) -> bool:
        return bool(self.tags or self.specialization or self.task_id)

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """What an adapter's labels may match, by kind: many with a common tag must not crowd out the one of the task id."""
        task = (self.task_id,) if self.task_id else ()
        specialization = (self.specialization,) if self.specialization else ()
        return tuple(filter(None, (task, self.tags, specialization)))


class Chosen(NamedTuple):
    """An adapter of a decision."""

    ref: AdapterRef
    score: float
    weight: float


def task_score(labels: Labels, hints: Hints) -> float:
    """Fit to the hints in [0, 1]: 1 for the task id, else the mean of the shares of tags and specialization that match."""
    if hints.task_id and hints.task_id in (labels.name, *labels.tags):
        return 1.0
    parts: list[float] = [0.0] if hints.task_id else []
    if hints.tags:
        parts.append(len(set(hints.tags) & {*labels.tags, labels.name}) / len(set(hints.tags)))
    if hints.specialization:
        parts.append(float(hints.specialization == labels.specialization))
    return sum(parts) / len(parts) if parts else 0.0


def check_strategy(strategy: str, hints: Hints) -> None:
    """Raise unless the strategy can score with these hints.

    Raises:
        InvalidArgument: the task strategy without any hint, or hints longer than any label is.
    """
    if len(hints.tags) > MAX_TAGS or any(len(label) > MAX_NAME_CHARACTERS for label in (*hints.tags, hints.task_id)):
        problem = f"are over {MAX_TAGS}, or one of them or task_id is over {MAX_NAME_CHARACTERS} characters"
        raise InvalidArgument("tags", problem, "send fewer or shorter ones: no adapter has such labels")
    if strategy == "task" and not hints:
        raise InvalidArgument("tags", "are empty and so are specialization and task_id", "give the task strategy at least one hint")


def score(strategy: str, candidate: Candidate, hints: Hints) -> float:
    """Score of a candidate, higher is better.

    The task strategy scores the hints, semantic and hierarchical the cosine, and the others hybrid: 0.6 cosine + 0.4 task. Without hints
    there is no task evidence, and hybrid is the cosine alone.
    """
    if strategy in ("semantic", "hierarchical") or (strategy != "task" and not hints):
        return candidate.cosine
    assert candidate.labels is not None, "hints are scored on labels"
    task = task_score(candidate.labels, hints)
    return task if strategy == "task" else SEMANTIC_SHARE * candidate.cosine + TASK_SHARE * task


class Scored(NamedTuple):
    """A candidate and its score."""

    score: float
    candidate: Candidate


def rank(strategy: str, candidates: Iterable[Candidate], hints: Hints) -> list[Scored]:
    """Best first; equals by cosine, then by id."""
    scored = (Scored(score(strategy, candidate, hints), candidate) for candidate in candidates)
    return sorted(scored, key=lambda one: (-one.score, -one.candidate.cosine, one.candidate.ref.adapter_id))


def weigh(ranked: Sequence[Scored], values: Sequence[float], temperature: float, min_weight: float) -> list[Chosen]:
    """Adapters weighted by softmax(value / temperature); slivers under `min_weight` are dropped, never the strongest."""
    return _without_slivers(ranked, softmax(values, temperature), min_weight)


def mix(ranked: Sequence[Scored], top_k: int, temperature: float) -> list[Chosen]:
    """Soft weights over up to `MAX_MIXED` adapters. They are no more than `top_k` in effect: 1 / sum(w^2), the inverse participation ratio.

    The temperature is lowered until that holds; among equals, which no temperature tells apart, the first `top_k` stay.
    """
    kept = ranked[:MAX_MIXED]
    values = [one.score for one in kept]
    weights = softmax(values, temperature)
    low, high = 0.0, 1.0  # of the temperature: the first holds the cap, the second does not
    if effective(weights) > top_k:
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if effective(softmax(values, temperature * middle)) <= top_k else (low, middle)
        weights = softmax(values, temperature * low) if low else [1 / top_k] * top_k
    return _without_slivers(kept[: len(weights)], weights, MIN_MIXED)


def effective(weights: Sequence[float]) -> float:
    """How many adapters weights amount to: n for n equal ones, 1 for one alone."""
    return 1 / sum(weight * weight for weight in weights) if weights else 0.0


def _without_slivers(ranked: Sequence[Scored], weights: Sequence[float], least: float) -> list[Chosen]:
    least = min(least, max(weights, default=0.0))  # many equals are all slivers: keep them rather than none
    strong = [(one, weight) for one, weight in zip(ranked, weights, strict=True) if weight >= least]
    total = sum(weight for _, weight in strong)
    return [Chosen(one.candidate.ref, one.score, weight / total) for one, weight in strong]


def softmax(values: Sequence[float], temperature: float) -> list[float]:
    """exp(v / temperature), normalised to 1; empty for empty."""
    if not values:
        return []
    top = max(values)
    powers = [math.exp((value - top) / temperature) for value in values]
    total = sum(powers)
    return [power / total for power in powers]
