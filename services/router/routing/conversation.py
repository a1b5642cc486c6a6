"""What a conversation is about, from what its turns say of it. Pure.

A filter, as of a hidden Markov model (Rabiner 1989, "A tutorial on hidden Markov models", eq. 18-20). The hidden state is the adapter that
the conversation is about, or none; between two turns the topic moves with probability `MOVES`, to any candidate alike or to none. A turn
says what its topic is, as likely as the pool's fit has it; or, with probability `VAGUE`, it says nothing of any topic, as "and the second
one?" does: it is then as lines of conversations are in general (`learning/vague_lines.txt`), or, seldom, like nothing that is known.
So what was settled on stays until a turn speaks for another, and fades over turns that speak for none. What is remembered is what is
believed, not what was said.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from services.router.learning.pool_fit import LEAST_ODDS
from smoa.bounded_cache import ENTRY_BYTES, BoundedCache

MOVES: Final = 0.4
"""Probability that a turn is of another topic than the one before."""
VAGUE: Final = 0.7
"""Probability that a turn says nothing of its topic."""
STRANGE: Final = 0.01
"""Probability that such a turn is like nothing that is known."""
NONE: Final = 0.2
"""Probability that a new topic is in no adapter's scope."""
AHEAD: Final = 1.5
"""How much likelier the topic must be than any other: lines that say nothing make none of them likelier."""
KEPT: Final = 8
"""Adapters whose probabilities are remembered."""
_LEAST, _MOST = 0.01, 0.99
"""Of the probability that a turn is in scope: no single turn is proof."""


class Said(NamedTuple):
    """What a turn says by itself."""

    adapter_ids: Sequence[str]
    """Its candidates, and those that were believed before it."""
    log_odds: Sequence[float]
    """How likely each is, as logarithms, up to a constant."""
    vague: float = -LEAST_ODDS
    """How likely it is that it says nothing of any topic, as the logarithm of the odds against the likeliest."""
    in_scope: float | None = None
    """Probability that it is in the scope of the likeliest of them; None where that cannot be told."""


class Belief(NamedTuple):
    """What a conversation was about at its last turn."""

    shares: Mapping[str, float]
    """By adapter id, how likely it is about it; the likeliest `KEPT`."""
    none: float
    """That it is in no adapter's scope."""

    @property
    def settled(self) -> bool:
        """Whether it is likelier about some adapter than about none, and about one clearly more than about any other."""
        first, second = sorted((0.0, 0.0, *self.shares.values()))[:-3:-1]
        return self.none < 0.5 and first >= AHEAD * second


def follow(before: Belief | None, said: Said) -> tuple[list[float], Belief]:
    """Take in a turn: the log odds of each candidate, with what was believed before; and what is believed then.

    Of a first turn, before which nothing is believed (None), any topic was as likely.
    """
    count = len(said.adapter_ids)
    if not count:  # nothing may answer now, and it says nothing
        return [], before or Belief({}, 1.0)
    top = max(said.log_odds)
    own = [math.exp(one - top) for one in said.log_odds]
    told = 0.5 if said.in_scope is None else min(max(said.in_scope, _LEAST), _MOST)
    strange = sum(own) / count * (1 - told) / told
    vague = VAGUE * ((1 - STRANGE) * math.exp(min(max(said.vague, -LEAST_ODDS), LEAST_ODDS)) + STRANGE * strange)
    stays = 0.0 if before is None else 1 - MOVES
    shares, none = ({}, 0.0) if before is None else (before.shares, before.none)
    fresh = (1 - stays) * (1 - NONE) / count
    joint = {
        one: (stays * shares.get(one, 0.0) + fresh) * ((1 - VAGUE) * share + vague)
        for one, share in zip(said.adapter_ids, own, strict=True)
    }
    of_none = (stays * none + (1 - stays) * NONE) * ((1 - VAGUE) * strange + vague)
    return [math.log(one) for one in joint.values()], _normalised(joint, of_none)


def _normalised(joint: Mapping[str, float], none: float) -> Belief:
    total = none + sum(joint.values())
    likeliest = sorted(joint.items(), key=lambda one: (-one[1], one[0]))[:KEPT]
    return Belief({adapter_id: share / total for adapter_id, share in likeliest}, none / total)


class Sessions:
    """Beliefs by session, within a number of bytes and for a time after the last turn. A turn that is sent again is taken in once."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept: BoundedCache[tuple[str, str, str], _Session] = BoundedCache(max_bytes)
        self._ttl_s, self._clock = ttl_s, clock

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def max_bytes(self) -> int:
        """Bytes that may be held; without any, nothing is remembered."""
        return self._kept.max_bytes

    def before(self, key: tuple[str, str, str], turn: bytes) -> Belief | None:
        """What was believed before this turn; None of a session that is not known, or not any more.

        Args:
            key: Tenant, base model and session.
            turn: Its text, or its vector.
        """
        session = self._kept.get(key)
        if session is None:
            return None
        if session.expires_at_s <= self._clock():
            self._kept.drop(key)
            return None
        return session.before if session.turn == _digest(turn) else session.after

    def keep(self, key: tuple[str, str, str], turn: bytes, before: Belief | None, after: Belief) -> None:
        """Remember what is believed after a turn."""
        size = ENTRY_BYTES + 2 * sum(map(len, key)) + 4 * KEPT * 100
        self._kept.put(key, _Session(_digest(turn), before, after, self._clock() + self._ttl_s), size)


class _Session(NamedTuple):
    turn: bytes
    before: Belief | None
    after: Belief
    expires_at_s: float


def _digest(turn: bytes) -> bytes:
    return hashlib.blake2b(turn, digest_size=8).digest()
