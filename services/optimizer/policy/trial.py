"""Judging a merge's child while outcomes come in, at every one of them, without the error of peeking. Pure.

A child replaces several parents, and must do for the queries of each: what it does for one that is asked often says nothing of another.
So outcomes are compared within strata, one for each parent: those of the child where it stood for that parent, against the parent's own
at the same time; each decision says on which side it is. In each, two hypotheses are tested by an e-process: "the child is worse than the
parent by the margin", and "the child is as good". The evidence against one is the likelihood of all outcomes, mixed over a prior that was
fixed before the trial, by the largest that the hypothesis allows. By Ville's inequality it passes 1 / alpha with a probability of alpha at
most, at all moments together
(Wasserman, Ramdas and Balakrishnan 2020, "Universal inference"; Ramdas et al. 2023, "Game-theoretic statistics and safe anytime-valid
inference"). A child is promoted when the first is refuted for every parent, and, with a narrower margin, for all together; that needs no
correction for their number (Berger 1982, intersection-union tests). It is undone when the second is refuted for one of them, with their
number in the bound. What is not shown by the deadline is undone, too: nothing that is unknown is taken for a rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Judgement = Literal["wait", "promote", "roll back"]
MOST_BEFORE: Final = 20.0
"""Outcomes that what is known of a parent counts for in the prior of its rate: an equal child is shown the sooner."""
MOST_OF_A_USER: Final = 0.2
"""Of the outcomes on one side of a shared adapter's trial, those of one tenant that is not its owner."""
SKEWED_Z: Final = 5.0
"""Standard deviations by which a trial's sides are off: seen once in two million looks, and looks at sums that grow are not independent."""
_STEPS: Final = 40


class Arm(NamedTuple):
    """Outcomes of one side."""

    outcomes: float
    successes: float

    @property
    def rate(self) -> float | None:
        """Share of successes; None without outcomes."""
        return self.successes / self.outcomes if self.outcomes else None

    def __str__(self) -> str:
        return f"{self.successes:.10g} of {self.outcomes:.10g}"


NOTHING: Final = Arm(0, 0)


class Stratum(NamedTuple):
    """The queries of one parent."""

    child: Arm
    """Of the child, where it stood for the parent."""
    parent: Arm
    """Of the parent, in the decisions of the same time that were not the child's."""
    before: Arm = NOTHING
    """Of the parent before it began."""
    original: Arm = NOTHING
    """Of what the parent was merged from itself: that level is the bar for every generation after it, or margins would add up."""


@dataclass(frozen=True, kw_only=True)
class TrialRules:
    """When a trial ends."""

    alpha: float = 0.05
    """Probability of ending one wrongly by its evidence, however often it is looked at."""
    margin: float = 0.10
    """By how much a child may be worse than its parents together and still be promoted: the price of a smaller library."""
    parent_margin: float = 0.25
    """The same, than any one of them: each has fewer outcomes than all, and what can be shown of it is less."""
    max_age_s: float = 28 * 86400.0
    """What was not shown by then is undone."""


def with_users(stratum: Stratum, users: Mapping[str, tuple[Arm, Arm]]) -> Stratum:
    """The stratum of a shared parent, whose owner's verdicts are in it, with what its other users said of (child, parent).

    Each counts for no more than `MOST_OF_A_USER` of all outcomes on a side: whoever may use a shared adapter may report what it likes, and
    one of them alone must neither promote nor undo.
    """
    sides = []
    for place, owner in enumerate((stratum.child, stratum.parent)):
        arms = [arms[place] for _, arms in sorted(users.items()) if arms[place].outcomes]
        most = _most_of_each([arm.outcomes for arm in arms], owner.outcomes)
        capped = [Arm(arm.outcomes * part, arm.successes * part) for arm in arms for part in [min(1.0, most / arm.outcomes)]]
        sides.append(Arm(owner.outcomes + sum(one.outcomes for one in capped), owner.successes + sum(one.successes for one in capped)))
    return stratum._replace(child=sides[0], parent=sides[1])


def _most_of_each(outcomes: Sequence[int | float], owners: int | float) -> float:
    """The largest number to which the users' outcomes may be cut so that none is more than its share of all that is left."""
    low, high = 0.0, float(max(outcomes, default=0))
    if high <= MOST_OF_A_USER * (owners + sum(outcomes)):
        return high
    for _ in range(_STEPS):
        most = (low + high) / 2
        if most <= MOST_OF_A_USER * (owners + sum(min(most, one) for one in outcomes)):
            low = most
        else:
            high = most
    return low


def against(child: Arm, parent: Arm, before: Arm, *, worse_by: float | None) -> float:
    """Natural logarithm of the evidence against "the child's rate is under the parent's by at least this"; None: "it is not under it"."""
    if not child.outcomes or not parent.outcomes:
        return 0.0
    known = min(MOST_BEFORE, before.outcomes)
    right = known * (before.rate or 0.0)
    prior = 1 + right, 1 + known - right
    if worse_by is None:
        mixed = _mixed(child, 1, 1) + _mixed(parent, *prior)
    else:  # what is to be shown is that the two are alike: one rate for both, which is known the sooner
        mixed = _mixed(Arm(child.outcomes + parent.outcomes, child.successes + parent.successes), *prior)
    return mixed - _largest(child, parent, worse_by)


def against_level(child: Arm, level: float) -> float:
    """Natural logarithm of the evidence against "the child's rate is at most this"."""
    at = max(0.0, min(level, child.rate)) if child.rate is not None else level
    return _mixed(child, 1.0, 1.0) - _likelihood(child, at)


