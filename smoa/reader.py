"""Reads what is in a topic now, from its beginning to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from google.protobuf.message import Message

import smoa.coordinator  # noqa: F401  for its effect
from smoa.errors import InvalidArgument, Unavailable
from smoa.events import decode, unpack
from smoa.kafka import Kafka
from smoa.outbox import KAFKA_ERRORS, remedy_of
from smoa.tasks import end

FETCH_BYTES: Final = 8 * 2**20
SILENCE_S: Final = 15.0
FETCH_WAIT_MS: Final = 50
"""A broker answers what else is asked, and a consumer ends, only after the fetch that waits for more."""


@asynccontextmanager
async def consumer_of(
    kafka: Kafka | str, *, group: str | None = None, latest: bool = False, start_s: float = SILENCE_S
) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without partitions that commits nothing by itself.

    Raises:
        Unavailable: the broker does not answer, here or to what the block asks.
    """
    kafka = Kafka.at(kafka)
    consumer: AIOKafkaConsumer = AIOKafkaConsumer(
        **kafka.options(),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="latest" if latest else "earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_wait_ms=FETCH_WAIT_MS,
    )
    try:
        async with asyncio.timeout(start_s):
            await consumer.start()
        yield consumer
    except KAFKA_ERRORS as error:
        raise Unavailable(f"kafka: {kafka} does not answer ({error!r}); {remedy_of(error)}", address=kafka.address) from error
    finally:
        await let_go(consumer)


async def let_go(consumer: AIOKafkaConsumer, within_s: float = 5.0) -> None:
    """End a consumer that only reads, whether or not the broker hears its goodbye.

    Its `stop` cancels tasks of its own and awaits them: where one had not begun yet, the cancellation comes out of it as if its caller had
    been cancelled, and the connections stay open (aiokafka's issue 647). So it runs in a task of its own, and they are closed after it.
    """
    stopping = asyncio.create_task(_stop(consumer))
    try:
        await asyncio.wait({stopping}, timeout=within_s)
    finally:
        await end(stopping)
    if not stopping.cancelled():
        with suppress(*KAFKA_ERRORS):
            stopping.result()


async def _stop(consumer: AIOKafkaConsumer) -> None:
    try:
        await consumer.stop()
    finally:
        await consumer._client.close()


async def read_topic(
    kafka: Kafka | str, topic: str, partition: int | None = None, silence_s: float = SILENCE_S, since_ms: int | None = None
) -> AsyncIterator[ConsumerRecord[bytes, bytes]]:
    """Every record of a topic, or of one of its partitions, that is there when the reading begins; each partition's in order.

    With `since_ms`, from the first that was written then or later.

    Raises:
        Unavailable: the broker does not answer, or sends nothing for `silence_s`.
    """
    async with consumer_of(kafka, start_s=silence_s) as consumer:
        async with asyncio.timeout(silence_s):
            numbers = {partition} if partition is not None else await partitions_of(consumer, topic)
            places = [TopicPartition(topic, number) for number in sorted(numbers)]
            if not places:
                return
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            if since_ms is not None:
                firsts = await consumer.offsets_for_times(dict.fromkeys(places, since_ms))
                for place in places:
                    consumer.seek(place, found.offset if (found := firsts.get(place)) is not None else ends[place])
        while True:
            async with asyncio.timeout(silence_s):
                if not [one for one in places if await consumer.position(one) < ends[one]]:
                    return
                while not (records_of := await consumer.getmany(timeout_ms=500)):
                    if not [one for one in places if await consumer.position(one) < ends[one]]:  # it ended in what is not for readers
                        return
            for records in records_of.values():
                for one in records:
                    yield one


def messages_of(record: ConsumerRecord[bytes, bytes]) -> list[Message]:
    """The messages of a record's events that can be read; the optimizer puts the others aside."""
    found: list[Message] = []
    with suppress(InvalidArgument):
        for one in unpack(record.topic, record.partition, record.offset, record.key, record.value, record.headers):
            with suppress(InvalidArgument):
                found.append(decode(one.topic, one.value))
    return found


