"""A worker in its group while that is shared out anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

from aiokafka import AIOKafkaConsumer
from faust.types import TP

from services.optimizer.stream.transport import Consumer
from smoa.topics import Topic, ensure_topics
from tests.kafka_support import embedded_broker, until

PLACE = TP("t", 0)


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
