"""What a line says by itself, and what it says after those before it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.router.catalogue.port import Vector
from services.router.learning.pool_fit import PoolFit
from services.router.routing.conversation import Belief, Said, follow
from services.router.routing.explanation import Judged
from services.router.routing.scoring import Scored


class Heard(NamedTuple):
    """A line; of a conversation, with what was said before."""

    vector: Vector
    fit: PoolFit | None
    """Of its pool."""
    ranked: Sequence[Scored]
    """Its candidates, likeliest first."""
    judged: Sequence[Judged]
    """The first of them, as many as are looked at closely."""
    after: Belief | None = None
    """What its conversation is about then."""
    by_conversation: bool = False
    """By itself, it would be for another adapter, or for none."""

    def followed(self, before: Belief | None, vague: float) -> Heard:
        """In the order that what was said before gives it. The judged are those of the line by itself; `vague` as in `Said`."""
        ids, log_odds = [one.candidate.ref.adapter_id for one in self.ranked], [one.log_odds for one in self.ranked]
        new, after = follow(before, Said(ids, log_odds, vague, self.judged[0].confidence if self.judged else None))
        if before is None:
            return self._replace(after=after)
        ranked = [one._replace(log_odds=value) for one, value in zip(self.ranked, new, strict=True)]
        return self._replace(ranked=sorted(ranked, key=lambda one: -one.log_odds), after=after)

    def judged_again(self, judged: Sequence[Judged], before: Belief) -> Heard:
        """With the first of the new order: a conversation about an adapter is in its scope, whatever one line of it says."""
        assert self.after is not None
        alone, settled, likely = self.judged, self.after.settled, 1 - self.after.none
        if settled:
            judged = [
                one._replace(fits=True, confidence=one.confidence if one.confidence is None else max(one.confidence, likely))
                if one.scored.candidate.ref.adapter_id in before.shares
                else one
                for one in judged
            ]
        elif alone and not alone[0].fits:
            judged = [one._replace(fits=False) for one in judged]
        first = [one[0].scored.candidate.ref.adapter_id if one and one[0].fits else "" for one in (alone, judged)]
        return self._replace(judged=judged, by_conversation=first[0] != first[1])
