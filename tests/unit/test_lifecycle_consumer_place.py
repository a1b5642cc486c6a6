"""Where a router begins to listen, and what it had answered by then."""

from __future__ import annotations

import asyncio
from unittest.mock import AsyncMock, MagicMock, call

from aiokafka import ConsumerRecord, TopicPartition

from services.router.lifecycle_consumer import LifecycleConsumer
from smoa.events import ADAPTER_OUTCOMES, EXECUTORS, headers, pack
from smoa.v1.events_pb2 import AdapterOutcome


async def test_what_was_answered_before_it_listened_is_forgotten_once() -> None:
    """A change that came before its place in the topic, and after an answer, is never heard of."""
    router, place = MagicMock(), TopicPartition(EXECUTORS, 0)
    places = frozenset([place])
    consumer = MagicMock(position=AsyncMock(return_value=5), end_offsets=AsyncMock(return_value={place: 3}))
    listening = LifecycleConsumer("127.0.0.1:1", router, MagicMock(), MagicMock(), "me")
    await listening._place(consumer, places)
    router.cache.clear.assert_called_once_with()
    await listening._place(consumer, places)
    router.cache.clear.assert_called_once_with()
    assert consumer.seek.call_args_list == [call(place, 3), call(place, 5)]


async def test_a_replay_of_many_outcomes_lets_others_in_between() -> None:
    """After a restart an hour of them is read again, thousands in a message."""
    router = MagicMock()
    listening = LifecycleConsumer("127.0.0.1:1", router, MagicMock(), MagicMock(), "me")
    outcome = AdapterOutcome(adapter_id="a", tenant="t", success=True).SerializeToString()
    value = pack([(b"a", outcome, number) for number in range(5000)])
    batch = ConsumerRecord(ADAPTER_OUTCOMES, 0, 0, 0, 0, b"a", value, None, 0, 0, headers("smoa.v1.EventBatch"))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    await listening._read(batch)
    beside.cancel()
    assert router.learned.observe.call_count == 5000
    assert turns >= 5000 // 256
