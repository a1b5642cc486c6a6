"""A real Apache Kafka on loopback, where SMOA_TEST_KAFKA_HOME says that one can be started, and a reader of whole topics."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from aiokafka import ConsumerRecord

from smoa.errors import InvalidArgument
from smoa.events import Received, unpack
from smoa.reader import read_topic
from smoa.topics import TOPICS, ensure_topics

HOME = os.environ.get("SMOA_TEST_KAFKA_HOME", "")
SKIP_REASON = "SMOA_TEST_KAFKA_HOME is not set: it names the folder whose `serve` starts a real Apache Kafka"


def broker_port(nodes: int = 1) -> int:
    """A port that is free, and the next ones too: each node takes two. Below those that connections get by themselves."""
    while True:
        port = random.randrange(20_000, 30_000, 2)
        with ExitStack() as opened:
            try:
                for number in range(port, port + 2 * nodes):
                    opened.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            return port


class ApacheKafka:
    """One broker, or several; `kill` is kill -9, and `start` starts again, on the same folder, what does not run."""

    def __init__(self, folder: Path, port: int, nodes: int = 1, environment: Mapping[str, str] | None = None) -> None:
        self._folder, self._port, self._nodes, self._environment = folder, port, nodes, environment or {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def bootstrap(self) -> str:
        """Addresses of the brokers."""
        return ",".join(f"127.0.0.1:{self._port + 2 * node}" for node in range(self._nodes))

    async def start(self) -> None:
        """Start, and wait until topics can be made."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for node in range(1, self._nodes + 1):
            if node not in self._processes:
                command = [str(Path(HOME) / "serve"), str(self._folder), str(self._port), str(node), str(self._nodes)]
                with (self._folder / f"log-{node}").open("ab") as log:
                    environment = {**os.environ, **self._environment}
                    self._processes[node] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        await self.make_topics()

    async def make_topics(self) -> None:
        """Make every topic, once it answers."""
        await ensure_topics(self.bootstrap, TOPICS, 4, timeout_s=60)

    def kill(self, node: int = 1) -> None:
        """kill -9."""
        self._end(node, signal.SIGKILL)

    async def stop(self) -> None:
        """Stop in order, and let the loop see its connections end.

        The client drops a connection unclosed when it is cancelled while it makes one (aiokafka 0.14); the broker's end closes that, too.
        """
        for node in list(self._processes):
            self._end(node, signal.SIGTERM)
        for _ in range(20):
            await asyncio.sleep(0)

    def _end(self, node: int, number: signal.Signals) -> None:
        process = self._processes.pop(node, None)
        if process is not None:
            os.killpg(process.pid, number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


async def read_all(bootstrap: str, topic: str) -> list[ConsumerRecord[bytes, bytes]]:
    """Every record of a topic, from the beginning to what its end is now."""
    return [one async for one in read_topic(bootstrap, topic)]


async def read_events(bootstrap: str, topic: str) -> list[Received]:
    """Every event of a topic that can be unpacked."""
    found: list[Received] = []
    for one in await read_all(bootstrap, topic):
        with suppress(InvalidArgument):
            found += unpack(one.topic, one.partition, one.offset, one.key, one.value, one.headers)
    return found


async def until(what: str, within_s: float, done: object) -> None:
    """Poll an async predicate with a deadline."""
    assert callable(done)
    deadline = time.monotonic() + within_s
    while not await done():
        assert time.monotonic() < deadline, f"{what} did not happen within {within_s} s"
        await asyncio.sleep(0.2)


class EmbeddedBroker:
    """The broker of `smoa up`; `kill` is kill -9, and `start` starts it again, on the same folder and port."""

    def __init__(self, folder: Path, partition_mb: int = 64) -> None:
        self._folder, self._partition_mb = folder, partition_mb
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """Its address."""
        return (self._folder / "address").read_text()

    async def start(self) -> None:
        """Start it if it does not run, and wait until it listens."""
        address = self._folder / "address"
        address.unlink(missing_ok=True)
        command = [sys.executable, "-m", "services.broker", str(address), "--data", str(self._folder / "broker")]
        self._process = subprocess.Popen([*command, "--partition-mb", str(self._partition_mb)])

        async def written() -> bool:
            return address.exists()

        await until("the broker", 20, written)

    def kill(self, node: int = 1) -> None:
        """kill -9; there is one node."""
        self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Stop in order."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(10)


def broker_of(nodes: int, folder: Path) -> ApacheKafka | EmbeddedBroker:
    """A Kafka of so many nodes; 0: the embedded broker."""
    return ApacheKafka(folder, broker_port(nodes), nodes) if nodes else EmbeddedBroker(folder)


@asynccontextmanager
async def embedded_broker(folder: Path) -> AsyncIterator[str]:
    """The broker of `smoa up`; yields its address."""
    broker = EmbeddedBroker(folder)
    await broker.start()
    try:
        yield broker.bootstrap
    finally:
        await broker.stop()
