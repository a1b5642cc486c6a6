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
    """A line by itself; of a conversation, with what it is about then."""

    vector: Vector
    fit: PoolFit | None
    """Of its pool."""
    ranked: Sequence[Scored]
    """Its candidates, likeliest first."""
    before: Belief | None = None
    after: Belief | None = None
    together: Sequence[Scored] | None = None
    """Its candidates in the order that what was said before gives them; None where that does not count."""

    def following(self, before: Belief | None, vague: float, in_scope: float | None) -> Heard:
        """After what was said before; `vague` and `in_scope` as in `Said`. Unless the conversation has settled on an adapter, the
        line speaks for itself.
        """
        ids, log_odds = [one.candidate.ref.adapter_id for one in self.ranked], [one.log_odds for one in self.ranked]
        new, after = follow(before, Said(ids, log_odds, vague, in_scope))
        together = None
        if before is not None and after.settled:
            ranked = [one._replace(log_odds=value) for one, value in zip(self.ranked, new, strict=True)]
            together = sorted(ranked, key=lambda one: -one.log_odds)
        return self._replace(before=before, after=after, together=together)

    def in_scope(self, judged: Sequence[Judged]) -> list[Judged]:
        """Those of `together`, of which any that the conversation was about is in its scope, whatever one line of it says."""
        assert self.before is not None
        assert self.after is not None
        shares, likely = self.before.shares, 1 - self.after.none
        return [
            one._replace(fits=True, confidence=one.confidence if one.confidence is None else max(one.confidence, likely))
            if one.scored.candidate.ref.adapter_id in shares
            else one
            for one in judged
        ]


def answering(judged: Sequence[Judged]) -> list[Judged]:
    """Those that answer, likeliest first. The likeliest says whether the query is for any: by that, the share that is lost is known."""
    return [one for one in judged if one.fits and judged[0].fits]
