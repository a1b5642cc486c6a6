"""What each request about a consumer group does: membership in memory, commits and generations in the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from aiokafka import errors

from services.broker.groups import Group
from services.broker.store import Commit, StorageError, Store
from services.broker.wire import Fields, by_topic

_log = logging.getLogger(__name__)
MAX_GROUPS: Final = 1000
MAX_REBALANCE_S: Final = 600.0
SESSION_S: Final = (0.5, 1800.0)


class Coordinator:
    """Coordinates every group; each method takes a request's fields and returns its answer's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._groups: dict[str, Group] = {}

    def close(self) -> None:
        """Let the members go, and what waits for them."""
        for group in self._groups.values():
            group.close()

    def _group(self, name: str) -> Group:
        """The group, made if it is not there: only who joins makes one."""
        if name not in self._groups:
            if len(self._groups) >= MAX_GROUPS:
                self._groups = {other: group for other, group in self._groups.items() if group.members}
            self._groups[name] = Group(partial(self._next_generation, name))
        return self._groups[name]

    def _next_generation(self, group: str) -> int:
        try:
            return self._store.next_generation(group)
        except StorageError as error:
            _log.error("group %s cannot begin a generation: %s", group, error)
            raise errors.GroupCoordinatorNotAvailableError from error

    def _known_group(self, name: str) -> Group:
        """The group, or one that has no members."""
        return self._groups.get(name) or Group(partial(self._next_generation, name))

    async def join(self, request: Fields) -> Fields:
        """Become a member."""
        protocols = {one["protocol_name"]: one["protocol_metadata"] for one in request["group_protocols"]}
        session_s = request["session_timeout"] / 1000
        rebalance_s = session_s if "rebalance_timeout" not in request else request["rebalance_timeout"] / 1000
        rebalance_s = min(max(rebalance_s, SESSION_S[0]), MAX_REBALANCE_S)
        member_id = request["member_id"]
        try:
            if not SESSION_S[0] <= session_s <= SESSION_S[1]:
                raise errors.InvalidSessionTimeoutError
            joined = await self._group(request["group"]).join(
                member_id, request.get("group_instance_id"), protocols, session_s, rebalance_s
            )
        except errors.KafkaError as error:
            return {"throttle_time_ms": 0, "error_code": error.errno, "generation_id": -1, "group_protocol": ""} | {
                "leader_id": "",
                "member_id": member_id,
                "members": [],
            }
        members = [{"member_id": one, "group_instance_id": instance, "member_metadata": data} for one, instance, data in joined.members]
        return {"throttle_time_ms": 0, "error_code": 0, "generation_id": joined.generation, "group_protocol": joined.protocol} | {
            "leader_id": joined.leader_id,
            "member_id": joined.member_id,
            "members": members,
        }

    async def sync(self, request: Fields) -> Fields:
        """What a member is to read."""
        assignments = {one["member_id"]: one["member_metadata"] for one in request["group_assignment"]}
        try:
            mine = await self._known_group(request["group"]).sync(request["member_id"], request["generation_id"], assignments)
        except errors.KafkaError as error:
            return {"throttle_time_ms": 0, "error_code": error.errno, "member_assignment": b""}
        return {"throttle_time_ms": 0, "error_code": 0, "member_assignment": mine}

    async def heartbeat(self, request: Fields) -> Fields:
        """A member lives."""
        return _error_of(partial(self._known_group(request["group"]).heartbeat, request["member_id"], request["generation_id"]))

    async def leave(self, request: Fields) -> Fields:
        """A member goes."""
        return _error_of(partial(self._known_group(request["group"]).leave, request["member_id"]))

    async def commit(self, request: Fields) -> Fields:
        """Note where a group goes on reading."""
        name = request["consumer_group"]
        generation, member_id = request.get("consumer_group_generation_id", -1), request.get("consumer_id", "")
        places = {
            (topic["topic"], one["partition"]): Commit(one["offset"], one["metadata"] or "")
            for topic in request["topics"]
            for one in topic["partitions"]
        }
        code = _error_of(partial(self._known_group(name).may_commit, member_id, generation))["error_code"]
        if not code:
            try:
                self._store.commit(name, places)
            except StorageError as error:
                _log.error("a commit of group %s is refused, it is tried again: %s", name, error)
                code = errors.GroupCoordinatorNotAvailableError.errno
        return {"throttle_time_ms": 0, "topics": by_topic(places, lambda _, number: {"partition": number, "error_code": code})}

    async def committed(self, request: Fields) -> Fields:
        """Where a group goes on reading."""
        commits = self._store.commits(request["consumer_group"])
        asked: Iterable[tuple[str, int]] = commits
        if request["topics"] is not None:
            asked = [(topic["topic"], number) for topic in request["topics"] for number in topic["partitions"]]

        def answer(topic: str, number: int) -> Fields:
            commit = commits.get((topic, number), Commit(-1, ""))
            return {"partition": number, "offset": commit.offset, "metadata": commit.note, "error_code": 0}

        return {"throttle_time_ms": 0, "topics": by_topic(asked, answer), "error_code": 0}


def _error_of(work: Callable[[], None]) -> Fields:
    try:
        work()
    except errors.KafkaError as error:
        return {"throttle_time_ms": 0, "error_code": error.errno}
    return {"throttle_time_ms": 0, "error_code": 0}
