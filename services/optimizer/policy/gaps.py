"""Where an adapter is missing: regions of query space in which answers fail and had to be corrected. Pure numpy.

Regions are grown by average linkage (UPGMA; Sokal and Michener 1958): the two groups that are likest on average are joined until none are
like enough. One query of a job may be unlike another; on average those of a job are likelier than those of two (decision 0012).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from smoa.v1.events_pb2 import Example

MIN_LIKENESS: Final = 0.12
"""Mean cosine of two groups' queries from which they are of one region: three of the example library's jobs, mixed, come apart with 100% of
a region's queries of one job and 84% of the queries in a region; at 0.08, 99% and 95%; at 0.2, 100% and 42%."""


@dataclass(frozen=True)
class Region:
    """Corrected failures that are alike."""

    examples: tuple[Example, ...]
    """The oldest first."""

    @property
    def name(self) -> str:
        """The same examples have the same name."""
        together = "+".join(sorted(one.decision_id for one in self.examples))
        return f"learned-{hashlib.sha256(together.encode()).hexdigest()[:12]}"

    @property
    def uncovered(self) -> float:
        """Share of the decisions that found no adapter; the others were answered by one, and failed."""
        return sum(not one.adapter_ids for one in self.examples) / len(self.examples)

    def split(self, every: int = 5) -> tuple[list[Example], list[Example]]:
        """To learn from, and, one of `every`, to be tried on; no input is in both."""
        by_input: dict[str, list[Example]] = {}
        for one in self.examples:
            by_input.setdefault(one.input, []).append(one)
        groups = list(by_input.values())
        held_out = [one for group in groups[::every] for one in group]
        return [one for place, group in enumerate(groups) if place % every for one in group], held_out


def regions(vectors: NDArray[np.float32], examples: Sequence[Example], min_examples: int, min_uncovered: float) -> list[Region]:
    """Regions of at least so many examples, of whose decisions so many found no adapter; the largest first.

    `vectors` [n, d] are the unit vectors of the examples' inputs.
    """
    found = [Region(tuple(examples[place] for place in sorted(group))) for group in _groups(vectors) if len(group) >= min_examples]
    return sorted((one for one in found if one.uncovered >= min_uncovered), key=lambda one: (-len(one.examples), one.name))


def _groups(vectors: NDArray[np.float32]) -> list[list[int]]:
    if not len(vectors):
        return []
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    groups: dict[int, list[int]] = {place: [place] for place in range(len(vectors))}
    while True:
        a, b = divmod(int(likeness.argmax()), len(vectors))
        if not likeness[a, b] >= MIN_LIKENESS:
            return list(groups.values())
        share = len(groups[a]) / (len(groups[a]) + len(groups[b]))
        likeness[a] = likeness[:, a] = share * likeness[a] + (1 - share) * likeness[b]
        likeness[b] = likeness[:, b] = likeness[a, a] = -np.inf
        groups[a] += groups.pop(b)
