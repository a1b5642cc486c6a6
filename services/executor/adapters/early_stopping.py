"""When training has learned what it can: the rule, as a pure function of the held-out losses so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """The loss on the held-out examples after a step, in nats a token."""

    step: int
    loss: float


def best_of(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The evaluation with the least loss, the first of equals: its weights are kept."""
    return min(evaluations, key=lambda evaluation: evaluation.loss)


def is_flat(evaluations: Sequence[Evaluation], patience: int, min_gain: float) -> bool:
    """True when the last `patience` evaluations together lowered the least loss by no more than `min_gain`; never with a patience of 0."""
    if not patience or len(evaluations) <= patience:
        return False
    before = best_of(evaluations[:-patience])
    return before.loss - best_of(evaluations[-patience:]).loss <= min_gain
