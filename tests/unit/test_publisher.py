"""The publisher stops when it is told to, whatever its client is just doing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

from smoa.errors import Unavailable
from smoa.events import OUTCOMES, event
from smoa.publisher import EventPublisher
from smoa.spool import Spool, Spooled
from smoa.tasks import begin, end
from smoa.v1.feedback_pb2 import Outcome


async def test_it_stops_in_the_moment_in_which_a_connection_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting, fail = asyncio.Event(), asyncio.Event()

    async def start(self: AIOKafkaProducer) -> None:
        connecting.set()
        await fail.wait()
        raise KafkaConnectionError

    monkeypatch.setattr(AIOKafkaProducer, "start", start)
    publisher = EventPublisher("127.0.0.1:1", Spool(tmp_path / "spool", 1 << 20))
    publisher.publish([event(OUTCOMES, "d", Outcome(decision_id="d"))])
    await publisher.start()
    async with asyncio.timeout(3):
        await connecting.wait()
    fail.set()
    stopping = asyncio.create_task(publisher.stop(0))
    done, _ = await asyncio.wait({stopping}, timeout=3)
    assert done, "its cancellation was lost"


async def test_it_goes_on_after_its_disk_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_again = asyncio.Event()
    peek, failures = Spool.peek, [Unavailable("spool: cannot read")]

    async def nothing(self: AIOKafkaProducer) -> None:
        self._closed = True  # or it complains, when it is collected, that nobody stopped it

    def failing(self: Spool, limit: int) -> list[Spooled]:
        if failures:
            raise failures.pop()
        read_again.set()
        return peek(self, limit)

    monkeypatch.setattr(AIOKafkaProducer, "start", nothing)
    monkeypatch.setattr(AIOKafkaProducer, "stop", nothing)
    monkeypatch.setattr(Spool, "peek", failing)
    publisher = EventPublisher("127.0.0.1:1", Spool(tmp_path / "spool", 1 << 20))
    await publisher.start()
    async with asyncio.timeout(3):
        await read_again.wait()
    assert not failures
    await publisher.stop(0)


async def test_what_a_task_closes_at_its_end_is_not_cut_off() -> None:
    closed = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.5)  # a connection's goodbye
            closed.set()

    task = begin(work(), "work")
    await asyncio.sleep(0)
    await end(task)
    assert closed.is_set()
