"""When a ranker is announced, and when it is taken back: by outcomes, offline before and live after. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from services.router.ranker import Ranker, builtin
from services.router.ranker_training import Logged, beats_hybrid, beats_rival, estimate, fit, train, values

MIN_LIVE: Final = 200
"""Outcomes of a ranker's own decisions, without which it is not judged live."""
TAKEN_BACK_AT: Final = 3.0
"""Standard errors of the live regret. It is looked at again and again: in a week of hours 1.6 would take back a third of the rankers
that are as good as hybrid, 3.0 takes 1.6% (4,000 random walks)."""


@dataclass(frozen=True)
class Step:
    """What to do: announce `ranker` (None: nothing), with `previous` to go back to, for this reason and by these numbers."""

    ranker: Ranker | None
    previous: Ranker | None
    reason: str
    evidence: Mapping[str, float] = field(default_factory=dict)


def next_step(logged: Sequence[Logged], current: Ranker, previous: Ranker | None) -> Step:
    """Take the current ranker back if it does worse than hybrid would have; else learn another, and announce it if it is better.

    Raises:
        FailedPrecondition: too few outcomes to learn from, or all of them the same.
    """
    live = [one for one in logged if one.ranker == current.version]
    if current.version != builtin().version and len(live) >= MIN_LIVE:
        regret = _regret(live, [one for one in logged if one.ranker != current.version])
        if regret["live_regret"] > TAKEN_BACK_AT * regret["live_regret_error"]:
            reason = f"hybrid would have done better by {regret['live_regret']:.3f} on {len(live)} decisions of {current.version}"
            return Step(previous or builtin(), None, reason, regret)
    learned = train(logged, rival=current)
    report = learned.report
    found = (
        f"{report['lead']:+.3f} to hybrid (one standard error {report['lead_error']:.3f}) and {report['rival_lead']:+.3f} "
        f"({report['rival_lead_error']:.3f}) to {current.version}, on {report['held_out']:.0f} held out"
    )
    if beats_hybrid(learned) and beats_rival(learned):
        return Step(learned, current, found, report)
    return Step(None, None, f"{learned.version} is not sure to be better: {found}", report)


def _regret(live: Sequence[Logged], others: Sequence[Logged]) -> dict[str, float]:
    """How much better hybrid's choices would have done on the ranker's own decisions; the reward model is of other decisions, if it can."""
    rewards = fit(others if len({one.success for one in others}) == 2 else live)
    regret = estimate(np.subtract(values(None, live, rewards), [one.success for one in live]).tolist())
    return {"live_outcomes": float(len(live)), "live_regret": regret.success, "live_regret_error": regret.error}
