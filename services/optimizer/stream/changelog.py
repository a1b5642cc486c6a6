"""A table's changelog: one Kafka topic, of which each partition is its owner's memory.

Every key ends in a stamp: the generation of the consumer group in which it was written, when its writer started (one that takes its
predecessor's place by its instance id has the same generation), and how often its writer has had to begin again. So a worker that was
paused, was replaced and wakes up writes beside its successor's values, never over them, and whoever reads takes the newest stamp:
compaction, which keeps the last record of a key, cannot get this wrong.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from smoa.kafka import Kafka
from smoa.outbox import Record
from smoa.reader import consumer_of, partitions_of, read_topic
from smoa.topics import Topic, partition_of

_log = logging.getLogger(__name__)
_SEPARATOR: Final = b"@"
_STAMP: Final = re.compile(rb"([0-9]{1,18})\.([0-9]{1,18})\.([0-9]{1,18})")
_STARTED_MS: Final = time.time_ns() // 1_000_000

_SMALL: Final = (
    ("segment.bytes", str(32 * 2**20)),
    ("segment.ms", "600000"),
    ("min.cleanable.dirty.ratio", "0.2"),
    ("delete.retention.ms", "600000"),
)
"""By default a broker compacts nothing until there is a gigabyte, and a worker that starts would read all of it."""
JOINS = Topic("smoa-optimizer-joins-changelog", compacted=True, settings=_SMALL)
COUNTS = Topic("smoa-optimizer-counts-changelog", compacted=True, settings=_SMALL)


class Stamp(NamedTuple):
    """Who wrote a value; the later one wins."""

    generation: int
    started_ms: int
    attempt: int
    """What was sent and not acknowledged may arrive after what was sent again."""


def stamp_of(generation: int, attempt: int) -> Stamp:
    """What this process writes under."""
    return Stamp(generation, _STARTED_MS, attempt)


class Kept(NamedTuple):
    """One value of a changelog."""

    name: bytes
    stamp: Stamp
    value: bytes


class Changelog:
    """Reads whole partitions, and names records for writing."""

    def __init__(self, kafka: Kafka | str, topic: str, check: Callable[[Kept], None] = lambda _: None) -> None:
        """`check` raises DecodeError or ValueError for a record that is none."""
        self._kafka, self.topic, self._check = kafka, topic, check

    def record(self, partition: int, name: bytes, stamp: Stamp, value: bytes | None) -> Record:
        """What to send so that `name` has this value, or none, under this stamp."""
        return Record(self.topic, partition, b"%b%b%d.%d.%d" % (name, _SEPARATOR, *stamp), value)

    async def read_around(self, key: str) -> list[Kept]:
        """Every value of the partition that a key's stands in; none while there is no such topic.

        Raises:
            Unavailable: as `read`.
        """
        async with consumer_of(self._kafka) as consumer:
            partitions = len(await partitions_of(consumer, self.topic))
        return await self.read(partition_of(key.encode(), partitions)) if partitions else []

    async def read(self, partition: int, goes_on: Callable[[], None] = lambda: None) -> list[Kept]:
        """Every value of the partition, in the order of their stamps; `goes_on` is called as they come. What is none is left where it
        is: a record that somebody else has put there must not stop all that stands on the others.

        Raises:
            Unavailable: the broker does not answer, or sends nothing for long.
        """
        found: dict[bytes, bytes] = {}
        async for one in read_topic(self._kafka, self.topic, partition):
            goes_on()
            if one.key is not None and one.value is not None:
                found[one.key] = one.value
            elif one.key is not None:
                found.pop(one.key, None)
        return await asyncio.to_thread(self._kept, partition, found)

    def _kept(self, partition: int, found: Mapping[bytes, bytes]) -> list[Kept]:
        kept = list[Kept]()
        for key, value in found.items():
            try:
                one = kept_of(key, value)
                self._check(one)
            except (ValueError, DecodeError) as error:
                said = "%s %d: the record of key %r is none that can be read (%s); it is left where it is, delete it there"
                _log.error(said, self.topic, partition, key[:200], error)
            else:
                kept.append(one)
        return sorted(kept, key=lambda one: (one.stamp, one.name))


def kept_of(key: bytes, value: bytes) -> Kept:
    """A record of a changelog.

    Raises:
        ValueError: the key is none that a worker writes.
    """
    name, _, stamp = key.rpartition(_SEPARATOR)
    found = _STAMP.fullmatch(stamp)
    if found is None or not name:
        raise ValueError("its key has no stamp")
    return Kept(name, Stamp(*map(int, found.groups())), value)
