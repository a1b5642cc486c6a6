"""How much a caller may do in a second: a token bucket for each (RFC 2697). Pure, but for the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message

from smoa.access.access import Admitted
from smoa.access.principal import SERVICES
from smoa.errors import ResourceExhausted

SAVED_S: Final = 10.0
"""What was not used in so many seconds may be used at once."""
_MANY: Final = 1024
"""Callers; with more, those who have all that can be saved up are forgotten, which gives them nothing that they had not."""


class Rate:
    """So much a second of every caller; 0 is no limit."""

    def __init__(
        self, what: str, per_s: float, saved_s: float = SAVED_S, said: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`what` is what its owner calls it, and `said` how much it is, for whoever meets it."""
        self._what, self._per_s, self._saved_s, self._clock = what, per_s, saved_s, clock
        self._said = said or f"{per_s:g} a second"
        self._full_at_s: dict[str, float] = {}
        """By caller: when it will have saved up all that can be saved, were it to do nothing until then."""

    def take(self, caller: str, amount: float = 1.0) -> None:
        """Use so much of a caller's, or nothing.

        Raises:
            ResourceExhausted: it has not so much now; it says when it will. Of more than can be saved up, it is when all is.
        """
        self.check(caller, amount)
        self._use(caller, amount)

    def check(self, caller: str, amount: float = 1.0) -> None:
        """The same, and nothing is used.

        Raises:
            ResourceExhausted: see `take`.
        """
        if wait_s := self._wait_s(caller, amount):
            raise ResourceExhausted(f"{self._what}: {caller} is over {self._said}", f"wait {wait_s:.1f} s, or ask for a higher limit")

    def owe(self, caller: str, amount: float = 1.0) -> float:
        """Use so much of a caller's in any case; returns for how many seconds it should wait now, as it is more than it had."""
        wait_s = self._wait_s(caller, amount)
        self._use(caller, amount)
        return wait_s

    def _wait_s(self, caller: str, amount: float) -> float:
        if not self._per_s:
            return 0.0
        needed_s = min(amount / self._per_s, self._saved_s)
        return max(0.0, self._full_at_s.get(caller, 0.0) - self._clock() - (self._saved_s - needed_s))

    def _use(self, caller: str, amount: float) -> None:
        if not self._per_s:
            return
        now_s = self._clock()
        if len(self._full_at_s) >= _MANY and caller not in self._full_at_s:
            self._full_at_s = {name: full_s for name, full_s in self._full_at_s.items() if full_s > now_s}
        self._full_at_s[caller] = max(self._full_at_s.get(caller, 0.0), now_s) + amount / self._per_s


@dataclass(frozen=True)
class Rates:
    """What calls are held to: how many a second, and how many of those that change something. What a call has many of counts as often."""

    calls: Rate
    changes: Rate

    def begin(self, admitted: Admitted) -> None:
        """A call, before anything of it is read.

        Raises:
            ResourceExhausted: the caller is over its limit.
        """
        self._take(admitted, 1)

    def take(self, admitted: Admitted, request: Message) -> None:
        """The one request of a call that has begun.

        Raises:
            ResourceExhausted: the caller is over its limit.
        """
        if (amount := admitted.rights.counted(request)) > 1:
            self._take(admitted, amount - 1)

    def _take(self, admitted: Admitted, amount: int) -> None:
        held_to = self._held_to(admitted)
        for rate, caller in held_to:
            rate.check(caller, amount)
        for rate, caller in held_to:
            rate.take(caller, amount)

    def owe(self, admitted: Admitted, request: Message) -> float:
        """One of the requests of such a call; returns for how many seconds the next is to wait."""
        amount = admitted.rights.counted(request)
        return max((rate.owe(caller, amount) for rate, caller in self._held_to(admitted) if amount), default=0.0)

    def _held_to(self, admitted: Admitted) -> list[tuple[Rate, str]]:
        principal, rights = admitted
        if principal.may(SERVICES):  # they work for everybody
            return []
        return [(rate, principal.name) for rate in ((self.calls, self.changes) if rights.audited else (self.calls,))]
