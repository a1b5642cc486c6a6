"""The Kafka client's errors are taken for Faust, which does not, and a worker without its client ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast
from unittest.mock import MagicMock

import faust
import pytest
from aiokafka.errors import GroupAuthorizationFailedError

from services.optimizer import __main__ as main
from services.optimizer.stream.transport import Consumer


def _consumer(*, pending: Exception | None = None, ended: bool = False, rejoins: bool = False) -> tuple[Consumer, MagicMock]:
    coordinator = MagicMock(_pending_exception=pending, generation=3)
    coordinator._coordination_task.done.return_value = ended
    coordinator._subscription.subscription = object()
    coordinator.need_rejoin.return_value = rejoins
    coordinator.check_errors.side_effect = pending
    made = Consumer.__new__(Consumer)
    client = SimpleNamespace(_coordinator=coordinator)
    loop = SimpleNamespace(call_soon_threadsafe=lambda call, *args: call(*args))
    made._thread = SimpleNamespace(_consumer=client, thread_loop=loop)  # type: ignore[assignment]
    return made, coordinator


def test_an_error_that_waits_is_taken_and_the_client_joins_again() -> None:
    consumer, coordinator = _consumer(pending=GroupAuthorizationFailedError("g"))
    assert consumer.look()
    coordinator.check_errors.assert_called_once_with()
    coordinator.request_rejoin.assert_called_once_with()


def test_without_an_error_nothing_is_done() -> None:
    consumer, coordinator = _consumer()
    assert consumer.look()
    coordinator.check_errors.assert_not_called()
    coordinator.request_rejoin.assert_not_called()


def test_a_failure_that_is_none_of_the_clients_ends_it() -> None:
    assert not _consumer(pending=ZeroDivisionError())[0].look()


def test_membership_is_of_a_generation_and_ends_when_the_client_is_about_to_join() -> None:
    consumer, _ = _consumer()
    assert consumer.is_member(3)
    assert not consumer.is_member(2)
    assert not _consumer(rejoins=True)[0].is_member(3)
    without_topics = SimpleNamespace(_coordinator=SimpleNamespace(_subscription=SimpleNamespace(subscription=None)))
    for started in (None, SimpleNamespace(_coordinator=None), without_topics):
        consumer._thread = SimpleNamespace(_consumer=started)  # type: ignore[assignment]
        assert not consumer.is_member(-1), "not there yet"


class _EndedError(BaseException):
    """In the place of the process's end."""


async def test_a_worker_ends_with_its_client_whose_consumer_faust_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise _EndedError(code)

    monkeypatch.setattr(main, "end_now", end)
    monkeypatch.setattr(main, "LOOK_S", 0.0)
    app = faust.App("watched", broker="kafka://127.0.0.1:1", store="memory://")
    watching = asyncio.create_task(main.end_with_its_client(app))
    await asyncio.sleep(0)
    assert not watching.done(), "there is none yet"
    app.consumer = cast(faust.types.ConsumerT, _consumer()[0])
    await asyncio.sleep(0)
    assert not watching.done()
    app.consumer = _consumer(ended=True)[0]
    with pytest.raises(_EndedError, match="70"):
        async with asyncio.timeout(5):
            await watching
