"""A worker in its group, on the broker of `smoa up`, which shares out anew in its own way."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer
from faust.types import TP

from services.local import EMBEDDED
from services.optimizer.transport import Consumer
from smoa.topics import Topic, ensure_topics
from tests.kafka_support import embedded_broker, until
from tests.stream_support import Worker

PLACE = TP("t", 0)
LATE = """
import asyncio
from aiokafka.consumer.group_coordinator import GroupCoordinator
from services.optimizer.__main__ import main
send, late = GroupCoordinator._send_req, [2.0]
async def send_late(self, request):
    if type(request).__name__.startswith("SyncGroup") and late:
        await asyncio.sleep(late.pop())
    return await send(self, request)
GroupCoordinator._send_req = send_late
main()
"""


class LateWorker(Worker):
    """Its first SyncGroup comes after the leader's, which this broker refuses, and the client takes for the end."""

    command = (sys.executable, "-c", LATE)


@pytest.mark.timeout(120)
async def test_a_worker_that_its_group_refused_joins_again(tmp_path: Path) -> None:
    async with embedded_broker(tmp_path) as bootstrap:
        workers = [Worker(bootstrap, tmp_path, "first", **EMBEDDED)]
        try:
            await until("the first worker", 60, workers[0].is_ready)
            workers.append(second := LateWorker(bootstrap, tmp_path, "second", **EMBEDDED))
            await until("the second worker", 60, second.is_ready)
            assert "InvalidRequestError" in second.log
            assert "goes on after" in second.log
        finally:
            for worker in workers:
                worker.stop()


async def test_no_commit_goes_behind_a_request_to_join(tmp_path: Path) -> None:
    async with embedded_broker(tmp_path) as bootstrap:
        await ensure_topics(bootstrap, [Topic("t")], 2)
        settings = {"group_id": "g", "session_timeout_ms": 4000, "heartbeat_interval_ms": 300, "enable_auto_commit": False}
        first, second = (AIOKafkaConsumer("t", bootstrap_servers=bootstrap, **settings) for _ in range(2))
        worker = Consumer.__new__(Consumer)
        worker._thread = SimpleNamespace(_consumer=first, _ensure_consumer=lambda: first)  # type: ignore[assignment]
        try:
            await first.start()
            coordinator, joining = first._coordinator, asyncio.Event()
            member, generation, send = coordinator.member_id, coordinator.generation, coordinator._send_req
            assert await worker._confirm(generation, {PLACE: 0})

            async def observed(request: object) -> object:
                if type(request).__name__.startswith("JoinGroup"):
                    joining.set()
                if type(request).__name__.startswith("SyncGroup"):
                    await asyncio.sleep(0.5)  # this broker refuses those who come after the leader, which this client is
                return await send(request)

            coordinator._send_req = observed
            starting = asyncio.create_task(second.start())
            try:
                async with asyncio.timeout(20):
                    await joining.wait()
                    assert not await worker._confirm(generation, {PLACE: 0})
                    assert coordinator.generation == generation, "at once, and not when all have joined"
                    await starting
            finally:
                starting.cancel()

            async def shared_out() -> bool:
                return len(first.assignment()) == len(second.assignment()) > 0

            await until("the group to be shared out", 20, shared_out)
            assert coordinator.member_id == member, "not joined as somebody new"
            assert coordinator.generation == generation + 1, "shared out once"
        finally:
            for client in (first, second):
                await client.stop()
