"""The embedded broker's own bounds: compaction, what a partition keeps, one broker a folder, another client than ours."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Consumer, Producer

from services.broker import store as store_module
from smoa.outbox import Outbox, Record
from smoa.reader import let_go, read_topic
from smoa.topics import Topic, ensure_topics
from tests.kafka_support import EmbeddedBroker, embedded_broker, until

COMPACTED = Topic("compacted", compacted=True, settings=(("delete.retention.ms", "0"),))
KB = b"x" * 1000


async def test_a_compacted_topic_keeps_the_newest_of_each_key_and_is_bounded(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    async with embedded_broker(tmp_path) as bootstrap:
        await ensure_topics(bootstrap, [COMPACTED], 1)
        outbox = Outbox(bootstrap)
        await outbox.send([Record("compacted", 0, b"gone", KB), Record("compacted", 0, b"gone", None), Record("compacted", 0, b"rare", KB)])
        for number in range(200):
            await outbox.send([Record("compacted", 0, b"k%d" % i, b"%d" % number + KB) for i in range(100)])
        await outbox.send([Record("compacted", 0, b"end", b"")])
        await outbox.close()

        async def compacted() -> bool:
            kept = [one async for one in read_topic(bootstrap, "compacted", 0)]
            newest = {one.key: one.value for one in kept}
            assert newest.keys() == {b"rare", b"end", *(b"k%d" % i for i in range(100))} | (newest.keys() & {b"gone"})
            assert all(newest[b"k%d" % i] == b"199" + KB for i in range(100))
            return len(kept) < 3000 and b"gone" not in newest

        await until("compaction", 30, compacted)
        # A reader that stands in the middle of what is gone goes on behind it.
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, fetch_max_wait_ms=50)
        await consumer.start()
        consumer.assign([TopicPartition("compacted", 0)])
        consumer.seek(TopicPartition("compacted", 0), 1)
        assert (await consumer.getone()).key == b"rare"
        consumer.seek(TopicPartition("compacted", 0), 4)
        assert (await consumer.getone()).offset > 100
        await consumer.stop()
    assert (folder / "log.sqlite").stat().st_size < 15 * 2**20


async def test_letting_a_consumer_go_cancels_nobody(tmp_path: Path) -> None:
    """One that is let go before its own tasks have begun hands their cancellation to whoever stops it."""
    async with embedded_broker(tmp_path) as bootstrap:
        bare, ours = (AIOKafkaConsumer(bootstrap_servers=bootstrap) for _ in range(2))
        await bare.start()
        with pytest.raises(asyncio.CancelledError):
            await bare.stop()
        await ours.start()
        await let_go(ours)
        assert all(not one.connected() for one in ours._client._conns.values())
        await bare._client.close()


async def test_a_partition_keeps_its_newest_bytes_and_its_offsets_go_on(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path, partition_mb=1)
    await broker.start()
    outbox = Outbox(broker.bootstrap)
    for number in range(40):
        await outbox.send([Record("plain", 0, b"%d" % number, KB) for _ in range(100)])
    await outbox.close()
    kept = [one.offset async for one in read_topic(broker.bootstrap, "plain", 0)]
    broker.kill()
    await broker.start()
    assert [one.offset async for one in read_topic(broker.bootstrap, "plain", 0)] == kept == list(range(kept[0], 4000))
    assert 500 < len(kept) < 1100
    await broker.stop()


async def test_a_second_broker_on_the_folder_is_refused(tmp_path: Path) -> None:
    async with embedded_broker(tmp_path):
        command = [sys.executable, "-m", "services.broker", str(tmp_path / "second"), "--data", str(tmp_path / "broker")]
        second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    assert "another broker uses" in second.stderr
    assert "Traceback" not in second.stderr


async def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    kept = store_module.Store(tmp_path, 2**20)
    kept.create("plain", 1, {})
    kept._file.execute("PRAGMA max_page_count = 16")
    (partition,) = kept.topics["plain"]
    from services.broker.batches import split
    from tests.unit.test_batches import batch_of

    batch = batch_of([(b"k", KB * 100)])
    with pytest.raises(store_module.StorageError):
        kept.append([(partition, split(batch))])
    assert (partition.end, kept.read(partition, 0, 2**20)) == (0, b"")
    kept.close()


async def test_another_client_produces_and_consumes(tmp_path: Path) -> None:
    """librdkafka's, which most languages' clients are made of."""
    async with embedded_broker(tmp_path) as bootstrap:
        producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
        for number in range(1000):
            producer.produce("plain", b"%d" % number, key=b"%d" % number)
        assert producer.flush(20) == 0
        consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "g", "auto.offset.reset": "earliest"})
        consumer.subscribe(["plain"])
        found = set[bytes]()
        while len(found) < 1000:
            messages = consumer.consume(500, timeout=10)
            assert messages
            found |= {one.value() or b"" for one in messages if one.error() is None}
        consumer.close()
        assert found == {b"%d" % number for number in range(1000)}
