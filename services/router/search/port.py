"""The port behind which adapters are found: an index over a catalogue, which can be made again from it. One contract test for all of its
implementations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.router.catalogue.port import Vector
from services.router.catalogue.records import Candidate, Reach


class VectorIndex(Protocol):
    """Adapters by nearness. What was written to its catalogue in this process is in the next answer."""

    @property
    def in_training(self) -> int:
        """Parts of the index that are being made faster; it serves meanwhile."""

    async def search(self, vector: Vector, reach: Reach, limit: int, *, hinted: Sequence[str] = (), clusters: int = 0) -> list[Candidate]:
        """Nearest adapters by cosine within the reach, best first; with their labels if they have one of the `hinted`.

        With `clusters`, of a pool that is large enough to have clusters only adapters in so many, those nearest to the vector, are looked
        at.
        """

    async def close(self) -> None:
        """Release it, but not its catalogue."""
