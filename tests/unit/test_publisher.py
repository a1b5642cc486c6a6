"""The publisher stops when it is told to, whatever its client is just doing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

from smoa.publisher import EventPublisher
from smoa.spool import Spool


async def test_it_stops_in_the_moment_in_which_a_connection_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connecting, fail = asyncio.Event(), asyncio.Event()

    async def start(self: AIOKafkaProducer) -> None:
        connecting.set()
        await fail.wait()
        raise KafkaConnectionError

    monkeypatch.setattr(AIOKafkaProducer, "start", start)
    publisher = EventPublisher("127.0.0.1:1", Spool(tmp_path / "spool", 1 << 20))
    await publisher.start()
    await connecting.wait()
    fail.set()
    stopping = asyncio.create_task(publisher.stop(0))
    done, _ = await asyncio.wait({stopping}, timeout=3)
    assert done, "its cancellation was lost"
