"""When a ranker is announced, and when it is taken back: by outcomes, offline before and live after. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from services.router.learning.ranker import Ranker, builtin
from services.router.learning.ranker_training import Logged, estimate, fit, train, values

MIN_LIVE: Final = 200
"""Outcomes since the last announcement, without which there is no other; and of a ranker's own, without which it is not judged."""
ANNOUNCED_AT, TAKEN_BACK_AT = 2.0, 3.0
"""Standard errors by which a ranker must lead to be announced, and be behind to be taken back. That is looked at again and again: in a week
of hours 1.6 would take back a third of the rankers that are as good as hybrid, 3.0 takes 1.6% (4,000 random walks)."""


@dataclass(frozen=True)
class Step:
    """What to do: announce `ranker` (None: nothing), with `previous` to go back to, for this reason and by these numbers."""

    ranker: Ranker | None
    previous: Ranker | None
    reason: str
    evidence: Mapping[str, float] = field(default_factory=dict)


def next_step(logged: Sequence[Logged], current: Ranker, previous: Ranker | None = None, announced_at_us: int = 0) -> Step:
    """Take the current ranker back if it does worse than hybrid would have; else learn another, and announce it if it is better.

    Neither before there are outcomes of what was announced last: the same log would have the same said of it.

    Raises:
        FailedPrecondition: too few outcomes to learn from, or all of them the same.
    """
    since = sum(one.decided_at_us > announced_at_us for one in logged)
    if announced_at_us and since < MIN_LIVE:
        return Step(None, None, f"{since} outcomes since {current.version} was announced; {MIN_LIVE} are waited for")
    live = [one for one in logged if one.ranker == current.version]
    if current.version != builtin().version and len(live) >= MIN_LIVE:
        regret = _regret(live, [one for one in logged if one.ranker != current.version])
        if regret["live_regret"] > TAKEN_BACK_AT * regret["live_regret_error"]:
            reason = f"hybrid would have done better by {regret['live_regret']:.3f} on {len(live)} decisions of {current.version}"
            back = previous if previous is not None and previous.version != current.version else builtin()
            return Step(back, None, reason, regret)
    learned = train(logged, rival=current)
    report = learned.report
    found = (
        f"{report['lead']:+.3f} to hybrid (one standard error {report['lead_error']:.3f}) and {report['rival_lead']:+.3f} "
        f"({report['rival_lead_error']:.3f}) to {current.version}, on {report['held_out']:.0f} held out"
    )
    if all(report[lead] > ANNOUNCED_AT * report[f"{lead}_error"] for lead in ("lead", "rival_lead")):
        return Step(learned, current, found, report)
    return Step(None, None, f"{learned.version} is not sure to be better: {found}", report)


def _regret(live: Sequence[Logged], others: Sequence[Logged]) -> dict[str, float]:
    """How much better hybrid's choices would have done on the ranker's own decisions; the reward model is of other decisions, if it can."""
    rewards = fit(others if len({one.success for one in others}) == 2 else live)
    regret = estimate(np.subtract(values(None, live, rewards), [one.success for one in live]).tolist())
    return {"live_outcomes": float(len(live)), "live_regret": regret.success, "live_regret_error": regret.error}
