"""What each tenant has been served, so that the one served least goes next. Pure.

Virtual token counters (Sheng et al., Fairness in Serving LLMs, arXiv 2401.00588): a tenant that comes back starts level with the least
served of those who are there, or with what it had itself if that is more. So nobody saves up turns by being away, nor loses a debt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

MAX_ACCOUNTS: Final = 10_000
"""Tenants away whose debt is remembered."""


class Fairness:
    """Accounts of those who are there, and of those away who still have a debt."""

    def __init__(self, most_away: int = MAX_ACCOUNTS) -> None:
        self._most_away = most_away
        self._served: dict[str, int] = {}
        self._jobs: Counter[str] = Counter()
        self._count = 0
        self._level = 0
        """The least that anybody there has been served; of the last one there, when nobody is."""

    def enter(self, tenant: str) -> None:
        """It has one more job."""
        if not self._jobs[tenant]:
            self._served[tenant] = max(self._served.get(tenant, 0), self._level)
        self._jobs[tenant] += 1
        self._count += 1

    def serve(self, tenant: str, cost: int) -> None:
        """It was served so much more."""
        self._served[tenant] += cost
        self._level = max(self._level, min(self._served[one] for one in self._jobs))

    def leave(self, tenant: str) -> None:
        """It has one job less."""
        self._jobs[tenant] -= 1
        self._count -= 1
        if self._jobs[tenant]:
            return
        del self._jobs[tenant]
        there = min((self._served[one] for one in self._jobs), default=self._served[tenant])
        self._level = max(self._level, there)
        if self._served[tenant] <= self._level:
            del self._served[tenant]
        elif len(self._served) > len(self._jobs) + 2 * self._most_away:
            self._forget()

    def __len__(self) -> int:
        """Jobs that are there."""
        return self._count

    def jobs(self) -> Counter[str]:
        """How many jobs each tenant has."""
        return self._jobs.copy()

    def by_turn(self, tenants: Iterable[str]) -> list[str]:
        """The one served least first."""
        return sorted(tenants, key=lambda tenant: self._served[tenant])

    def _forget(self) -> None:
        """Accounts of those away that say no more than the level, and the smallest debts over the most that are kept."""
        away = [tenant for tenant, served in self._served.items() if tenant not in self._jobs and served > self._level]
        kept = sorted(away, key=lambda tenant: self._served[tenant])[-self._most_away :]
        self._served = {tenant: self._served[tenant] for tenant in [*self._jobs, *kept]}

    def check_integrity(self, tenants: Iterable[str]) -> None:
        """Raise AssertionError unless exactly these jobs' tenants are there."""
        assert Counter(tenants) == self._jobs, "a tenant's job is missing or left over"
        assert set(self._jobs) <= set(self._served), "a tenant has no account"
