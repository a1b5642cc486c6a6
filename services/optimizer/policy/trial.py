"""Judging a merge's child while outcomes come in, at every one of them, without the error of peeking. Pure.

A child replaces several parents, and must do for the queries of each: what it does for one that is asked often says nothing of another.
So outcomes are compared within strata, one for each parent: those of the child where it stood for that parent, against the parent's own
at the same time; each decision says on which side it is.

That a child holds is shown by a difference sequence: verdicts of both sides, one with one. For a pair, let the alternative be that both
rates are p, and the hypothesis that the child's is less by the margin. The likelihood of the pair under (p, p), by that under the pair of
rates of the hypothesis that is nearest to it (in Kullback-Leibler divergence), has an expectation of at most 1 wherever the hypothesis is
true (Turner and Gruenwald 2023, "Safe sequential testing and effect estimation in stratified count data"); so have products over pairs, of
whatever strata, and mixtures over p. By Ville's inequality such a product passes 1 / alpha with a probability of alpha at most, at all
moments together. Scores between 0 and 1 do as well: the logarithm is taken to be linear in them, which is less than it is.

That a child is worse is shown by the likelihood of all outcomes, mixed over a prior that was fixed before the trial, by the largest that
"as good" allows (Wasserman, Ramdas and Balakrishnan 2020, "Universal inference"; Ramdas et al. 2023, "Game-theoretic statistics and safe
anytime-valid inference").

A child is promoted when it is shown to hold for every parent, and, with a narrower margin, for all together; that needs no
correction for their number (Berger 1982, intersection-union tests). It is undone when it is shown to be worse for one of them, with their
number in the bound. What is not shown by the deadline is undone, too: nothing that is unknown is taken for a rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, NamedTuple

Judgement = Literal["wait", "promote", "roll back", "not shown"]
MOST_BEFORE: Final = 20.0
"""Outcomes that what is known of a parent counts for in the prior of its rate: an equal child is shown the sooner."""
MOST_OF_A_USER: Final = 0.2
"""Of the outcomes on one side of a shared adapter's trial, those of one tenant that is not its owner."""
SKEWED_Z: Final = 5.0
"""Standard deviations by which a trial's sides are off: seen once in two million looks, and looks at sums that grow are not independent."""
MOST_HELD_BACK_S: Final = 28 * 86400.0
"""A child that something beside its outcomes speaks against does not get the time that is there for those that have few."""
_STEPS: Final = 40
_GRID: Final = 20
"""Rates that are tried as what both sides are."""


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


class Pairs(NamedTuple):
    """A difference sequence: how many pairs, and the sums of their verdicts."""

    pairs: float = 0.0
    child: float = 0.0
    parent: float = 0.0


NO_PAIRS: Final = Pairs()


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
    pairs: Pairs = NO_PAIRS


@dataclass(frozen=True, kw_only=True)
class TrialRules:
    """When a trial ends."""

    alpha: float = 0.05
    """Probability of ending one wrongly by its evidence, however often it is looked at."""
    margin: float = 0.10
    """By how much a child may be worse than its parents together and still be promoted: the price of a smaller library."""
    parent_margin: float = 0.25
    """The same, than any one of them: each has fewer outcomes than all, and what can be shown of it is less."""
    max_age_s: float = 168 * 86400.0
    """What was not shown by then is undone."""
    most_spent: float = 1.5
    """Factor by which a child's first token may come later, or its answers be longer, than its parents' on average; 0: not looked at."""
    in_front: bool = False
    """A child is promoted only while it is not behind: of two versions the better one is to stay, and there is no price to be paid."""


class Voice(NamedTuple):
    """What one user of a shared parent said."""

    child: Arm
    parent: Arm
    pairs: Pairs


def with_users(stratum: Stratum, users: Mapping[str, Voice]) -> Stratum:
    """The stratum of a shared parent, whose owner's verdicts are in it, with what its other users said.

    Each counts for no more than `MOST_OF_A_USER` of all outcomes: whoever may use a shared adapter may report what it likes, and one of
    them alone must neither promote nor undo.
    """
    voices = [voice for _, voice in sorted(users.items())]
    children, parents, pairs = [stratum.child], [stratum.parent], [stratum.pairs]
    for arms, of in ((children, [one.child for one in voices]), (parents, [one.parent for one in voices])):
        most = _most_of_each([arm.outcomes for arm in of], arms[0].outcomes)
        arms += [Arm(*(value * _part(arm.outcomes, most) for value in arm)) for arm in of]
    most = _most_of_each([voice.pairs.pairs for voice in voices], stratum.pairs.pairs)
    pairs += [Pairs(*(value * _part(voice.pairs.pairs, most) for value in voice.pairs)) for voice in voices]
    return stratum._replace(child=_sum(children), parent=_sum(parents), pairs=_sum_of_pairs(pairs))


def _part(outcomes: float, most: float) -> float:
    return min(1.0, most / outcomes) if outcomes else 1.0


def _sum(arms: Iterable[Arm]) -> Arm:
    return Arm(*(sum(values) for values in zip(*arms, strict=True)))


def _sum_of_pairs(pairs: Iterable[Pairs]) -> Pairs:
    return Pairs(*(sum(values) for values in zip(*pairs, strict=True)))


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


