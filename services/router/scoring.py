"""Routing strategies: pure scorers over one candidate list, and how scores become weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.router.library import AdapterRecord, AdapterRef, Candidate
from smoa.errors import InvalidArgument, Unimplemented

IMPLEMENTED = ("semantic", "task", "hybrid")
SEMANTIC_SHARE, TASK_SHARE = 0.6, 0.4


@dataclass(frozen=True)
class Hints:
    """What the caller says of the task."""

    tags: tuple[str, ...] = ()
    specialization: str = ""
    task_id: str = ""

    def __bool__(self) -> bool:
        return bool(self.tags or self.specialization or self.task_id)

    @property
    def labels(self) -> tuple[str, ...]:
        """Everything an adapter's labels may match."""
        return tuple(filter(None, (*self.tags, self.specialization, self.task_id)))


@dataclass(frozen=True)
class Chosen:
    """An adapter of a decision."""

    ref: AdapterRef
    score: float
    weight: float


def task_score(record: AdapterRecord, hints: Hints) -> float:
    """Fit to the hints in [0, 1]: 1 for the task id, else the mean of the shares of tags and specialization that match."""
    if hints.task_id and hints.task_id in (record.name, *record.tags):
        return 1.0
    parts: list[float] = [0.0] if hints.task_id else []
    if hints.tags:
        parts.append(len(set(hints.tags) & {*record.tags, record.name}) / len(set(hints.tags)))
    if hints.specialization:
        parts.append(float(hints.specialization == record.specialization))
    return sum(parts) / len(parts) if parts else 0.0


def check_strategy(strategy: str, hints: Hints) -> None:
    """Raise unless the strategy can score with these hints.

    Raises:
        Unimplemented: a strategy of a later version.
        InvalidArgument: the task strategy without any hint.
    """
    if strategy not in IMPLEMENTED:
        raise Unimplemented(f"strategy: {strategy} is not there yet; use one of {', '.join(IMPLEMENTED)}")
    if strategy == "task" and not hints:
        raise InvalidArgument("tags", "are empty and so are specialization and task_id", "give the task strategy at least one hint")


def score(strategy: str, candidate: Candidate, hints: Hints) -> float:
    """Score of a candidate, higher is better.

    hybrid is 0.6 semantic + 0.4 task; without hints there is no task evidence, and it is the semantic score alone.
    """
    if strategy == "semantic" or (strategy == "hybrid" and not hints):
        return candidate.cosine
    assert candidate.record is not None, "hints are scored on records"
    task = task_score(candidate.record, hints)
    return task if strategy == "task" else SEMANTIC_SHARE * candidate.cosine + TASK_SHARE * task


def choose(
    strategy: str,
    candidates: Sequence[Candidate],
    hints: Hints,
    top_k: int,
    threshold: float,
    temperature: float,
    min_weight: float,
) -> list[Chosen]:
    """Up to `top_k` adapters at or over the threshold, weighted by softmax(score / temperature); slivers under `min_weight` are dropped."""
    ranked = sorted(
        ((score(strategy, candidate, hints), candidate) for candidate in candidates),
        key=lambda pair: (-pair[0], -pair[1].cosine, pair[1].ref.adapter_id),
    )
    kept = [(value, candidate.ref) for value, candidate in ranked if value >= threshold][:top_k]
    weights = softmax([value for value, _ in kept], temperature)
    min_weight = min(min_weight, max(weights, default=0.0))  # many equals are all slivers: keep them rather than none
    strong = [(value, ref, weight) for (value, ref), weight in zip(kept, weights, strict=True) if weight >= min_weight]
    total = sum(weight for _, _, weight in strong)
    return [Chosen(ref, value, weight / total) for value, ref, weight in strong]


def softmax(values: Sequence[float], temperature: float) -> list[float]:
    """exp(v / temperature), normalised to 1; empty for empty."""
    if not values:
        return []
    top = max(values)
    powers = [math.exp((value - top) / temperature) for value in values]
    total = sum(powers)
    return [power / total for power in powers]
