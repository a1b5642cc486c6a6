"""Imported for its effect: committed offsets are read as the group's coordinator means them.

A broker that is not the group's coordinator, or that is still loading it, says so with one error for the whole answer and an empty list
(OffsetFetch from version 2 on). aiokafka 0.14 looks at the list only, takes it that nothing was ever committed, and goes on asking the same
broker: seen as a reader that began at the log's beginning, and as one that saw no commit for minutes, when one of three brokers had been
restarted (docs/decisions/0002).
"""

from __future__ import annotations

from typing import Any, Final

from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import GroupCoordinatorNotAvailableError, NoError, NotCoordinatorForGroupError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest

_ELSEWHERE: Final = (NotCoordinatorForGroupError, GroupCoordinatorNotAvailableError)
_send = GroupCoordinator._send_req


async def _send_and_look(self: GroupCoordinator, request: Any) -> Any:
    response = await _send(self, request)
    if isinstance(request, OffsetFetchRequest):
        error = for_code(getattr(response, "error_code", 0))
        if error in _ELSEWHERE:
            self.coordinator_dead()
        if error is not NoError:
            raise error(f"of offsets of {self.group_id}")  # the client tries again after those that pass
    return response


GroupCoordinator._send_req = _send_and_look
