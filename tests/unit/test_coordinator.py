"""A broker that does not coordinate the group is not believed when it lists no commits."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import GroupAuthorizationFailedError
from aiokafka.protocol.commit import OffsetFetchResponse_v3

import smoa.coordinator  # noqa: F401  for its effect

PLACE = TopicPartition("t", 0)
FOUND = OffsetFetchResponse_v3(0, [("t", [(0, 7, "", 0)])], 0)


def _answer(code: int) -> OffsetFetchResponse_v3:
    return OffsetFetchResponse_v3(0, [], code)


def _coordinator(*answers: OffsetFetchResponse_v3) -> tuple[GroupCoordinator, AsyncMock]:
    made = GroupCoordinator.__new__(GroupCoordinator)
    send = AsyncMock(side_effect=answers)
    made._client = SimpleNamespace(
        send=send, coordinator_lookup=AsyncMock(return_value=2), ready=AsyncMock(return_value=True), force_metadata_update=AsyncMock()
    )
    made.group_id, made.coordinator_id, made._retry_backoff_ms = "g", 1, 1
    made._coordinator_lookup_lock, made._closing = asyncio.Lock(), asyncio.get_running_loop().create_future()
    made._coordinator_dead_fut = asyncio.get_running_loop().create_future()
    return made, send


@pytest.mark.parametrize(("code", "asked"), [(16, [1, 2]), (15, [1, 2]), (14, [1, 1])], ids=["not it", "none yet", "loading"])
async def test_an_error_of_the_whole_answer_is_asked_again(code: int, asked: list[int]) -> None:
    coordinator, send = _coordinator(_answer(code), FOUND)
    found = await coordinator.fetch_committed_offsets([PLACE])
    assert found[PLACE].offset == 7
    assert [call.args[0] for call in send.await_args_list] == asked


async def test_what_does_not_pass_is_raised() -> None:
    coordinator, _ = _coordinator(_answer(30))
    with pytest.raises(GroupAuthorizationFailedError):
        await coordinator.fetch_committed_offsets([PLACE])


async def test_no_commit_is_still_no_commit() -> None:
    coordinator, _ = _coordinator(OffsetFetchResponse_v3(0, [("t", [(0, -1, "", 0)])], 0))
    assert await coordinator.fetch_committed_offsets([PLACE]) == {}
