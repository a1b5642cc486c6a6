"""Files of what was taken away a while ago move to where they cost less; they come back with `undo`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import grpc

from services.optimizer.control.caution import Caution
from services.optimizer.control.library import Library
from services.optimizer.control.reporting import AWAY
from smoa.client import SmoaClient

_log = logging.getLogger(__name__)
_AT_ONCE_S: Final = 5.0
"""Of a pass, in which nothing else is done."""


class Archiving:
    """What this worker moves."""

    def __init__(self, client: SmoaClient, library: Library, caution: Caution) -> None:
        self._client, self._library, self._caution = client, library, caution
        self._tried = set[str]()
        """Ids of those that were refused, or whose file another adapter uses."""

    async def run(self, owns: Callable[[str], bool]) -> int:
        """Move what is due; returns how many files did.

        Raises:
            grpc.aio.AioRpcError: the registry is away; the next pass goes on.
        """
        if self._caution.archive_after_s <= 0 or self._caution.mode == "observe":
            return 0
        before_us, moved = int((time.time() - self._caution.archive_after_s) * 1e6), 0
        self._tried &= self._library.away.keys()
        due = [
            (adapter_id, one.tenant)
            for adapter_id, one in self._library.away.items()
            if not one.is_archived and one.since_us < before_us and adapter_id not in self._tried and owns(adapter_id)
        ]
        began_s = time.monotonic()
        for adapter_id, tenant in due:
            if time.monotonic() - began_s > _AT_ONCE_S:
                break
            self._tried.add(adapter_id)
            try:
                moved += (await self._client.archive(tenant, adapter_id)).archived_at_us > 0
            except grpc.aio.AioRpcError as error:
                if error.code() in AWAY:
                    self._tried.discard(adapter_id)
                    raise
                _log.warning("the file of %s stays where it is: %s", adapter_id, error.details())
        return moved
