"""One suite for the embedded broker and a real Apache Kafka: what SMoA's producers, readers and groups rely on."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import CommitFailedError, OffsetOutOfRangeError

from smoa.outbox import Outbox, Record
from smoa.reader import read_topic
from smoa.topics import Topic, ensure_topics
from tests.kafka_support import HOME, SKIP_REASON, ApacheKafka, EmbeddedBroker, broker_port, read_all, until


@dataclass
class World:
    """A broker that the tests share, and a topic and a group of the test's own."""

    broker: ApacheKafka | EmbeddedBroker
    name: str = ""

    @property
    def bootstrap(self) -> str:
        return self.broker.bootstrap

    def at(self, partition: int) -> TopicPartition:
        return TopicPartition(self.name, partition)

    async def kill_and_start(self) -> None:
        self.broker.kill()
        await self.broker.start()


@pytest.fixture(scope="module", params=["embedded", "apache"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if request.param == "apache" and not HOME:
        pytest.skip(SKIP_REASON)
    folder = tmp_path_factory.mktemp(request.param)
    found = World(EmbeddedBroker(folder) if request.param == "embedded" else ApacheKafka(folder, broker_port()))
    asyncio.run(found.broker.start())
    yield found
    asyncio.run(found.broker.stop())


@pytest.fixture
async def broker(shared: World, request: pytest.FixtureRequest) -> World:
    world = World(shared.broker, "".join(one if one.isalnum() else "-" for one in request.node.name))
    await ensure_topics(world.bootstrap, [Topic(world.name)], 4)
    return world


@asynccontextmanager
async def producer_of(broker: World) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, enable_idempotence=True, request_timeout_ms=5000)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


def consumer_of(broker: World, name: str | None = None) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        broker.name,
        bootstrap_servers=broker.bootstrap,
        group_id=broker.name,
        group_instance_id=name,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=6000,
        heartbeat_interval_ms=200,
        fetch_max_wait_ms=50,
    )


@asynccontextmanager
async def member_of(broker: World, name: str | None = None) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = consumer_of(broker, name)
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def shared_out(consumers: Sequence[AIOKafkaConsumer]) -> None:
    """Wait until the four partitions are shared among the consumers."""

    async def done() -> bool:
        await asyncio.gather(*(one.getmany(timeout_ms=50) for one in consumers))
        owned = [tp.partition for one in consumers for tp in one.assignment()]
        return sorted(owned) == [0, 1, 2, 3] and all(one.assignment() for one in consumers)

    await until("sharing out", 20, done)


async def test_what_was_acknowledged_survives_kill_9_at_its_offset(broker: World) -> None:
    async with producer_of(broker) as producer:
        sent = [await producer.send_and_wait(broker.name, b"v%d" % i, key=b"k", partition=1) for i in range(20)]
        await broker.kill_and_start()
        after = await producer.send_and_wait(broker.name, b"after", key=b"k", partition=1)
    found = [one async for one in read_topic(broker.bootstrap, broker.name, 1)]
    assert [(one.offset, one.value) for one in found] == [*((one.offset, b"v%d" % i) for i, one in enumerate(sent)), (20, b"after")]
    assert after.offset == 20


async def test_headers_null_values_and_times_come_as_they_were_sent(broker: World) -> None:
    async with producer_of(broker) as producer:
        await producer.send_and_wait(broker.name, b"v", key=b"k", partition=0, timestamp_ms=1_700_000_000_000, headers=[("h", b"1")])
        await producer.send_and_wait(broker.name, None, key=b"k", partition=0, timestamp_ms=1_700_000_000_500)
    first, second = [one async for one in read_topic(broker.bootstrap, broker.name, 0)]
    assert (first.value, first.headers, first.timestamp, second.value) == (b"v", (("h", b"1"),), 1_700_000_000_000, None)


async def test_offsets_by_time(broker: World) -> None:
    tp = broker.at(2)
    async with producer_of(broker) as producer, member_of(broker) as consumer:
        for at_ms in (1000, 2000, 3000):
            await producer.send_and_wait(broker.name, b"v", partition=2, timestamp_ms=1_700_000_000_000 + at_ms)
        found = await consumer.offsets_for_times({tp: 1_700_000_001_500})
        assert found[tp] is not None
        assert found[tp].offset == 1
        assert (await consumer.offsets_for_times({tp: 1_800_000_000_000}))[tp] is None
        assert (await consumer.beginning_offsets([tp]), await consumer.end_offsets([tp])) == ({tp: 0}, {tp: 3})


