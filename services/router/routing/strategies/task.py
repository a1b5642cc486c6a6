"""By hints alone: for callers who know the task."""

from __future__ import annotations

from services.router.catalogue.records import Candidate
from services.router.routing.scoring import Hints, task_score
from services.router.routing.strategies.strategy import Strategy, Wanted, labelled_of
from smoa.errors import InvalidArgument


class Task(Strategy):
    """Fit to the hints; among equals, the nearest."""

    name = "task"

    def check(self, hints: Hints) -> None:
        """See `Strategy`."""
        if not hints:
            raise InvalidArgument("tags", "are empty and so are specialization and task_id", "give the task strategy at least one hint")

    def wanted(self, top_k: int, most: int, hints: Hints, *, closely: bool) -> Wanted:
        """See `Strategy`."""
        return Wanted(0, labelled_of(most if closely else top_k, most, hints))

    def score(self, candidate: Candidate, hints: Hints) -> float:
        """See `Strategy`."""
        return task_score(candidate.labels, hints)

    def log_odds(self, score: float, likely: float, candidate: Candidate, hints: Hints) -> float:
        """See `Strategy`: what the query says counts among those that fit the hints alike."""
        return 1e6 * score + likely
