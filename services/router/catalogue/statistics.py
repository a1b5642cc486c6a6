"""An adapter's counts as the optimizer reports them, by epoch. Pure.

An epoch is the changelog that counts come from. Within one, uses, verdicts, generations, tokens and the time to first tokens only rise, so
a report of less is a mistake and is refused; outcomes and successes may fall, for a verdict may be corrected or taken back. If a changelog
is lost the next one begins at zero: that is another epoch, and its counts are added to what was known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from smoa.errors import FailedPrecondition

MAX_EPOCH_CHARACTERS: Final = 64
MAX_COUNT: Final = 2**53
"""A sum of a few of them still travels in 64 bits."""
MAX_EPOCHS: Final = 8
"""Kept apart; older ones are kept as one."""
OLDER: Final = "older"


@dataclass(frozen=True, kw_only=True)
class EpochCounts:
    """Counts of one epoch."""

    uses: int = 0
    verdicts: int = 0
    outcomes: int = 0
    successes: float = 0.0
    generations: int = 0
    tokens: int = 0
    first_token_us: int = 0
    aside_outcomes: int = 0
    aside_successes: float = 0.0

    def __add__(self, other: EpochCounts) -> EpochCounts:
        return EpochCounts(**{name: getattr(self, name) + getattr(other, name) for name in COUNTED})


COUNTED: Final = tuple(item.name for item in dataclasses.fields(EpochCounts))
RISING: Final = ("uses", "verdicts", "generations", "tokens", "first_token_us")


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counts over all epochs, and the recent ones of the last epoch."""

    uses: int = 0
    verdicts: int = 0
    outcomes: int = 0
    successes: float = 0.0
    generations: int = 0
    tokens: int = 0
    first_token_us: int = 0
    aside_outcomes: int = 0
    aside_successes: float = 0.0
    recent_uses: float = 0.0
    recent_outcomes: float = 0.0
    recent_successes: float = 0.0
    recent_at_us: int = 0
    fresh_outcomes: float = 0.0
    fresh_successes: float = 0.0
    last_used_at_us: int = 0
    longest_gap_us: int = 0
    epoch: str = ""
    counted_since_us: int = 0
    """Since when the last epoch holds everything."""
    epochs: Mapping[str, EpochCounts] = field(default_factory=dict)
    """The last report of each, the oldest first."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """What a newer program has added, which stays as it is."""

    def after(self, report: Statistics, now_us: int) -> Statistics:
        """The counts once a report, whose own counts are its epoch's, has come.

        An epoch that comes back after another one did not count what that one counted: it is whole from now on.

        Raises:
            FailedPrecondition: it says less than an earlier report of its epoch.
        """
        counts = EpochCounts(**{name: getattr(report, name) for name in COUNTED})
        mine = EpochCounts(**{name: getattr(self, name) for name in COUNTED})
        known = self.epochs or ({"": mine} if mine != EpochCounts() else {})
        before = known.get(report.epoch, EpochCounts())
        for name in RISING:
            if getattr(counts, name) < getattr(before, name):
                raise FailedPrecondition(
                    f"statistics: {name} is {getattr(counts, name):,.16g}, and was {getattr(before, name):,.16g} in the same epoch "
                    f"{report.epoch!r}; it only rises: report counts under the epoch of the changelog that they come from"
                )
        since_us = max(report.counted_since_us, self.counted_since_us) if report.epoch == self.epoch else report.counted_since_us
        if report.epoch != self.epoch and report.epoch in known:
            since_us = now_us
        epochs = {**{name: one for name, one in known.items() if name != report.epoch}, report.epoch: counts}
        while len(epochs) > MAX_EPOCHS:
            oldest = next(name for name in epochs if name != OLDER)
            epochs = {OLDER: epochs.pop(OLDER, EpochCounts()) + epochs.pop(oldest), **epochs}
        total = sum(epochs.values(), EpochCounts())
        return dataclasses.replace(
            report,
            **vars(total),
            epochs=epochs,
            counted_since_us=since_us,
            last_used_at_us=max(self.last_used_at_us, report.last_used_at_us),  # of every epoch
            longest_gap_us=max(self.longest_gap_us, report.longest_gap_us),
            unknown=self.unknown,
        )

    def to_payload(self) -> dict[str, Any]:
        """What is stored."""
        known = {name: getattr(self, name) for name in REPORTED}
        return {**self.unknown, **known, "epochs": {name: vars(one) for name, one in self.epochs.items()}}

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Statistics:
        """Inverse of `to_payload`."""
        epochs = {
            name: EpochCounts(**{key: counts[key] for key in COUNTED if key in counts})
            for name, counts in payload.get("epochs", {}).items()
        }
        known = {name: payload[name] for name in REPORTED if name in payload}
        unknown = {name: value for name, value in payload.items() if name not in known and name != "epochs"}
        return cls(**known, epochs=epochs, unknown=unknown)


REPORTED: Final = tuple(item.name for item in dataclasses.fields(Statistics) if item.name not in ("epochs", "unknown"))
"""What a report says, but for its epochs."""
