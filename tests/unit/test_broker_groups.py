"""Consumer groups of the embedded broker, as states: what real clients do only by chance."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from services.broker.groups import Group, Joined

RANGE = {"range": b"topics"}


def joining(group: Group, member_id: str = "", name: str | None = None) -> asyncio.Task[Joined]:
    return asyncio.create_task(group.join(member_id, name, RANGE, 60.0, 60.0))


async def two_members() -> tuple[Group, Joined, Joined]:
    """A group whose two members have joined, and wait to be told what to read."""
    numbers = count(1)
    group = Group(lambda: next(numbers))
    first = await joining(group)
    again = joining(group)
    await asyncio.sleep(0)
    leader = await joining(group, first.member_id)
    return group, leader, await again


async def test_all_are_waited_for_and_the_leader_says_who_reads_what() -> None:
    group, leader, other = await two_members()
    assert (leader.generation, other.generation, leader.leader_id) == (2, 2, leader.member_id)
    assert {one for one, _, _ in leader.members} == {leader.member_id, other.member_id}
    assert other.members == ()
    waiting = asyncio.create_task(group.sync(other.member_id, 2, {}))
    await asyncio.sleep(0)
    assert await group.sync(leader.member_id, 2, {leader.member_id: b"a", other.member_id: b"b"}) == b"a"
    assert await waiting == b"b"
    group.heartbeat(other.member_id, 2)
    group.may_commit(other.member_id, 2)
    group.close()


async def test_a_member_that_joins_while_others_wait_for_the_leader_begins_anew() -> None:
    group, leader, other = await two_members()
    waiting = asyncio.create_task(group.sync(other.member_id, 2, {}))
    await asyncio.sleep(0)
    third = joining(group)
    await asyncio.sleep(0)
    with pytest.raises(RebalanceInProgressError):
        await waiting
    with pytest.raises(RebalanceInProgressError):
        group.heartbeat(leader.member_id, 2)
    both = [joining(group, one.member_id) for one in (leader, other)]
    assert {one.generation for one in await asyncio.gather(third, *both)} == {3}
    with pytest.raises(IllegalGenerationError):
        group.may_commit(leader.member_id, 2)
    group.close()


async def test_the_same_member_again_takes_the_place_of_its_lost_connection() -> None:
    group, leader, other = await two_members()
    group.leave(other.member_id)  # now the leader is waited for
    late = joining(group)
    await asyncio.sleep(0)
    lost = joining(group)  # as somebody new, whose connection is gone
    await asyncio.sleep(0)
    assert group.state == "joining"
    again = await joining(group, leader.member_id)
    assert len(again.members) == 3
    for task in (late, lost):
        assert (await task).generation == again.generation
    group.close()


async def test_a_join_that_is_sent_twice_ends_the_first_wait() -> None:
    group, leader, _ = await two_members()
    newcomer = joining(group)
    await asyncio.sleep(0)
    first = joining(group, leader.member_id)
    await asyncio.sleep(0)
    second = joining(group, leader.member_id)
    with pytest.raises(RebalanceInProgressError):
        await first
    assert not second.done()
    group.close()
    for task in (newcomer, second):
        with pytest.raises(UnknownMemberIdError):
            await task


async def test_a_generation_that_cannot_be_written_leaves_no_ghosts() -> None:
    room = False

    def next_generation() -> int:
        if not room:
            raise GroupCoordinatorNotAvailableError
        return 1

    group = Group(next_generation)
    for _ in range(3):
        with pytest.raises(GroupCoordinatorNotAvailableError):
            await joining(group)
    assert (group.members, group.state) == ({}, "empty")
    room = True
    assert (await joining(group)).generation == 1
    group.close()


async def test_a_named_leader_that_comes_back_keeps_generation_and_place() -> None:
    numbers = count(1)
    group = Group(lambda: next(numbers))
    first = await joining(group, name="a")
    assert await group.sync(first.member_id, 1, {first.member_id: b"mine"}) == b"mine"
    back = await joining(group, name="a")
    assert (back.generation, back.leader_id) == (1, first.member_id), "told the old id, it assigns nothing that nobody would hear of"
    assert await group.sync(back.member_id, 1, {}) == b"mine"
    with pytest.raises(UnknownMemberIdError):
        group.heartbeat(first.member_id, 1)
    group.close()


async def test_members_need_a_protocol_in_common_and_strangers_may_not_commit() -> None:
    group, _, _ = await two_members()
    with pytest.raises(InconsistentGroupProtocolError):
        await group.join("", None, {"other": b""}, 60.0, 60.0)
    with pytest.raises(UnknownMemberIdError):
        group.may_commit("", -1)
    group.close()
    Group(lambda: 1).may_commit("", -1)
