"""What is hard about the worlds in which the optimizer's policy is tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MONTH_H: Final = 30 * 24


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is hard about a world."""

    name: str
    noise: float = 0.10
    """Outcomes that say the opposite."""
    missing: float = 0.3
    delay_h: float = 2.0
    liars: float = 0.0
    """Share of queries by a tenant that calls everything a failure. It may use what is shared, which is everything, and so is heard where a
    shared adapter's users are: in trials.
    """
    drift: bool = False
    """In the middle, a tenth of the adapters become bad, and successors arrive a day later."""
    arrivals: float = 0.0
    """Share of the jobs whose adapters come during the run."""
    outages: tuple[tuple[int, int], ...] = ()
    """(first hour, hours) in which every answer fails, whoever gives it."""
    weekly: float = 0.0
    """Share of the jobs that are asked for on one day of seven only."""
    daily: float = 0.0
    """Share of the jobs that are asked for in one hour of the day only."""
    yearly: float = 0.0
    """Share of the jobs that are asked for in one month of the year only."""
    days: int = 0
    """Of the run, if it has to be longer than others; with a fifth of the jobs then, and a twenty-fifth of the queries."""
    retrained: float = 0.0
    """Share of the jobs whose adapter gets a second version: of the same name, better or worse."""
    minorities: float = 0.0
    """Pairs of look-alikes, by jobs, of which one has many queries and keeps what it can in a merge, and the other few and loses it."""
    counts_lost_every_h: float = 0.0
    """A third of the counts begins anew."""
    restarts_every_h: float = 0.0
    """Routers and workers forget what only they know."""
    workers: int = 1
    """Each decides for its own adapters by what it saw before the others decided."""
    graded: bool = False
    """Outcomes are scores between 0 and 1."""

    def season(self, job: int, jobs: int, hour: int) -> float:
        """By how much more a job is asked for in this hour than on average."""
        if job / jobs < self.weekly:
            return 7.0 * (hour // 24 % 7 == job % 7)
        if job / jobs < self.daily:
            return 24.0 * (hour % 24 == job % 24)
        if job / jobs < self.yearly:
            return 12.0 * (hour // MONTH_H % 12 == job % 12)
        return 1.0


SCENARIOS: Final = (
    Scenario(name="calm", noise=0.0, missing=0.0, delay_h=0.0),
    Scenario(name="noisy"),
    Scenario(name="sparse", missing=0.8, delay_h=24.0),
    Scenario(name="lies", liars=0.3),
    Scenario(name="drift", drift=True),
    Scenario(name="cold starts", arrivals=0.4),
    Scenario(name="outages", outages=((30, 1), (200, 6), (400, 1))),
    Scenario(name="seasons", weekly=0.3),
    Scenario(name="daily", daily=0.3),
    Scenario(name="yearly", yearly=0.3, days=800),
    Scenario(name="retrained", retrained=0.4),
    Scenario(name="minorities", minorities=0.3),
    Scenario(name="counts lost", counts_lost_every_h=240),
    Scenario(name="restarts", restarts_every_h=12, workers=2),
    Scenario(name="graded", graded=True),
)
