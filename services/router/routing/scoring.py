"""Hints, scores, and how scores become weights. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from services.router.catalogue.records import AdapterRef, Candidate, Labels

MAX_MIXED: Final = 16
"""Most adapters of a choice."""


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
    stands_for: tuple[str, ...] = ()
    """Of a merge's child on trial: ids of the parents that it is here instead of."""
    control_of: str = ""
    """Of one of those parents, where it is here itself: the child's id."""
    trial_share: float = 0.0
    """Of both: the probability by which the child's side was drawn; 0 where it was not."""


def task_score(labels: Labels | None, hints: Hints) -> float:
    """Fit to the hints in [0, 1]: 1 for the task id, else the mean share of tags and specialization that match; 0 without labels."""
    if labels is None:
        return 0.0
    if hints.task_id and hints.task_id in (labels.name, *labels.tags):
        return 1.0
    parts: list[float] = [0.0] if hints.task_id else []
    if hints.tags:
        tags = set(hints.tags)
        parts.append(len(tags.intersection((*labels.tags, labels.name))) / len(tags))
    if hints.specialization:
        parts.append(float(hints.specialization == labels.specialization))
    return sum(parts) / len(parts) if parts else 0.0


class Scored(NamedTuple):
    """A candidate, its score, and the logarithm of how likely it is to be the one, up to a constant."""

    score: float
    candidate: Candidate
    log_odds: float


def weigh(ranked: Sequence[Scored], log_odds: Sequence[float], min_weight: float) -> list[Chosen]:
    """Adapters weighted by their probabilities, softmax(log odds), without those under `min_weight` times the largest."""
    return without_slivers(ranked, softmax(log_odds, 1.0), min_weight)


def effective(weights: Sequence[float]) -> float:
    """How many adapters weights amount to: n for n equal ones, 1 for one alone."""
    return 1 / sum(weight * weight for weight in weights) if weights else 0.0


def without_slivers(ranked: Sequence[Scored], weights: Sequence[float], share: float) -> list[Chosen]:
    """Adapters of at least such a share of the largest weight, rescaled to 1 in all: of equals all stay, however many they are."""
    least = min(share, 1.0) * max(weights, default=0.0)
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
