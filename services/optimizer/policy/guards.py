"""What an answer costs beside what it is worth: a child on trial must not fail to answer, answer late, or answer at length. Pure.

Verdicts are of answers that were given. Of those that were not, and of how long the others took, a router hears nothing; the executors do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

from services.optimizer.policy.trial import Arm, worse

MIN_ANSWERS: Final = 50
"""Of each side, before a mean says anything: means of what varies as much as it is long are off by a seventh then."""


class Spent(NamedTuple):
    """What one side of a trial took."""

    uses: float = 0.0
    """Decisions that held it."""
    answers: float = 0.0
    """That executors gave."""
    tokens: float = 0.0
    first_token_us: float = 0.0
    """Both of all answers together."""

    def since(self, before: Spent) -> Spent:
        """What came after."""
        return Spent(*(max(0.0, now - then) for now, then in zip(self, before, strict=True)))


class Guarded(NamedTuple):
    """What is to be said against a child, beside its verdicts."""

    fails: str = ""
    """It answers less often than its parents, beyond doubt."""
    costs: str = ""
    """Its answers take more than theirs by too much; it may be chance yet."""


def together(spent: Iterable[Spent]) -> Spent:
    """Of several adapters."""
    return Spent(*(math.fsum(values) for values in zip(*spent, strict=True)))


def guarded(child: Spent, parents: Spent, asked: tuple[float, float] | None, most: float, alpha: float) -> Guarded:
    """What speaks against a child.

    Args:
        child: Since its trial began.
        parents: In the same time, together.
        asked: The uses of both a while ago, whose answers have had time to come; None if nobody looked then.
        most: Factor by which a mean may be the parents'; 0: they are not looked at.
        alpha: Probability of saying wrongly that it fails, however often it is looked at.
    """
    if most <= 0:
        return Guarded()
    fails = ""
    if asked is not None and min(asked) >= MIN_ANSWERS:
        mine, theirs = (Arm(uses, min(uses, one.answers)) for uses, one in zip(asked, (child, parents), strict=True))
        if worse(mine, theirs, before=Arm(0, 0)) > math.log(1 / alpha):
            fails = f"answers less often: {mine} decisions, its parents {theirs}"
    if min(child.answers, parents.answers) < MIN_ANSWERS:
        return Guarded(fails)
    (late, long), (parents_late, parents_long) = _means(child), _means(parents)
    said = []
    if late > most * parents_late > 0:
        said.append(f"the first token comes after {late:.4g} ms, its parents' {parents_late:.4g}")
    if long > most * parents_long > 0:
        said.append(f"answers have {long:.4g} tokens, its parents' {parents_long:.4g}")
    return Guarded(fails, "; ".join(said))


def _means(one: Spent) -> tuple[float, float]:
    """Milliseconds to the first token, and tokens."""
    return one.first_token_us / one.answers / 1000, one.tokens / one.answers


def evidence(child: Spent, parents: Spent) -> dict[str, float]:
    """The numbers, of what is known of both."""
    found: dict[str, float] = {}
    for side, one in (("child", child), ("parents", parents)):
        if one.uses and one.answers:
            late_ms, tokens = _means(one)
            found |= {f"{side}_answered": one.answers / one.uses, f"{side}_tokens": tokens, f"{side}_first_token_ms": late_ms}
    return found
