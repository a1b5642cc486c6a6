"""Kafka as others use it: topics that are there already, or were made anew, transactions, and events that it never takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from services.optimizer.app import ensure
from services.optimizer.settings import OptimizerSettings
from services.optimizer.stream.changelog import COUNTS, Changelog
from smoa import publisher as publisher_module
from smoa.events import DEAD_LETTER, DECISIONS, EXAMPLES, OUTCOMES, USAGE, Event, event
from smoa.outbox import records_of
from smoa.publisher import EventPublisher
from smoa.spool import Spool
from smoa.topics import Topic, ensure_topics, partition_of
from smoa.v1 import router_pb2
from smoa.v1.events_pb2 import DeadLetter, UsageEvent
from smoa.v1.state_pb2 import AdapterCounts
from tests.kafka_support import HOME, SKIP_REASON, ApacheKafka, broker_port, read_events, until
from tests.stream_support import PARTITIONS, TOPICS, Traffic, Watch, Worker, counted, difference, send

pytestmark = [pytest.mark.timeout(240), pytest.mark.skipif(not HOME, reason=SKIP_REASON)]


@pytest.fixture
async def kafka(tmp_path: Path) -> AsyncIterator[ApacheKafka]:
    """One with nothing of another test in it."""
    made = ApacheKafka(tmp_path / "kafka", broker_port())
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def admin(kafka: ApacheKafka) -> AsyncIterator[AIOKafkaAdminClient]:
    """What an operator works with."""
    made = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await made.start()
    yield made
    await made.close()


async def _partitions(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> list[int]:
    return [len(one["partitions"]) for one in await admin.describe_topics(list(topics))]


async def test_topics_that_are_there_already_get_as_many_partitions_as_the_largest(kafka: ApacheKafka, admin: AIOKafkaAdminClient) -> None:
    topics = [Topic(name) for name in ("a", "b", "c")]
    await admin.create_topics([NewTopic("a", 2, 1), NewTopic("b", 6, 1)])
    assert await ensure_topics(kafka.bootstrap, topics, 3) == 6
    assert await _partitions(admin, "abc") == [6, 6, 6]
    await admin.create_topics([NewTopic("d", 1, 1)])  # as brokers do that make topics by themselves
    assert await ensure_topics(kafka.bootstrap, [Topic("d"), Topic("e")], 3) == 3
    assert await _partitions(admin, "de") == [3, 3]


async def test_what_is_in_a_topic_when_it_grows_is_counted(kafka: ApacheKafka, admin: AIOKafkaAdminClient, tmp_path: Path) -> None:
    """Routers ran before any optimizer, on a broker that makes topics of one partition by itself."""
    await admin.delete_topics(list(TOPICS))
    traffic = Traffic(5, adapters=40)
    first = [*traffic.make(300), *traffic.rest()]

    async def gone() -> bool:
        there = await admin.list_topics()
        return not there & set(TOPICS) if isinstance(there, set) else not set(there) & set(TOPICS)

    await until("the topics being gone", 20, gone)
    await admin.delete_topics([USAGE])
    await admin.create_topics([NewTopic(topic, 1, 1) for topic in (DECISIONS, OUTCOMES, USAGE)])
    used = [event(USAGE, name, UsageEvent(adapter_id=name, tenant="t", tokens=7)) for name in traffic.truth]
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    await producer.start()
    usage = records_of([(one, number) for number, one in enumerate(used, 1)], {USAGE: 1}, "an-executor")
    for one in [*records_of([(one, 0) for one in first], {DECISIONS: 1, OUTCOMES: 1}), *usage]:
        await producer.send_and_wait(one.topic, one.value, one.key, headers=one.headers)
    await producer.stop()
    assert await ensure(OptimizerSettings(kafka_bootstrap=kafka.bootstrap, partitions=PARTITIONS)) == PARTITIONS
    worker, watch = Worker(kafka.bootstrap, tmp_path, "worker"), Watch(kafka.bootstrap)
    try:
        await until("the worker", 60, worker.is_ready)
        await send(kafka.bootstrap, [*traffic.make(300), *traffic.rest()])
        await watch.caught_up(60, worker.keep)
        assert difference(traffic.truth, await counted(kafka.bootstrap)) == (0, 0)

        async def all_used() -> bool:
            """Where the reporter looks for them."""
            kept = [await Changelog(kafka.bootstrap, COUNTS.name).read(number) for number in range(PARTITIONS)]
            tokens = dict[bytes, int]()
            for number, part in enumerate(kept):
                here = [one for one in part if b"/" not in one.name and partition_of(one.name, PARTITIONS) == number]
                tokens |= {one.name: AdapterCounts.FromString(one.value).tenants["t"].tokens for one in here}
            return all(tokens.get(one.key) == 7 for one in used)

        await until("usage being counted where it belongs", 30, all_used)
    finally:
        await watch.close()
        worker.stop()


async def test_what_transactional_producers_commit_is_counted_and_nothing_else(kafka: ApacheKafka, tmp_path: Path) -> None:
    """Transactions leave holes in the log: of their ends, and of what was aborted."""
    traffic, aborted = Traffic(7, adapters=40), Traffic(8, adapters=40)
    worker, watch = Worker(kafka.bootstrap, tmp_path, "worker"), Watch(kafka.bootstrap)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id="another-team")
    try:
        await until("the worker", 60, worker.is_ready)
        first = worker.process.pid
        await producer.start()

        async def transaction(events: Sequence[Event]) -> None:
            records = records_of([(one, 0) for one in events], dict.fromkeys((*TOPICS, EXAMPLES), PARTITIONS))
            sent = [await producer.send(one.topic, one.value, one.key, one.partition, headers=one.headers) for one in records]
            await asyncio.gather(*sent)

        for number in range(40):
            async with producer.transaction():
                await transaction(traffic.make(20))
            if number % 3 == 0:
                await producer.begin_transaction()
                await transaction(aborted.make(20))
                await producer.abort_transaction()
        async with producer.transaction():
            await transaction(traffic.rest())
        await watch.caught_up(60, worker.keep)
        assert difference(traffic.truth, await counted(kafka.bootstrap)) == (0, 0)
        assert worker.process.pid == first, f"it was restarted:\n{worker.log[-6000:]}"
        assert "Kafka's client passed over" not in worker.log, "holes are known from what was fetched; the log is not read for each"
    finally:
        await producer.stop()
        await watch.close()
        worker.stop()


@pytest.mark.parametrize("running", [False, True])
async def test_topics_that_were_made_anew_are_counted_on(
    kafka: ApacheKafka, admin: AIOKafkaAdminClient, tmp_path: Path, running: bool
) -> None:
    """Their offsets begin at 0 again, below what was counted."""
    traffic, topics = Traffic(9, adapters=40), [*TOPICS, EXAMPLES]
    worker, watch = Worker(kafka.bootstrap, tmp_path, "worker"), Watch(kafka.bootstrap)
    try:
        await until("the worker", 60, worker.is_ready)
        await send(kafka.bootstrap, [*traffic.make(600), *traffic.rest()])
        await watch.caught_up(60, worker.keep)
        assert difference(traffic.truth, await counted(kafka.bootstrap)) == (0, 0)
        if not running:
            worker.stop()
        await watch.close()
        await admin.delete_topics(topics)
        await ensure(OptimizerSettings(kafka_bootstrap=kafka.bootstrap, partitions=PARTITIONS))
        await send(kafka.bootstrap, [*traffic.make(200), *traffic.rest()])

        async def all_counted() -> bool:
            worker.keep()
            return difference(traffic.truth, await counted(kafka.bootstrap)) == (0, 0)

        await until("what came since being counted, once", 120, all_counted)
        await send(kafka.bootstrap, [*traffic.make(200), *traffic.rest()])
        await until("what came after it being counted, once", 60, all_counted)
    finally:
        await watch.close()
        worker.stop()


async def test_an_event_that_is_never_taken_goes_to_the_dead_letters_and_those_behind_it_go_on(
    kafka: ApacheKafka, admin: AIOKafkaAdminClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "REFUSED_TIMES", 3)
    await admin.delete_topics([DECISIONS])

    async def gone() -> bool:
        return DECISIONS not in await admin.list_topics()

    await until("the topic being gone", 20, gone)
    await admin.create_topics([NewTopic(DECISIONS, PARTITIONS, 1, topic_configs={"max.message.bytes": "5000"})])
    publisher = EventPublisher(kafka.bootstrap, Spool(tmp_path / "spool", 2**20))
    await publisher.start()
    try:
        sizes = {"small": 10, "large": 20_000, "after": 10}
        publisher.publish([event(DECISIONS, one, router_pb2.Decision(decision_id=one, task_id="x" * size)) for one, size in sizes.items()])
        assert await publisher.drain(30)
        assert publisher.put_aside == 1
        assert {one.key for one in await read_events(kafka.bootstrap, DECISIONS)} == {b"small", b"after"}
        (dead,) = [DeadLetter.FromString(one.value) for one in await read_events(kafka.bootstrap, DEAD_LETTER)]
        assert (dead.topic, dead.key, len(dead.value) > 20_000) == (DECISIONS, b"large", True)
        assert "MessageSizeTooLarge" in dead.reason
    finally:
        await publisher.stop()
