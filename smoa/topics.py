"""Make the topics that are not there yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2

from smoa.errors import Unavailable
from smoa.events import ADAPTER_OUTCOMES, DEAD_LETTER, DECISIONS, EXAMPLES, EXECUTORS, LIFECYCLE, OUTCOMES, USAGE


@dataclass(frozen=True)
class Topic:
    """A topic's name, whether only the newest value of a key is kept, and the broker's other settings for it."""

    name: str
    compacted: bool = False
    settings: tuple[tuple[str, str], ...] = ()


TOPICS = (
    *map(Topic, (DECISIONS, OUTCOMES, USAGE, ADAPTER_OUTCOMES, EXAMPLES, DEAD_LETTER)),
    Topic(LIFECYCLE, compacted=True),
    Topic(EXECUTORS, compacted=True),
)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition Kafka's own clients choose for a key."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


async def ensure_topics(bootstrap: str, topics: Sequence[Topic], partitions: int, timeout_s: float = 30.0) -> int:
    """Create what is missing; returns the number of partitions of the first topic.

    Raises:
        Unavailable: no broker answered in time, or the topics differ in partitions (they are joined by partition).
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            counts = await _try(bootstrap, topics, partitions)
        except (KafkaError, OSError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"kafka: no answer from {bootstrap} ({error!r}); check SMOA_KAFKA_BOOTSTRAP", address=bootstrap
                ) from error
            counts = {}
        if counts and all(counts.values()):
            if len(set(counts.values())) > 1:
                raise Unavailable(f"kafka: topics differ in partitions ({counts}); give them all the same number")
            return next(iter(counts.values()))
        if asyncio.get_running_loop().time() > deadline:
            raise Unavailable(f"kafka: topics did not appear at {bootstrap} ({counts})")
        await asyncio.sleep(0.2)  # a broker needs a moment after a topic's first use; there is no event to wait for


def _settings(topic: Topic) -> dict[str, str]:
    return {**({"cleanup.policy": "compact"} if topic.compacted else {}), **dict(topic.settings)}


async def _try(bootstrap: str, topics: Sequence[Topic], partitions: int) -> dict[str, int]:
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    try:  # a broker that is just starting may fail it after it connected
        await client.bootstrap()
        await _create(bootstrap, topics, partitions)
        for topic in topics:
            client.add_topic(topic.name)
        await client.force_metadata_update()
        return {topic.name: len(client.cluster.partitions_for_topic(topic.name) or ()) for topic in topics}
    finally:
        await client.close()


async def _create(bootstrap: str, topics: Sequence[Topic], partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        wanted = [NewTopic(t.name, partitions, 1, topic_configs=_settings(t)) for t in topics]
        for topic in wanted:
            topic.replication_factor = -1  # the broker's default; the client's constructor does not let one ask for it
        response = await admin.create_topics(wanted)
        for _, code, *_ in response.topic_errors:
            if code and for_code(code) is not TopicAlreadyExistsError:
                raise for_code(code)
    finally:
        await admin.close()
