"""What stands for a decision of which several verdicts were given: the last of each source, and the mean of those by their weight. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from smoa.errors import InvalidArgument
from smoa.v1.feedback_pb2 import Outcome
from smoa.v1.state_pb2 import Verdict

PARTS: Final = 2**20
"""A verdict is a multiple of one in so many: sums of them are exact in a double, in whatever order they come."""
MAX_VERDICTS: Final = 16
"""A tenant's on one decision."""
MOST: Final = 1_000_000
"""A weight."""
EVERY_SOURCE: Final[Mapping[str, float]] = {}
"""Weights under which all sources count alike."""


class Standing(NamedTuple):
    """What a decision turned out to be."""

    success: bool
    score: float | None = None
    """In [0, 1]; it counts instead of success."""

    @property
    def value(self) -> float:
        """In [0, 1], a multiple of 2^-20."""
        return float(self.success) if self.score is None else round(self.score * PARTS) / PARTS


def is_new(one: Outcome | Verdict, earlier: Iterable[Outcome | Verdict]) -> bool:
    """Whether an outcome changes what its source has said of the decision so far."""
    return all(one.source != other.source or one.revision > other.revision for other in earlier)


def standing(said: Sequence[Outcome | Verdict], weights: Mapping[str, float]) -> Standing | None:
    """What stands after these, each of which was new when it came; None where nothing does.

    Args:
        said: One tenant's, of one decision, the oldest first.
        weights: By source; 1 of those that are not named.
    """
    if len(said) == 1 and not said[0].source and not weights and not said[0].withdrawn:  # as nearly every decision has it
        return _of(said[0])
    last = {one.source: one for one in said}
    parts = [(weight, one) for one in last.values() if not one.withdrawn and (weight := weights.get(one.source, 1.0)) > 0]
    if not parts:
        return None
    found = [_of(one) for _, one in parts]
    if len(found) == 1:
        return found[0]
    mean = sum(weight * one.value for (weight, _), one in zip(parts, found, strict=True)) / sum(weight for weight, _ in parts)
    return Standing(mean >= 0.5, round(mean * PARTS) / PARTS)


def _of(one: Outcome | Verdict) -> Standing:
    return Standing(one.success, one.score if one.HasField("score") else None)


def source_weights(text: str) -> dict[str, float]:
    """Weights by source, of `reviewer=2,judge-model=0.5`.

    Raises:
        InvalidArgument: it is not of that form.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        source, _, number = (one.strip() for one in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not source or not 0 <= weight <= MOST:
            remedy = f"write SOURCE=WEIGHT, with commas between; a weight is from 0 to {MOST:,}"
            raise InvalidArgument("SMOA_OUTCOME_SOURCES", f"has {part[:80]!r}", remedy)
        weights[source] = weight
    return weights
