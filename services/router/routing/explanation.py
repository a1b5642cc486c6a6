"""Why each of the adapters near a query was chosen for it, or was not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from services.router.learning.thresholds import Closeness
from services.router.routing.conversation import Belief
from services.router.routing.scoring import Chosen, Scored, softmax

MAX_EXPLAINED: Final = 10
"""Candidates, best first, that an explanation names."""


class Judged(NamedTuple):
    """A candidate, and whether the query is in its scope."""

    scored: Scored
    fits: bool
    confidence: float | None
    """The probability that it is; None where there are too few examples to tell, and it fits."""
    example: float
    """Cosine with the nearest example, or with the centroid where there is none."""
    task: float
    """Fit to the hints."""
    closeness: Closeness | None = None
    """Of the query, where that is what says whether it fits."""


class Limits(NamedTuple):
    """What a candidate had to pass, in this order."""

    score: float | None
    """Where the caller set a threshold, who is then taken at their word."""
    top_k: int
    min_weight: float
    """As a share of the largest."""


class Explanation(NamedTuple):
    """What became of one candidate."""

    judged: Judged
    probability: float
    """That it is the one, among the candidates."""
    weight: float
    """In the decision; 0 of one that is not in it."""
    reason: str
    before: float = 0.0
    """That the conversation was about it before."""
    name: str = ""
    tenant: str = ""
    """Whose it is."""

    @property
    def adapter_id(self) -> str:
        """Its id."""
        return self.judged.scored.candidate.ref.adapter_id


def explain(
    near: Sequence[Judged], chosen: Sequence[Chosen], limits: Limits, stands_in: Mapping[str, str], before: Belief | None = None
) -> list[Explanation]:
    """Explanations of candidates, likeliest first.

    Args:
        near: Candidates as they were judged.
        chosen: The decision's.
        limits: That it was made by.
        stands_in: Adapter id -> the child of a merge on trial that would answer in its place.
        before: What the conversation was about.
    """
    weights = {one.ref.adapter_id: one.weight for one in chosen}
    explained = []
    probabilities = softmax([one.scored.log_odds for one in near], 1.0)
    for place, (one, probability) in enumerate(zip(near, probabilities, strict=True)):
        adapter_id, score = one.scored.candidate.ref.adapter_id, one.scored.score
        weight, child = weights.get(adapter_id, 0.0), stands_in.get(adapter_id, "")
        if weight:
            reason = "chosen"
        elif child in weights:
            reason = f"its merge's child {child} is on trial and answers in its place"
        elif limits.score is not None and score < limits.score:
            reason = f"its score is under the threshold of {limits.score:g}"
        elif place >= limits.top_k:
            reason = f"{place} are likelier, and {limits.top_k} are looked at"
        elif limits.score is None and not one.fits:
            reason = "the query is less like its examples than queries in its scope are"
        elif limits.score is None and not near[0].fits:
            reason = "the query is not in the scope of the likeliest, so that no adapter answers"
        else:
            reason = f"its weight was less than {limits.min_weight:g} of the largest"
        said = before.shares.get(adapter_id, 0.0) if before is not None else 0.0
        explained.append(Explanation(one, probability, weight, reason, said))
    return explained
