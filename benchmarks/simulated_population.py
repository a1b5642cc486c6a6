"""Who is in a simulated library at its beginning, who comes later, and who is like whom."""

from __future__ import annotations

import random
from typing import Final

from benchmarks.scenarios import MONTH_H, Scenario
from benchmarks.simulated_members import Member

USEFUL: Final = 0.3


def new_member(rng: random.Random, job: int, quality: float) -> Member:
    """An adapter for a job."""
    return Member(f"{rng.getrandbits(60):015x}", {job: min(1.0, quality)}, 0.0)


class Population:
    """By job: an adapter and near copies of it, sometimes a bad one, sometimes a second version; and look-alikes of other jobs."""

    def __init__(self, scenario: Scenario, rng: random.Random, jobs: int, hours: int) -> None:
        self.members: dict[str, Member] = {}
        self.arriving: list[tuple[float, Member]] = []
        """(hour, who)"""
        self.cosines: dict[tuple[str, str], float] = {}
        for job in range(jobs):
            late = rng.random() < scenario.arrivals
            quality = rng.uniform(0.75, 0.98)
            copies = rng.choice([0, 0, 1, 2, 4])
            family = [new_member(rng, job, quality + rng.uniform(-0.02, 0.02)) for _ in range(1 + copies)]
            if rng.random() < 0.3:
                family.append(new_member(rng, job, rng.uniform(0.02, 0.15)))  # a bad one, unlike the others
                alike = family[:-1]
            else:
                alike = family
            self._like(rng, alike, 0.95, 0.995)
            if rng.random() < scenario.retrained:
                self.arriving.append((rng.uniform(24, hours * 0.6), self._retrained(rng, job, family[0], alike)))
            for member in family:
                if job / jobs < scenario.yearly:  # it is made for its first season
                    self.arriving.append((job % 12 * MONTH_H, member))
                elif late:
                    self.arriving.append((rng.uniform(24, hours * 0.6), member))
                else:
                    self.members[member.name] = member
        names = [name for name in self.members if max(self.members[name].jobs.values()) > USEFUL]
        for _ in range(int(jobs * scenario.minorities)):
            few = self.members[rng.choice(names)]
            many = self.members[rng.choice(names)]
            if min(many.jobs) * 4 < jobs < min(few.jobs) * 2 and not few.fragile:
                few.fragile = True
                self._like(rng, [few, many], 0.95, 0.99)
        for _ in range(jobs // 10):  # look-alikes
            a, b = rng.sample(names, 2)
            if not self.members[a].jobs.keys() & self.members[b].jobs.keys():
                self.cosines[min(a, b), max(a, b)] = rng.uniform(0.91, 0.96)

    def _retrained(self, rng: random.Random, job: int, before: Member, alike: list[Member]) -> Member:
        member = new_member(rng, job, before.jobs[job] + rng.uniform(-0.15, 0.15))
        member.label = before.label = before.name
        self._like(rng, [*alike, member], 0.95, 0.995)
        return member

    def _like(self, rng: random.Random, alike: list[Member], low: float, high: float) -> None:
        for place, one in enumerate(alike):
            for other in alike[:place]:
                self.cosines[min(one.name, other.name), max(one.name, other.name)] = rng.uniform(low, high)