def holds(pairs: Pairs, before: Arm, margin: float) -> float:
    """Natural logarithm of the evidence against "the child's rate is under the parent's by at least the margin".

    Args:
        pairs: The difference sequence.
        before: What was known of the parent before the trial: about which rate the alternatives are the likelier.
        margin: In (0, 1).
    """
    known = min(MOST_BEFORE, before.outcomes)
    right = known * (before.rate or 0.0)
    weights = [right * math.log(one.rate) + (known - right) * math.log1p(-one.rate) for one in _alternatives(margin)]
    child, parent = (pairs.child, pairs.pairs - pairs.child), (pairs.parent, pairs.pairs - pairs.parent)
    found = [
        weight + child[0] * one.child_right + child[1] * one.child_wrong + parent[0] * one.parent_right + parent[1] * one.parent_wrong
        for weight, one in zip(weights, _alternatives(margin), strict=True)
    ]
    return _log_sum(found) - _log_sum(weights)


class _Alternative(NamedTuple):
    """Both rates are one; what each verdict adds to the logarithm of the evidence."""

    rate: float
    child_right: float
    child_wrong: float
    parent_right: float
    parent_wrong: float


@cache
def _alternatives(margin: float) -> tuple[_Alternative, ...]:
    found = []
    for place in range(_GRID):
        p = (place + 0.5) / _GRID
        low, high = max(0.0, p - margin), min(p, 1 - margin)
        for _ in range(_STEPS):  # the nearest rates of the hypothesis, (a, a + margin): where the divergence's slope is 0
            a = (low + high) / 2
            b = a + margin
            if (p - a) / (a * (1 - a)) > (b - p) / (b * (1 - b)):
                low = a
            else:
                high = a
        found.append(_Alternative(p, math.log(p / a), math.log((1 - p) / (1 - a)), math.log(p / b), math.log((1 - p) / (1 - b))))
    return tuple(found)


def _log_sum(logs: Sequence[float]) -> float:
    most = max(logs)
    return most + math.log(sum(math.exp(one - most) for one in logs))


def worse(child: Arm, parent: Arm, before: Arm) -> float:
    """Natural logarithm of the evidence against "the child's rate is not under the parent's"."""
    if not child.outcomes or not parent.outcomes or child.rate is None or parent.rate is None:
        return 0.0
    known = min(MOST_BEFORE, before.outcomes)
    right = known * (before.rate or 0.0)
    mixed = _mixed(child, 1, 1) + _mixed(parent, 1 + right, 1 + known - right)
    if child.rate >= parent.rate:
        return mixed - _likelihood(child, child.rate) - _likelihood(parent, parent.rate)
    both = _sum([child, parent])
    assert both.rate is not None
    return mixed - _likelihood(both, both.rate)


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
    against: str = "",
) -> tuple[Judgement, dict[str, float], str]:
    """What to do, the numbers behind it, and as a sentence; both are of the parent that decides.

    Args:
        strata: By the parent's id.
        age_s: Of what is known of the trial.
        rules: When it ends.
        draws: Of the trial: nothing is promoted by sides that are not the queries' own chance.
        against: What speaks against the child beside its verdicts: while there is anything, it is not promoted, and it ends sooner
            (`MOST_HELD_BACK_S`).
    """
    shown = {parent: _shown(one, rules) for parent, one in strata.items()}
    least = min(shown, key=lambda parent: (shown[parent], parent))
    held = min(shown[least], _shown_together(list(strata.values()), rules)) > math.log(1 / rules.alpha)
    behind = "as good, and behind" if held and rules.in_front and any(_behind(one) for one in strata.values()) else ""
    held_back = f"its sides are skewed ({draws})" if draws.skewed else against or behind
    if held and not held_back:
        return "promote", *_said(strata, least, "as good")
    refuted = {parent: worse(one.child, one.parent, one.before) for parent, one in strata.items()}
    worst = max(refuted, key=lambda parent: (refuted[parent], parent))
    if refuted[worst] > math.log(len(strata) / rules.alpha):
        return "roll back", *_said(strata, worst, "worse")
    if age_s >= (min(rules.max_age_s, MOST_HELD_BACK_S) if held_back else rules.max_age_s):
        return "not shown", *_said(strata, least, held_back or "not shown to be as good by the deadline")
    return "wait", *_said(strata, least, "not shown yet")


def _behind(one: Stratum) -> bool:
    return one.child.rate is None or one.parent.rate is None or one.child.rate < one.parent.rate


def _shown(one: Stratum, rules: TrialRules) -> float:
    """Evidence that the child holds for one parent."""
    return _held(one, [one], rules.parent_margin)


def _shown_together(strata: Sequence[Stratum], rules: TrialRules) -> float:
    """Evidence that the child holds for all parents together."""
    return _held(_together(strata), strata, rules.margin)


def _held(one: Stratum, parts: Sequence[Stratum], margin: float) -> float:
    """Evidence that the child holds within a margin: against the parents, and, of those that were merged, against what they were merged
    from.
    """
    evidence = holds(one.pairs, one.before, margin)
    merged = _together([part for part in parts if part.original.outcomes])
    return evidence if merged.original.rate is None else min(evidence, against_level(merged.child, merged.original.rate - margin))


def _together(strata: Sequence[Stratum]) -> Stratum:
    if not strata:
        return Stratum(NOTHING, NOTHING)
    child, parent, before, original = (_sum(arms) for arms in zip(*(one[:4] for one in strata), strict=True))
    return Stratum(child, parent, before, original, _sum_of_pairs(one.pairs for one in strata))


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
