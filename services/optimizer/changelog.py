"""A table's changelog: one Kafka topic, of which each partition is its owner's memory.

Every key ends in a stamp: the generation of the consumer group in which it was written, and when its writer started (one that takes its
predecessor's place by its instance id has the same generation). So a worker that was paused, was replaced and wakes up writes beside its
successor's values, never over them, and whoever reads takes the newest stamp: compaction, which keeps the last record of a key, cannot get
this wrong.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from smoa.errors import Unavailable
from smoa.outbox import KAFKA_ERRORS, Record

_SEPARATOR: Final = b"@"
_STARTED_MS: Final = time.time_ns() // 1_000_000


class Stamp(NamedTuple):
    """Who wrote a value; the later one wins."""

    generation: int
    started_ms: int


def stamp_of(generation: int) -> Stamp:
    """What this process writes under."""
    return Stamp(generation, _STARTED_MS)


class Kept(NamedTuple):
    """One value of a changelog."""

    name: bytes
    stamp: Stamp
    value: bytes


class Changelog:
    """Reads whole partitions, and names records for writing."""

    def __init__(self, bootstrap: str, topic: str, idle_timeout_s: float = 15.0) -> None:
        self._bootstrap, self.topic, self._idle_timeout_s = bootstrap, topic, idle_timeout_s

    def record(self, partition: int, name: bytes, stamp: Stamp, value: bytes | None) -> Record:
        """What to send so that `name` has this value, or none, under this stamp."""
        return Record(self.topic, partition, b"%b%b%d.%d" % (name, _SEPARATOR, *stamp), value)

    async def read(self, partition: int) -> list[Kept]:
        """Every value of the partition, in the order of their stamps.

        Raises:
            Unavailable: the broker does not answer, or sends nothing for long.
        """
        where = TopicPartition(self.topic, partition)
        consumer: AIOKafkaConsumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap, enable_auto_commit=False, auto_offset_reset="earliest", max_partition_fetch_bytes=8 * 2**20
        )
        found: dict[bytes, bytes] = {}
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                await consumer.start()
                consumer.assign([where])
                end = (await consumer.end_offsets([where]))[where]
                position = await consumer.position(where)
            while position < end:
                async with asyncio.timeout(self._idle_timeout_s):
                    while not (records := (await consumer.getmany(where, timeout_ms=500)).get(where)):
                        if await consumer.position(where) >= end:  # it ended in records that are not for readers
                            break
                    position = await consumer.position(where)
                for one in records or ():
                    if one.key is not None:
                        if one.value is not None:
                            found[one.key] = one.value
                        else:
                            found.pop(one.key, None)
        except KAFKA_ERRORS as error:
            raise Unavailable(f"kafka: {self.topic} does not come from {self._bootstrap} ({error!r})") from error
        finally:
            await consumer.stop()
        kept = []
        for key, value in found.items():
            name, _, stamp = key.rpartition(_SEPARATOR)
            generation, _, started_ms = stamp.partition(b".")
            kept.append(Kept(name, Stamp(int(generation), int(started_ms)), value))
        return sorted(kept, key=lambda one: (one.stamp, one.name))