async def read_range(
    kafka: Kafka | str, topic: str, partition: int, first: int, end: int, most: int, silence_s: float = SILENCE_S
) -> list[ConsumerRecord[bytes, bytes]]:
    """The records at [first, end) of a partition, at most `most` of them. Fewer are there only where the log has holes.

    Raises:
        Unavailable: as `read_topic`.
    """
    place = TopicPartition(topic, partition)
    found: list[ConsumerRecord[bytes, bytes]] = []
    async with consumer_of(kafka) as consumer:
        async with asyncio.timeout(SILENCE_S):
            consumer.assign([place])
            consumer.seek(place, max(first, (await consumer.beginning_offsets([place]))[place]))
        while len(found) < most and await consumer.position(place) < end:
            records: list[ConsumerRecord[bytes, bytes]] = []
            async with asyncio.timeout(silence_s):
                while not records and await consumer.position(place) < end:
                    records = (await consumer.getmany(place, timeout_ms=500, max_records=most)).get(place, [])
            found += [one for one in records if one.offset < end]
    return found[:most]


async def read_at(
    kafka: Kafka | str, where: Mapping[TopicPartition, int], silence_s: float = SILENCE_S
) -> dict[TopicPartition, ConsumerRecord[bytes, bytes]]:
    """The first record of each partition that stands at its offset or after it, where there is one.

    Raises:
        Unavailable: as `read_topic`.
    """
    found: dict[TopicPartition, ConsumerRecord[bytes, bytes]] = {}
    if not where:
        return found
    async with consumer_of(kafka) as consumer, asyncio.timeout(silence_s):
        consumer.assign(list(where))
        firsts, ends = await consumer.beginning_offsets(list(where)), await consumer.end_offsets(list(where))
        for place, offset in where.items():
            consumer.seek(place, max(offset, firsts[place]))
        left = {place for place, offset in where.items() if max(offset, firsts[place]) < ends[place]}
        while left:
            for place, records in (await consumer.getmany(*left, timeout_ms=500)).items():
                found.setdefault(place, records[0])
            left = {place for place in left - found.keys() if await consumer.position(place) < ends[place]}
    return found


async def first_after(kafka: Kafka | str, where: TopicPartition, written_ms: int) -> int:
    """Offset of a partition's first message that was written after a time; its end, if there is none.

    Raises:
        Unavailable: as `read_topic`.
    """
    async with consumer_of(kafka) as consumer, asyncio.timeout(SILENCE_S):
        consumer.assign([where])
        found = (await consumer.offsets_for_times({where: written_ms + 1})).get(where)
        return int(found.offset) if found is not None else int((await consumer.end_offsets([where]))[where])


async def behind_s(kafka: Kafka | str, group: str, topics: Iterable[str]) -> float:
    """How long ago the oldest message was written that a group has not done; 0 if it has done all.

    Raises:
        Unavailable: the broker does not answer.
    """
    async with consumer_of(kafka, group=group) as consumer, asyncio.timeout(SILENCE_S):
        waiting = {place: done for place, (_, done, end) in (await _progress(consumer, topics)).items() if done < end}
    written_ms = [one.timestamp for one in (await read_at(kafka, waiting)).values()]
    return max(0.0, time.time() - min(written_ms) / 1000) if written_ms else 0.0


async def partitions_of(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    """Numbers of a topic's partitions."""
    # Not by subscribing: with a group, that would make the group share out its partitions anew.
    return set((await consumer._client.fetch_all_metadata()).partitions_for_topic(topic) or ())


async def lag_of(kafka: Kafka | str, group: str, topics: Iterable[str], *, by_partition: bool = False) -> dict[str, tuple[int, int]]:
    """(messages there, messages that the group has committed) of each topic, or of each of its partitions (`topic:number`).

    Raises:
        Unavailable: the broker does not answer.
    """
    topics = list(topics)
    async with consumer_of(kafka, group=group) as consumer, asyncio.timeout(SILENCE_S):
        progress = await _progress(consumer, topics)
    pairs = {place: (end - first, done - first) for place, (first, done, end) in progress.items()}
    if by_partition:
        return {f"{place.topic}:{place.partition}": pair for place, pair in pairs.items()}
    sums = dict.fromkeys(topics, (0, 0))
    for place, (there, done) in pairs.items():
        sums[place.topic] = (sums[place.topic][0] + there, sums[place.topic][1] + done)
    return sums


async def _progress(consumer: AIOKafkaConsumer, topics: Iterable[str]) -> dict[TopicPartition, tuple[int, int, int]]:
    """The first offset that is there, the next one that the consumer's group has not done, and the end, of each partition of the topics."""
    places = [TopicPartition(topic, one) for topic in topics for one in sorted(await partitions_of(consumer, topic))]
    if not places:
        return {}
    firsts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    committed = await consumer._coordinator.fetch_committed_offsets(places)  # `committed` asks for one at a time
    done = {place: committed[place].offset if place in committed else 0 for place in places}
    return {place: (firsts[place], max(done[place], firsts[place]), ends[place]) for place in places}
