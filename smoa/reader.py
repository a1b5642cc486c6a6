"""Reads what is in a topic now, from its beginning to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from google.protobuf.message import Message

from smoa.errors import InvalidArgument, Unavailable
from smoa.events import decode, unpack
from smoa.outbox import KAFKA_ERRORS

_FETCH_BYTES: Final = 8 * 2**20


async def read_topic(
    bootstrap: str, topic: str, partition: int | None = None, silence_s: float = 15.0
) -> AsyncIterator[ConsumerRecord[bytes, bytes]]:
    """Every record of a topic, or of one of its partitions, that is there when the reading begins; each partition's in order.

    Raises:
        Unavailable: the broker does not answer, or sends nothing for `silence_s`.
    """
    consumer: AIOKafkaConsumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest", max_partition_fetch_bytes=_FETCH_BYTES
    )
    try:
        async with asyncio.timeout(silence_s):
            await consumer.start()
            numbers = {partition} if partition is not None else await _partitions(consumer, topic)
            places = [TopicPartition(topic, number) for number in sorted(numbers)]
            if not places:
                return
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
        while True:
            async with asyncio.timeout(silence_s):
                if not [one for one in places if await consumer.position(one) < ends[one]]:
                    return
                while not (found := await consumer.getmany(timeout_ms=500)):
                    if not [one for one in places if await consumer.position(one) < ends[one]]:  # it ended in what is not for readers
                        return
            for records in found.values():
                for one in records:
                    yield one
    except KAFKA_ERRORS as error:
        raise Unavailable(f"kafka: {topic} does not come from {bootstrap} ({error!r}); check SMOA_KAFKA_BOOTSTRAP") from error
    finally:
        await _stop(consumer)


def messages_of(record: ConsumerRecord[bytes, bytes]) -> list[Message]:
    """The messages of a record's events that can be read; the optimizer puts the others aside."""
    found: list[Message] = []
    with suppress(InvalidArgument):
        for one in unpack(record.topic, record.partition, record.offset, record.key, record.value, record.headers):
            with suppress(InvalidArgument):
                found.append(decode(one.topic, one.value))
    return found


async def read_range(
    bootstrap: str, topic: str, partition: int, first: int, end: int, most: int, silence_s: float = 15.0
) -> list[ConsumerRecord[bytes, bytes]]:
    """The records at [first, end) of a partition, at most `most` of them. Fewer are there only where the log has holes.

    Raises:
        Unavailable: as `read_topic`.
    """
    place = TopicPartition(topic, partition)
    consumer: AIOKafkaConsumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    found: list[ConsumerRecord[bytes, bytes]] = []
    try:
        async with asyncio.timeout(silence_s):
            await consumer.start()
            consumer.assign([place])
            consumer.seek(place, max(first, (await consumer.beginning_offsets([place]))[place]))
        while len(found) < most and await consumer.position(place) < end:
            async with asyncio.timeout(silence_s):
                records = (await consumer.getmany(place, timeout_ms=500, max_records=most)).get(place, [])
            found += [one for one in records if one.offset < end]
    except KAFKA_ERRORS as error:
        raise Unavailable(f"kafka: {topic} does not come from {bootstrap} ({error!r}); check SMOA_KAFKA_BOOTSTRAP") from error
    finally:
        await _stop(consumer)
    return found[:most]


async def _stop(consumer: AIOKafkaConsumer) -> None:
    with suppress(*KAFKA_ERRORS):  # it only reads: what it leaves behind ends with its connection
        async with asyncio.timeout(5):
            await consumer.stop()


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    # Not by subscribing: with a group, that would make the group share out its partitions anew.
    return set((await consumer._client.fetch_all_metadata()).partitions_for_topic(topic) or ())


async def lag_of(bootstrap: str, group: str, topics: Iterable[str], *, by_partition: bool = False) -> dict[str, tuple[int, int]]:
    """(messages there, messages that the group has committed) of each topic, or of each of its partitions (`topic:number`).

    Raises:
        Unavailable: the broker does not answer.
    """
    consumer: AIOKafkaConsumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    found: dict[str, tuple[int, int]] = {}
    try:
        async with asyncio.timeout(15):
            await consumer.start()
            places = {topic: [TopicPartition(topic, one) for one in sorted(await _partitions(consumer, topic))] for topic in topics}
            consumer.assign([place for several in places.values() for place in several])
            for topic, several in places.items():
                ends, firsts = (await consumer.end_offsets(several), await consumer.beginning_offsets(several)) if several else ({}, {})
                sums = [0, 0]
                for place in several:
                    done = await consumer.committed(place) or firsts[place]
                    pair = (ends[place] - firsts[place], max(0, done - firsts[place]))
                    if by_partition:
                        found[f"{topic}:{place.partition}"] = pair
                    sums = [sums[0] + pair[0], sums[1] + pair[1]]
                if not by_partition:
                    found[topic] = (sums[0], sums[1])
    except KAFKA_ERRORS as error:
        raise Unavailable(f"kafka: no answer from {bootstrap} ({error!r}); check SMOA_KAFKA_BOOTSTRAP") from error
    finally:
        await _stop(consumer)
    return found