class Draws(NamedTuple):
    """How often the child's side was drawn, and how often it had to be: an A/A check of the assignment itself."""

    drawn: int = 0
    child: int = 0
    expected: float = 0.0
    variance: float = 0.0

    @property
    def skewed(self) -> bool:
        """Whether what decided about the sides is not what the routers say that it is (sample ratio mismatch: Fabijan et al., KDD 2019)."""
        return abs(self.child - self.expected) > SKEWED_Z * math.sqrt(max(self.variance, 1.0))

    def __str__(self) -> str:
        return f"{self.child} of {self.drawn} drawn for the child, {self.expected:.1f} expected"


def judge(
    strata: Mapping[str, Stratum],
    age_s: float,
    rules: TrialRules,
    draws: Draws = Draws(),  # noqa: B008  it does not change
) -> tuple[Judgement, dict[str, float], str]:
    """What to do, the numbers behind it, and as a sentence; both are of the parent that decides.

    Args:
        strata: By the parent's id.
        age_s: Of what is known of the trial.
        rules: When it ends.
        draws: Of the trial: nothing is promoted by sides that are not the queries' own chance.
    """
    shown = {parent: _shown(one, rules) for parent, one in strata.items()}
    least = min(shown, key=lambda parent: (shown[parent], parent))
    if min(shown[least], _shown_together(list(strata.values()), rules)) > math.log(1 / rules.alpha) and not draws.skewed:
        return "promote", *_said(strata, least, "as good")
    refuted = {parent: against(one.child, one.parent, one.before, worse_by=None) for parent, one in strata.items()}
    worst = max(refuted, key=lambda parent: (refuted[parent], parent))
    if refuted[worst] > math.log(len(strata) / rules.alpha):
        return "roll back", *_said(strata, worst, "worse")
    if age_s >= rules.max_age_s:
        verdict = f"its sides are skewed ({draws})" if draws.skewed else "not shown to be as good by the deadline"
        return "roll back", *_said(strata, least, verdict)
    return "wait", *_said(strata, least, "not shown yet")


def _shown(one: Stratum, rules: TrialRules) -> float:
    """Evidence that the child holds for one parent."""
    return _held(one, [one], rules.parent_margin)


def _shown_together(strata: Sequence[Stratum], rules: TrialRules) -> float:
    """Evidence that the child holds for all parents together."""
    return _held(_sum(strata), strata, rules.margin)


def _held(one: Stratum, parts: Sequence[Stratum], margin: float) -> float:
    """Evidence that the child holds within a margin: against the parents, and, of those that were merged, against what they were merged
    from.
    """
    evidence = against(one.child, one.parent, one.before, worse_by=margin)
    merged = _sum([part for part in parts if part.original.outcomes])
    return evidence if merged.original.rate is None else min(evidence, against_level(merged.child, merged.original.rate - margin))


def _sum(strata: Sequence[Stratum]) -> Stratum:
    if not strata:
        return Stratum(NOTHING, NOTHING)
    return Stratum(*(Arm(sum(one.outcomes for one in arms), sum(one.successes for one in arms)) for arms in zip(*strata, strict=True)))


def _said(strata: Mapping[str, Stratum], parent: str, verdict: str) -> tuple[dict[str, float], str]:
    one = strata[parent]
    evidence = {
        "parents": float(len(strata)),
        "child_outcomes": float(one.child.outcomes),
        "child_successes": float(one.child.successes),
        "parent_outcomes": float(one.parent.outcomes),
        "parent_successes": float(one.parent.successes),
    }
    if one.original.outcomes:
        evidence |= {"original_outcomes": float(one.original.outcomes), "original_successes": float(one.original.successes)}
    return evidence, f"{verdict}: in place of {parent} the child was right {one.child}, the parent {one.parent}"


def _mixed(arm: Arm, a: float, b: float) -> float:
    """Log-likelihood of the outcomes, in their order, mixed over Beta(a, b)."""
    failures = arm.outcomes - arm.successes
    return _log_beta(arm.successes + a, failures + b) - _log_beta(a, b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _likelihood(arm: Arm, p: float) -> float:
    failures = arm.outcomes - arm.successes
    right = arm.successes * math.log(p) if arm.successes and p > 0 else -math.inf if arm.successes else 0.0
    wrong = failures * math.log1p(-p) if failures and p < 1 else -math.inf if failures else 0.0
    return right + wrong


def _largest(child: Arm, parent: Arm, worse_by: float | None) -> float:
    """The largest log-likelihood that the hypothesis allows: at the rates as they were seen, or, where those are outside, on its edge."""
    assert child.rate is not None
    assert parent.rate is not None
    margin = worse_by or 0.0
    inside = child.rate >= parent.rate if worse_by is None else child.rate <= parent.rate - margin
    if inside:
        return _likelihood(child, child.rate) + _likelihood(parent, parent.rate)
    p = _edge(child, parent, margin)
    return _likelihood(child, p - margin) + _likelihood(parent, p)


def _edge(child: Arm, parent: Arm, margin: float) -> float:
    """The parent's rate at which both arms are likeliest together while the child's is the margin under it: the likelihood is concave in
    it, and its slope is searched for zero.
    """
    wrong, parents_wrong = child.outcomes - child.successes, parent.outcomes - parent.successes
    low, high = margin, 1.0
    for _ in range(_STEPS):
        p = (low + high) / 2
        q = p - margin
        slope = child.successes / q - wrong / (1 - q) + parent.successes / p - (parents_wrong / (1 - p) if p < 1 else 0.0)
        if slope > 0:
            low = p
        else:
            high = p
    return (low + high) / 2
