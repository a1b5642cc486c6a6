"""Where a router begins to listen, and what it had answered by then."""

from __future__ import annotations

from unittest.mock import AsyncMock, MagicMock

from aiokafka import TopicPartition

from services.router.lifecycle_consumer import LifecycleConsumer
from smoa.events import EXECUTORS


async def test_what_was_answered_before_it_listened_is_forgotten_once() -> None:
    """A change that came before its place in the topic, and after an answer, is never heard of."""
    router, places = MagicMock(), frozenset([TopicPartition(EXECUTORS, 0)])
    consumer = MagicMock(position=AsyncMock(return_value=5), seek_to_end=AsyncMock())
    listening = LifecycleConsumer("127.0.0.1:1", router, MagicMock(), MagicMock(), "me")
    await listening._place(consumer, places)
    router.cache.clear.assert_called_once_with()
    await listening._place(consumer, places)
    router.cache.clear.assert_called_once_with()
    consumer.seek.assert_called_once_with(TopicPartition(EXECUTORS, 0), 5)
