"""A real Apache Kafka on loopback, where SMOA_TEST_KAFKA_HOME says that one can be started, and a reader of whole topics."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from smoa.topics import TOPICS, ensure_topics

HOME = os.environ.get("SMOA_TEST_KAFKA_HOME", "")
SKIP_REASON = "SMOA_TEST_KAFKA_HOME is not set: it names the folder whose `serve` starts a real Apache Kafka"


def broker_port() -> int:
    """A port that is free, and the next one too: the broker's controller takes that. Below those that connections get by themselves."""
    while True:
        port = random.randrange(20_000, 30_000, 2)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


class ApacheKafka:
    """One broker; `kill` is kill -9, and `start` starts it again on the same folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """Address of the broker."""
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Start, and wait until topics can be made."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "log").open("ab") as log:
            command = [str(Path(HOME) / "serve"), str(self._folder), str(self._port)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        await ensure_topics(self.bootstrap, TOPICS, 4, timeout_s=60)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Stop in order, and let the loop see its connections end.

        The client drops a connection unclosed when it is cancelled while it makes one (aiokafka 0.14); the broker's end closes that, too.
        """
        self._end(signal.SIGTERM)
        for _ in range(20):
            await asyncio.sleep(0)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(10)
            self._process = None


async def read_all(bootstrap: str, topic: str) -> list[ConsumerRecord[bytes, bytes]]:
    """Every message of a topic, from the beginning to what its end is now."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        await consumer._client.force_metadata_update()
        partitions = [TopicPartition(topic, number) for number in range(4)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[ConsumerRecord[bytes, bytes]] = []
        deadline = time.monotonic() + 30
        while [p for p in partitions if await consumer.position(p) < ends[p]]:
            assert time.monotonic() < deadline, f"{topic} could not be read to its end"
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += records
        return found
    finally:
        await consumer.stop()


async def until(what: str, within_s: float, done: object) -> None:
    """Poll an async predicate with a deadline."""
    assert callable(done)
    deadline = time.monotonic() + within_s
    while not await done():
        assert time.monotonic() < deadline, f"{what} did not happen within {within_s} s"
        await asyncio.sleep(0.2)
