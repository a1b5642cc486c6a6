"""Reads what is in a topic now, from its beginning to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from smoa.errors import Unavailable
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
        await consumer.stop()


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    consumer.subscribe([topic])
    await consumer._client.force_metadata_update()
    numbers = set(consumer.partitions_for_topic(topic) or ())
    consumer.unsubscribe()
    return numbers
