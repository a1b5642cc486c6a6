"""Events that cannot be used, or that no broker takes: kept with the reason, so that `smoa dlq` can show them and send them again."""

from __future__ import annotations

from typing import Final

from smoa.events import Event, Received
from smoa.v1.events_pb2 import DeadLetter

MAX_KEPT_BYTES: Final = 900_000
SHORT_BYTES: Final = 1000
"""What is kept of an event whose letter is too large for the broker's topic."""


def letter(one: Received, reason: str, dead_at_us: int) -> DeadLetter:
    """What is kept of an event that cannot be used: all of it, unless it would not fit into a message with what is said of it."""
    dead = DeadLetter(
        topic=one.topic,
        partition=one.partition,
        offset=one.offset,
        index=one.place,
        key=one.key,
        value=one.value,
        producer_id=one.producer_id,
        sequence=one.sequence,
        reason=reason,
        dead_at_us=dead_at_us,
    )
    _cut(dead, MAX_KEPT_BYTES)
    return dead


def shortened(dead: Event) -> Event:
    """A dead letter that fits into a topic with a small limit."""
    body = DeadLetter.FromString(dead.value)
    body.reason = body.reason[:500]
    _cut(body, SHORT_BYTES)
    return dead._replace(value=body.SerializeToString())


def _cut(dead: DeadLetter, most_bytes: int) -> None:
    if len(dead.value) > most_bytes:
        dead.reason = f"{dead.reason} (its first {most_bytes:,} of {len(dead.value):,} bytes are kept)"
        dead.value = dead.value[:most_bytes]
