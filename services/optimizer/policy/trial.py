"""Judging a canary while outcomes come in, at every one of them, without the error of peeking. Pure.

For each arm, a confidence sequence for its probability of success: the Bernoulli likelihood mixed over a uniform prior, against the one at
p, is a martingale when p is true (Ville 1939; Robbins 1970; Howard et al. 2021, "Time-uniform, nonparametric, nonasymptotic confidence
sequences"), so all p at which it stays under 1 / alpha hold the truth at every moment together with probability 1 - alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

Judgement = Literal["wait", "promote", "roll back"]


class Arm(NamedTuple):
    """Outcomes of one side since the trial began."""

    outcomes: int
    successes: int

    @property
    def rate(self) -> float:
        """Share of successes; 0.5 without outcomes."""
        return self.successes / self.outcomes if self.outcomes else 0.5


@dataclass(frozen=True, kw_only=True)
class TrialRules:
    """When a trial ends."""

    alpha: float = 0.05
    """Probability of ending one wrongly by its evidence, however often it is looked at; half of it for each arm."""
    margin: float = 0.10
    """By how much a child may be worse than its parents and still be promoted: the price of a smaller library."""
    max_outcomes: int = 100
    """Of the child: after so many it is decided by what was seen."""
    max_age_s: float = 7 * 86400.0
    """After so long too, so that what has little traffic is not on trial for ever."""
    min_outcomes: int = 8
    """Of the child, without which it is not promoted: what nobody judged stays as it was."""


def interval(arm: Arm, alpha: float) -> tuple[float, float]:
    """Lower and upper end of the confidence sequence, at this moment of it."""
    if not arm.outcomes:
        return 0.0, 1.0
    failures = arm.outcomes - arm.successes
    # log of the mixed likelihood, B(successes + 1, failures + 1), less the bound
    bar = math.lgamma(arm.successes + 1) + math.lgamma(failures + 1) - math.lgamma(arm.outcomes + 2) + math.log(alpha)

    def holds(p: float) -> bool:
        likelihood = (arm.successes * math.log(p) if arm.successes else 0.0) + (failures * math.log1p(-p) if failures else 0.0)
        return likelihood >= bar

    def edge(outside: float, inside: float) -> float:
        for _ in range(50):
            middle = (outside + inside) / 2
            outside, inside = (outside, middle) if 0 < middle < 1 and holds(middle) else (middle, inside)
        return inside

    return (edge(0.0, arm.rate) if arm.successes else 0.0), (edge(1.0, arm.rate) if failures else 1.0)


def judge(child: Arm, parents: Arm, age_s: float, rules: TrialRules) -> tuple[Judgement, dict[str, float]]:
    """What to do, and the numbers behind it."""
    child_low, child_high = interval(child, rules.alpha / 2)
    parents_low, parents_high = interval(parents, rules.alpha / 2)
    evidence = {
        "child_outcomes": float(child.outcomes),
        "child_success": child.rate,
        "child_low": child_low,
        "child_high": child_high,
        "parents_outcomes": float(parents.outcomes),
        "parents_success": parents.rate,
        "parents_low": parents_low,
        "parents_high": parents_high,
    }
    if child_high < parents_low:
        return "roll back", evidence
    if child_low > parents_high - rules.margin:
        return "promote", evidence
    if child.outcomes >= rules.max_outcomes or age_s >= rules.max_age_s:
        good = child.outcomes >= rules.min_outcomes and child.rate >= parents.rate - rules.margin
        return ("promote" if good else "roll back"), evidence
    return "wait", evidence


def reason_of(evidence: dict[str, float]) -> str:
    """The numbers as a sentence, for the lifecycle event."""
    return (
        f"child {evidence['child_success']:.2f} of {evidence['child_outcomes']:.0f} "
        f"({evidence['child_low']:.2f} to {evidence['child_high']:.2f}), "
        f"parents {evidence['parents_success']:.2f} of {evidence['parents_outcomes']:.0f} "
        f"({evidence['parents_low']:.2f} to {evidence['parents_high']:.2f})"
    )
