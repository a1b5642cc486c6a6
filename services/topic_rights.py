"""Which service may do what with which topic: for Kafka's access control lists. Pure.

Rights are by service, not by tenant: whoever may write a topic may say anything there of anybody. Callers get none, but for outcomes, and
only where they do not go through the router.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.optimizer.settings import APP_ID
from services.optimizer.stream.changelog import COUNTS, JOINS
from smoa.events import ADAPTER_OUTCOMES, AUDIT, CHANGES, DEAD_LETTER, DECISIONS, EXAMPLES, EXECUTORS, LIFECYCLE, OUTCOMES, USAGE

_COUNTED: Final = (DECISIONS, OUTCOMES, USAGE, ADAPTER_OUTCOMES, EXAMPLES)
_TOLD: Final = (AUDIT, CHANGES)
_OWN: Final = (JOINS.name, COUNTS.name)


@dataclass(frozen=True)
class TopicRights:
    """What one user of Kafka needs. Reading and writing include being told that a topic is there; `sees` is that alone."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    sees: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """Consumer groups that it is in."""


RIGHTS: Final[dict[str, TopicRights]] = {
    "router": TopicRights(reads=(LIFECYCLE, ADAPTER_OUTCOMES, EXECUTORS), writes=(DECISIONS, OUTCOMES, LIFECYCLE, DEAD_LETTER, *_TOLD)),
    "gateway": TopicRights(writes=(USAGE, DEAD_LETTER)),
    "executor": TopicRights(writes=(USAGE, EXECUTORS, DEAD_LETTER, AUDIT)),
    # What it reads it also writes: what came to another partition, as topics grew, is sent again to its own.
    "optimizer": TopicRights(
        reads=(*_COUNTED, *_OWN), writes=(*_COUNTED, DEAD_LETTER, *_OWN), sees=(LIFECYCLE, EXECUTORS, *_TOLD), groups=(APP_ID,)
    ),
    "learner": TopicRights(reads=(DECISIONS, OUTCOMES, LIFECYCLE), writes=(LIFECYCLE,)),
    "operator": TopicRights(
        reads=(*_COUNTED, LIFECYCLE, EXECUTORS, DEAD_LETTER, *_TOLD, *_OWN),
        writes=(*_COUNTED, LIFECYCLE, DEAD_LETTER),
        groups=(APP_ID,),
    ),
    "reporter": TopicRights(writes=(OUTCOMES,)),
}
"""By who it is: the services; `smoa router learn`; who runs `smoa optimizer` and `smoa dlq`; and a caller that sends outcomes itself."""
