"""Events of other people's producers are counted, however these compress them."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from smoa.events import EXAMPLES, OUTCOMES
from smoa.outbox import records_of
from tests.kafka_support import HOME, SKIP_REASON, broker_of, read_all, until
from tests.stream_support import PARTITIONS, TOPICS, Traffic, Watch, Worker, counted, difference

CODECS = ("gzip", "snappy", "lz4", "zstd")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("nodes", [0, 1])
async def test_every_codec_of_kafka_is_read(nodes: int, tmp_path: Path) -> None:
    """0 nodes: the embedded broker."""
    if nodes and not HOME:
        pytest.skip(SKIP_REASON)
    kafka, traffic = broker_of(nodes, tmp_path / "kafka"), Traffic(3, adapters=40)
    await kafka.start()
    worker, watch = Worker(kafka.bootstrap, tmp_path, "worker"), Watch(kafka.bootstrap)
    try:
        await until("the worker", 60, worker.is_ready)
        first = worker.process.pid
        for codec in CODECS:
            producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, compression_type=codec, linger_ms=20)
            await producer.start()
            records = records_of(
                [(one, 0) for one in [*traffic.make(400), *traffic.rest()]], dict.fromkeys((*TOPICS, EXAMPLES), PARTITIONS)
            )
            for one in [await producer.send(one.topic, one.value, one.key, one.partition, headers=one.headers) for one in records]:
                await one
            await producer.stop()
            await watch.caught_up(60, worker.keep)
        assert difference(traffic.truth, await counted(kafka.bootstrap)) == (0, 0)
        assert worker.process.pid == first, f"it was restarted:\n{worker.log[-6000:]}"
        assert len(await read_all(kafka.bootstrap, OUTCOMES)) >= len(CODECS)
    finally:
        await watch.close()
        worker.stop()
        await kafka.stop()
