"""One idempotent producer that sends many records at a time and can begin again after any failure."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownError,
    UnsupportedCodecError,
    UnsupportedForMessageFormatError,
)
from aiokafka.producer.message_accumulator import BatchBuilder

from smoa.errors import Unavailable
from smoa.events import MAX_PACKED, PACKED, TYPES, Event, headers, pack
from smoa.kafka import Kafka
from smoa.topics import partition_of
from smoa.v1 import events_pb2

KAFKA_ERRORS: Final = (KafkaError, OSError, asyncio.TimeoutError)
_REFUSALS: Final = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    InvalidTimestampError,
    UnsupportedForMessageFormatError,
    PolicyViolationError,
    UnknownError,  # of codes that the client does not know, as a record that a broker finds invalid
)
_NOT_ALLOWED: Final = (
    TopicAuthorizationFailedError,
    GroupAuthorizationFailedError,
    ClusterAuthorizationFailedError,
    SaslAuthenticationFailed,
)
GOODBYE_S: Final = 3.0
BATCH_BYTES: Final = 256 * 1024
place_of = lru_cache(16_384)(partition_of)
"""`partition_of`, kept: in Python, a key's hash takes longer than all else that is done with its event."""
_BATCH_NAME: Final = events_pb2.EventBatch.DESCRIPTOR.full_name


class Refused(Unavailable):
    """A broker answers, and does not take these records: they are too large for it, or against its rules."""


class Record(NamedTuple):
    """One Kafka record. A value of None deletes the key from a compacted topic."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Outbox:
    """Owns the producer. What was sent when it failed may have arrived or not: the caller sends it again, so that it can be told."""

    def __init__(self, kafka: Kafka | str, timeout_s: float = 10.0) -> None:
        self._kafka, self._timeout_s = Kafka.at(kafka), timeout_s
        self._producer: AIOKafkaProducer | None = None

    async def partitions(self, topic: str) -> int:
        """How many the topic has.

        Raises:
            Unavailable: no broker answers.
        """
        try:
            async with asyncio.timeout(self._timeout_s):  # not wait_for, which loses a cancellation that comes as its work ends
                return len(await (await self._started()).partitions_for(topic))
        except KAFKA_ERRORS as error:
            await self.close()
            raise Unavailable(
                f"kafka: no answer from {self._kafka} ({error!r}); {remedy_of(error)}",
                address=self._kafka.address,
            ) from error

    async def send(self, records: Iterable[Record]) -> None:
        """Send, and wait until Kafka has them all; those of one partition arrive in their order.

        Raises:
            Unavailable: not within the time allowed.
            Refused: one of them is not taken, however often it is sent.
        """
        try:
            async with asyncio.timeout(self._timeout_s):  # an idempotent producer by itself tries for ever
                producer = await self._started()
                packed = self._batches(producer, records)
                sends = [
                    await producer.send_batch(one, topic, partition=number) for (topic, number), ones in packed.items() for one in ones
                ]
                await asyncio.gather(*sends)
        except KAFKA_ERRORS as error:
            await self.close()
            kind = Refused if isinstance(error, _REFUSALS) else Unavailable
            raise kind(
                f"kafka: {self._kafka} does not take records ({error!r}); {remedy_of(error)}",
                address=self._kafka.address,
            ) from error

    async def close(self) -> None:
        """Let the producer go; the next call makes another.

        It is ended even if it cannot say goodbye: going on by itself, it would send what the next one has sent again since.
        """
        producer, self._producer = self._producer, None
        if producer is None:
            return
        with suppress(*KAFKA_ERRORS):
            async with asyncio.timeout(GOODBYE_S):
                await producer.stop()
        sender = producer._sender
        if sender is not None and sender.sender_task is not None and not sender.sender_task.done():
            sender.sender_task.cancel()
            await asyncio.wait([sender.sender_task], timeout=GOODBYE_S)
            with suppress(*KAFKA_ERRORS):
                async with asyncio.timeout(GOODBYE_S):
                    await producer.client.close()

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                **self._kafka.options(),
                acks="all",
                enable_idempotence=True,
                request_timeout_ms=int(self._timeout_s * 1000),
                linger_ms=5,
                max_batch_size=BATCH_BYTES,
            )
            await self._producer.start()
        return self._producer

    def _batches(self, producer: AIOKafkaProducer, records: Iterable[Record]) -> dict[tuple[str, int], list[BatchBuilder]]:
        """The client's batches by topic and partition, in order. Packed here: `send` takes 80 us a record, most of it not packing."""
        packed: defaultdict[tuple[str, int], list[BatchBuilder]] = defaultdict(list)
        for one in records:
            batches = packed[one.topic, one.partition]
            named = list(one.headers)
            while not batches or batches[-1].append(timestamp=None, key=one.key, value=one.value, headers=named) is None:
                batches.append(producer.create_batch())  # the last one is full; an empty one takes any record
        return packed


def remedy_of(error: BaseException) -> str:
    """What to do about an error of Kafka's client."""
    if isinstance(error, _NOT_ALLOWED):
        return "allow this client to use the topic and the group, or correct its credentials"
    if isinstance(error, UnsupportedCodecError):
        return "install the codec's library (cramjam), or have the producer use another compression"
    return "see what the broker asks of a record" if isinstance(error, _REFUSALS) else "check SMOA_KAFKA_BOOTSTRAP"


async def send_once(kafka: Kafka | str, events: Iterable[Event], timeout_s: float = 30.0) -> None:
    """Send a few events, for commands.

    Raises:
        Unavailable: Kafka does not take them.
    """
    outbox, listed = Outbox(kafka, timeout_s), list(events)
    try:
        partitions = {topic: await outbox.partitions(topic) for topic in {one.topic for one in listed}}
        await outbox.send(records_of([(one, 0) for one in listed], partitions))
    finally:
        await outbox.close()


def records_of(
    events: Iterable[tuple[Event, int]], partitions: dict[str, int], producer_id: str = "", batch_bytes: int = BATCH_BYTES
) -> list[Record]:
    """Records of (event, sequence), packed where the topic allows it; the events of one partition keep their order."""
    grouped: defaultdict[tuple[str, int], list[tuple[bytes, bytes, int]]] = defaultdict(list)
    for one, sequence in events:
        grouped[one.topic, place_of(one.key, partitions[one.topic])].append((one.key, one.value, sequence))
    records = []
    for (topic, partition), group in grouped.items():
        for chunk in _chunks(group, batch_bytes) if topic in PACKED else ([one] for one in group):
            key, value, sequence = chunk[0]
            if len(chunk) == 1:
                named = headers(TYPES[topic].DESCRIPTOR.full_name, producer_id, sequence)
                records.append(Record(topic, partition, key, value, named))
            else:  # keyed by its first event, so that tools that place by key agree
                records.append(Record(topic, partition, key, pack(chunk), headers(_BATCH_NAME, producer_id, sequence)))
    return records


def _chunks(group: Sequence[tuple[bytes, bytes, int]], most_bytes: int) -> Iterable[Sequence[tuple[bytes, bytes, int]]]:
    chunk: list[tuple[bytes, bytes, int]] = []
    size = 0
    for one in group:
        cost = len(one[0]) + len(one[1]) + 20
        if chunk and (size + cost > most_bytes or len(chunk) == MAX_PACKED):
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += cost
    if chunk:
        yield chunk
