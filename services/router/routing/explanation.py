"""Why each of the adapters near a query was chosen for it, or was not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from services.router.routing.scoring import Chosen, Scored

MAX_EXPLAINED: Final = 10
"""Candidates, best first, that an explanation names."""


class Fit(NamedTuple):
    """A candidate, and how likely it is that the query is in its scope."""

    scored: Scored
    confidence: float
    example: float
    """Cosine with the nearest prototype, or with the centroid where there is none."""
    task: float
    """Fit to the hints."""


class Limits(NamedTuple):
    """What a candidate had to pass, in this order."""

    score: float
    top_k: int
    confidence: float | None
    """None: the caller set a threshold, and is taken at its word."""
    min_weight: float


class Explanation(NamedTuple):
    """What became of one candidate."""

    fit: Fit
    weight: float
    """In the decision; 0 of one that is not in it."""
    reason: str


def explain(fits: Sequence[Fit], chosen: Sequence[Chosen], limits: Limits, stands_in: Mapping[str, str]) -> list[Explanation]:
    """Explanations of candidates, which are in the order of their scores.

    `stands_in`: adapter id -> the child of a merge on trial that would answer in its place.
    """
    weights = {one.ref.adapter_id: one.weight for one in chosen}
    explained = []
    for place, fit in enumerate(fits):
        adapter_id, score = fit.scored.candidate.ref.adapter_id, fit.scored.score
        weight, child = weights.get(adapter_id, 0.0), stands_in.get(adapter_id, "")
        if weight:
            reason = "chosen"
        elif child in weights:
            reason = f"its merge's child {child} is on trial and answers in its place"
        elif score < limits.score:
            reason = f"its score is under the threshold of {limits.score:g}"
        elif place >= limits.top_k:
            reason = f"{place} score higher, and {limits.top_k} are looked at"
        elif limits.confidence is not None and fit.confidence < limits.confidence:
            reason = f"the query is in its scope with a probability of {fit.confidence:.2f}, under {limits.confidence:g}"
        else:
            reason = f"its share of the weight was under {limits.min_weight:g}"
        explained.append(Explanation(fit, weight, reason))
    return explained