async def test_a_batch_sent_again_is_written_once(broker: World) -> None:
    """Idempotence, by the bytes: the same batch of the same producer over a connection of one's own."""
    outbox = Outbox(broker.bootstrap)
    await outbox.send([Record(broker.name, 3, b"k", b"once")])
    await outbox.close()
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, enable_idempotence=True)
    await producer.start()
    await producer.send_and_wait(broker.name, b"first", partition=3)
    # The client forgets that it was answered: its next batch has the number of the last one.
    manager = producer._txn_manager
    assert manager is not None
    manager._sequence_numbers[broker.at(3)] = 0
    again = await producer.send_and_wait(broker.name, b"first", partition=3)
    await producer.stop()
    assert again.offset in (1, -1)
    assert [one.value async for one in read_topic(broker.bootstrap, broker.name, 3)] == [b"once", b"first"]


async def test_a_group_shares_out_again_when_members_come_and_go(broker: World) -> None:
    async with member_of(broker) as first:
        await shared_out([first])
        assert first._coordinator is not None
        generation = first._coordinator.generation
        async with member_of(broker) as second:
            await shared_out([first, second])
            assert first._coordinator.generation > generation
        await shared_out([first])
        assert len(first.assignment()) == 4


async def test_a_member_that_falls_silent_loses_its_partitions_and_may_not_commit(broker: World) -> None:
    async with member_of(broker) as first, member_of(broker) as second:
        await shared_out([first, second])
        coordinator = second._coordinator
        assert coordinator is not None
        heartbeat = coordinator._coordination_task
        lost = next(iter(second.assignment()))
        assert heartbeat is not None
        heartbeat.cancel()  # it beats no more
        for task in (coordinator._heartbeat_task,):
            if task is not None:
                task.cancel()
        await shared_out([first])
        with pytest.raises(CommitFailedError):
            await second.commit({lost: 1})


async def test_a_named_member_takes_its_place_again_without_sharing_out(broker: World) -> None:
    async with member_of(broker, "a") as first:
        second = consumer_of(broker, "b")
        await second.start()
        await shared_out([first, second])
        assert first._coordinator is not None
        generation, mine = first._coordinator.generation, second.assignment()
        await second.stop()  # a named member does not leave
        async with member_of(broker, "b") as again:
            assert again.assignment() == mine
            assert first._coordinator.generation == generation


async def test_commits_and_generations_survive_kill_9(broker: World) -> None:
    tp = broker.at(1)
    async with member_of(broker) as consumer:
        await shared_out([consumer])
        await consumer.commit({tp: 7})
        assert consumer._coordinator is not None
        generation = consumer._coordinator.generation
        await broker.kill_and_start()
        await shared_out([consumer])

        async def committed() -> bool:
            return bool(await consumer.committed(tp) == 7)

        await until("the commit to be there", 20, committed)

        async def later() -> bool:
            await consumer.getmany(timeout_ms=50)
            return bool(consumer._coordinator.generation >= generation)

        await until("a generation that is not an earlier one", 20, later)


async def test_a_place_that_is_not_there_is_refused(broker: World) -> None:
    tp = broker.at(0)
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="none", fetch_max_wait_ms=50)
    await consumer.start()
    try:
        consumer.assign([tp])
        consumer.seek(tp, 5)
        with pytest.raises(OffsetOutOfRangeError):
            await consumer.getone()
    finally:
        await consumer.stop()


async def test_topics_that_are_there_or_have_no_name_are_refused(broker: World) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        answer = await admin.create_topics([NewTopic(broker.name, 4, 1), NewTopic("no good!", 4, 1), NewTopic("none", 0, 1)])
        assert {name: code for name, code, *_ in answer.topic_errors} == {broker.name: 36, "no good!": 17, "none": 37}
    finally:
        await admin.close()


async def test_bytes_that_are_no_request_close_that_connection_only(broker: World) -> None:
    host, port = broker.bootstrap.split(":")
    for junk in (struct.pack(">i", 2**31 - 1), struct.pack(">i", -5), struct.pack(">ihhi", 8, 99, 0, 1), b"GET / HTTP/1.1\r\n\r\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(junk)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    assert await read_all(broker.bootstrap, broker.name) == []
