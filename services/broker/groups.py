"""Consumer groups: who is a member, which generation it is, and who was assigned what (Kafka's classic protocol).

A group waits for its members to join (`joining`; Kafka: PreparingRebalance), then for its leader to say who reads what (`syncing`;
CompletingRebalance), then it is `stable` until somebody comes, goes, or is silent for longer than its session. What it committed is in the
store; membership is in memory only: after a restart of the broker its members join again, in a later generation.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

from aiokafka.errors import (
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

T = TypeVar("T")


class Joined(NamedTuple):
    """The answer to a member that joined."""

    generation: int
    protocol: str
    leader_id: str
    member_id: str
    members: Sequence[tuple[str, str | None, bytes]]
    """Id, instance id and metadata of everybody, for the leader only."""


@dataclass
class Member:
    """One consumer."""

    member_id: str
    instance_id: str | None
    protocols: Mapping[str, bytes]
    session_s: float
    rebalance_s: float
    joining: asyncio.Future[Joined] | None = None
    syncing: asyncio.Future[bytes] | None = None
    assignment: bytes = b""
    expiry: asyncio.TimerHandle | None = None


@dataclass
class Group:
    """One consumer group."""

    next_generation: Callable[[], int]
    state: Literal["empty", "joining", "syncing", "stable"] = "empty"
    generation: int = 0
    protocol: str = ""
    leader_id: str = ""
    members: dict[str, Member] = field(default_factory=dict)
    _deadline: asyncio.TimerHandle | None = None

    async def join(
        self, member_id: str, instance_id: str | None, protocols: Mapping[str, bytes], session_s: float, rebalance_s: float
    ) -> Joined:
        """Become a member, or join again; returns once all have, or were waited for long enough.

        Raises:
            UnknownMemberIdError: it was taken for gone: it joins anew, without an id.
            InconsistentGroupProtocolError: it has no protocol in common with the others.
        """
        before = next((one for one in self.members.values() if instance_id and one.instance_id == instance_id), None)
        if member_id and member_id not in self.members:
            raise UnknownMemberIdError
        others = [one for one in self.members.values() if one is not before and one.member_id != member_id]
        if not protocols or (others and not set(protocols).intersection(*(one.protocols for one in others))):
            raise InconsistentGroupProtocolError
        if member_id:
            member = self.members[member_id]
            unchanged = member.protocols == protocols
        else:
            member = Member(f"member-{uuid.uuid4()}", instance_id, protocols, session_s, rebalance_s)
            unchanged = before is not None and before.protocols == protocols
            if before is not None:
                member.assignment = before.assignment
                self._drop(before)
            self.members[member.member_id] = member
        member.protocols, member.session_s, member.rebalance_s = protocols, session_s, rebalance_s
        self.restart_session_timer(member)
        if self.state == "stable" and unchanged and (before is not None or member.member_id != self.leader_id):
            leader_id = self.leader_id
            if before is not None and before.member_id == leader_id:
                # It takes its own place again: told the old leader's id, it does not assign anew what nobody else would hear of.
                self.leader_id = member.member_id
            return Joined(self.generation, self.protocol, leader_id, member.member_id, ())
        waiting: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        _refuse(member.joining, RebalanceInProgressError())  # of an earlier connection
        member.joining = waiting
        self._prepare_rebalance()
        return await waiting

    async def sync(self, member_id: str, generation: int, assignments: Mapping[str, bytes]) -> bytes:
        """What a member is to read: as its leader says, whose call carries it.

        Raises:
            UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError: it has to join again.
        """
        member = self._checked(member_id, generation)
        if self.state == "joining":
            raise RebalanceInProgressError
        if self.state == "stable":
            return member.assignment
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        _refuse(member.syncing, RebalanceInProgressError())
        member.syncing = waiting
        if member_id == self.leader_id:
            self.state = "stable"
            for one in self.members.values():
                self.restart_session_timer(one)  # it could not beat while it waited
                one.assignment = assignments.get(one.member_id, b"")
                _answer(one.syncing, one.assignment)
                one.syncing = None
        return await waiting

    def heartbeat(self, member_id: str, generation: int) -> None:
        """A member lives.

        Raises:
            UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError: it has to join again.
        """
        self._checked(member_id, generation)
        if self.state == "joining":
            raise RebalanceInProgressError

    def may_commit(self, member_id: str, generation: int) -> None:
        """A member commits; or somebody outside the group, which is empty.

        Raises:
            UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError: another may have its partitions now.
        """
        if generation < 0 and not member_id and not self.members:
            return
        self._checked(member_id, generation)
        if self.state == "syncing":
            raise RebalanceInProgressError

    def leave(self, member_id: str) -> None:
        """A member goes.

        Raises:
            UnknownMemberIdError: it was taken for gone.
        """
        if member_id not in self.members:
            raise UnknownMemberIdError
        self._remove(self.members[member_id])

    def restart_session_timer(self, member: Member) -> None:
        """Wait a session from now before the member is taken for gone."""
        if member.expiry is not None:
            member.expiry.cancel()
        member.expiry = asyncio.get_running_loop().call_later(member.session_s, self._expired, member)

    def close(self) -> None:
        """Forget everybody; who waits is told to join again."""
        for member in list(self.members.values()):
            self._drop(member)
        if self._deadline is not None:
            self._deadline.cancel()

    def _checked(self, member_id: str, generation: int) -> Member:
        if (member := self.members.get(member_id)) is None:
            raise UnknownMemberIdError
        self.restart_session_timer(member)
        if generation != self.generation:
            raise IllegalGenerationError
        return member

    def _expired(self, member: Member) -> None:
        if any(waiting is not None and not waiting.done() for waiting in (member.joining, member.syncing)):
            self.restart_session_timer(member)  # it waits for the others and cannot beat meanwhile
        else:
            self._remove(member)

    def _remove(self, member: Member) -> None:
        self._drop(member)
        if not self.members:
            self.state = "empty"
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self.state == "joining":
            self._complete_join()
        else:
            self._prepare_rebalance()

    def _drop(self, member: Member, error: KafkaError | None = None) -> None:
        self.members.pop(member.member_id, None)
        if member.expiry is not None:
            member.expiry.cancel()
        _refuse(member.joining, error or UnknownMemberIdError())
        _refuse(member.syncing, error or UnknownMemberIdError())

    def _prepare_rebalance(self) -> None:
        if self.state != "joining":
            self.state = "joining"
            for one in self.members.values():
                _refuse(one.syncing, RebalanceInProgressError())
                one.syncing = None
            patience_s = max(one.rebalance_s for one in self.members.values())
            self._deadline = asyncio.get_running_loop().call_later(patience_s, self._complete_join, True)
        self._complete_join()

    def _complete_join(self, late: bool = False) -> None:
        """Begin the next generation if everybody has joined, or, late, with those who have."""
        joined = [one for one in self.members.values() if one.joining is not None and not one.joining.done()]
        if not late and len(joined) < len(self.members):
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        for one in [one for one in self.members.values() if one not in joined]:
            self._drop(one)
        if not joined:
            self.state = "empty"
            return
        try:
            self.generation = self.next_generation()
        except KafkaError as error:  # it cannot be written now: all of them join anew
            for one in joined:
                self._drop(one, error)
            self.state = "empty"
            return
        self.state = "syncing"
        if self.leader_id not in self.members:
            self.leader_id = joined[0].member_id
        common = set(joined[0].protocols).intersection(*(one.protocols for one in joined))
        self.protocol = next(name for name in self.members[self.leader_id].protocols if name in common)
        everybody = tuple((one.member_id, one.instance_id, one.protocols[self.protocol]) for one in joined)
        for one in joined:
            members = everybody if one.member_id == self.leader_id else ()
            self.restart_session_timer(one)
            _answer(one.joining, Joined(self.generation, self.protocol, self.leader_id, one.member_id, members))
            one.joining = None


def _refuse(waiting: asyncio.Future[T] | None, error: KafkaError) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_exception(error)


def _answer(waiting: asyncio.Future[T] | None, value: T) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(value)
