"""Make the topics that are not there yet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import ClusterAuthorizationFailedError, KafkaError, TopicAlreadyExistsError, TopicAuthorizationFailedError, for_code
from aiokafka.partitioner import murmur2

from smoa.errors import Unavailable
from smoa.events import ADAPTER_OUTCOMES, AUDIT, CHANGES, DEAD_LETTER, DECISIONS, EXAMPLES, EXECUTORS, LIFECYCLE, OUTCOMES, USAGE
from smoa.kafka import Kafka

_log = logging.getLogger(__name__)
_NOT_ALLOWED: Final = (TopicAuthorizationFailedError, ClusterAuthorizationFailedError)


@dataclass(frozen=True)
class Topic:
    """A topic's name, whether only the newest value of a key is kept, and the broker's other settings for it."""

    name: str
    compacted: bool = False
    settings: tuple[tuple[str, str], ...] = ()


TOPICS = (
    *map(Topic, (DECISIONS, OUTCOMES, USAGE, ADAPTER_OUTCOMES, EXAMPLES, DEAD_LETTER, AUDIT, CHANGES)),
    Topic(LIFECYCLE, compacted=True),
    Topic(EXECUTORS, compacted=True),
)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition Kafka's own clients choose for a key."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


async def ensure_topics(kafka: Kafka | str, topics: Sequence[Topic], partitions: int, timeout_s: float = 30.0) -> int:
    """Make what is missing; returns how many partitions they have, all the same, for they are joined by partition.

    Where some are there, they decide: the others are made, or grow, to as many as the largest has. But a topic of one partition decides
    nothing, for a broker that makes topics by itself makes such ones. What is in a topic that grows, and was not read, is sent again to
    its right partition; an outcome whose decision was read before is put aside.

    Raises:
        Unavailable: no broker answered in time, or it does not let this client make or grow topics.
    """
    kafka = Kafka.at(kafka)
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        counts: dict[str, int] = {}
        try:
            counts = await _try(kafka, topics, partitions)
        except _NOT_ALLOWED as error:
            raise Unavailable(
                f"kafka: this client may not make or grow topics at {kafka} ({error!r}); make them all with the same number of "
                f"partitions ({', '.join(one.name for one in topics)}), or allow it",
                address=kafka.address,
            ) from error
        except (KafkaError, OSError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"kafka: no answer from {kafka} ({error!r}); check SMOA_KAFKA_BOOTSTRAP", address=kafka.address
                ) from error
        if counts and all(counts.values()) and len(set(counts.values())) == 1:
            return next(iter(counts.values()))
        if asyncio.get_running_loop().time() > deadline:
            raise Unavailable(f"kafka: topics did not appear at {kafka}, each with as many partitions ({counts})", address=kafka.address)
        await asyncio.sleep(0.2)  # a broker needs a moment after a topic's first use; there is no event to wait for


def _settings(topic: Topic) -> dict[str, str]:
    return {**({"cleanup.policy": "compact"} if topic.compacted else {}), **dict(topic.settings)}


async def _try(kafka: Kafka, topics: Sequence[Topic], partitions: int) -> dict[str, int]:
    """Make and grow what has to be; returns how many partitions each has after that, as far as it shows already."""
    client, admin = AIOKafkaClient(**kafka.options()), AIOKafkaAdminClient(**kafka.options())
    try:  # a broker that is just starting may fail it after it connected
        await client.bootstrap()
        there = (await client.fetch_all_metadata()).partitions_for_topic  # asking for one by its name would have some brokers make it
        counts = {topic.name: len(there(topic.name) or ()) for topic in topics}
        wanted = max((count for count in counts.values() if count > 1), default=partitions)
        missing, small = [topic for topic in topics if not counts[topic.name]], {name: n for name, n in counts.items() if 0 < n < wanted}
        if missing or small:
            await admin.start()
        if missing:
            await _create(admin, missing, wanted)
        for name, count in small.items():
            _log.warning("topic %s grows from %d to %d partitions, as many as the others have", name, count, wanted)
            await admin.create_partitions({name: NewPartitions(wanted)})
        return counts
    finally:
        await admin.close()
        await client.close()


async def _create(admin: AIOKafkaAdminClient, topics: Sequence[Topic], partitions: int) -> None:
    wanted = [NewTopic(t.name, partitions, 1, topic_configs=_settings(t)) for t in topics]
    for topic in wanted:
        topic.replication_factor = -1  # the broker's default; the client's constructor does not let one ask for it
    response = await admin.create_topics(wanted)
    for _, code, *_ in response.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:
            raise for_code(code)
