"""What a worker knows of the library: all of it is read once, then what was written since."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from services.optimizer.control.reasons import TAKEN_AWAY
from smoa.client import SmoaClient
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

_EVERY_STATE: Final = (
    common.ADAPTER_STATE_ACTIVE,
    common.ADAPTER_STATE_CANARY,
    common.ADAPTER_STATE_RETIRED,
    common.ADAPTER_STATE_PURGED,
    common.ADAPTER_STATE_MISSING,
)
LOOK_BACK_S: Final = 60.0
"""So much more than since the last time is asked for: clocks differ, and a write takes a while from its time to where it is seen."""
READ_ANEW_S: Final = 86400.0
"""After so long all is read again, for what no listing of what changed may show: a catalogue that was restored."""


class Away(NamedTuple):
    """An adapter that the optimizer took away, and whose weights are there."""

    tenant: str
    since_us: int
    reason: str
    is_archived: bool


class Library:
    """Every tenant's adapters that are active or on trial, and those whose weights may be purged one day."""

    def __init__(self, client: SmoaClient) -> None:
        self._client = client
        self._live: dict[str, registry_pb2.Adapter] = {}
        self._away: dict[str, Away] = {}
        self._read_at_us = self._began_us = 0

    @property
    def live(self) -> Mapping[str, registry_pb2.Adapter]:
        """By id, in order: those that are active or on trial."""
        return self._live

    @property
    def away(self) -> Mapping[str, Away]:
        """By id."""
        return self._away

    async def refresh(self) -> None:
        """Be as the registry is.

        Raises:
            grpc.aio.AioRpcError: it is away; what is known stays as it is.
        """
        began_us = time.time_ns() // 1000
        since_us = self._began_us - int(LOOK_BACK_S * 1e6) if began_us - self._read_at_us < READ_ANEW_S * 1e6 else 0
        listed = self._client.list_all(states=_EVERY_STATE, all_tenants=True, written_since_us=since_us)
        found = [one async for one in listed]
        if not since_us:
            self._live, self._away, self._read_at_us = {}, {}, began_us
        self._take(found)
        self._began_us = began_us

    def _take(self, adapters: Iterable[registry_pb2.Adapter]) -> None:
        is_new = False
        for one in adapters:
            adapter_id = one.adapter_id
            if one.state in (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY):
                is_new |= adapter_id not in self._live
                self._live[adapter_id] = one
            else:
                self._live.pop(adapter_id, None)
            if one.state == common.ADAPTER_STATE_RETIRED and not one.pinned and one.state_reason.startswith(TAKEN_AWAY):
                self._away[adapter_id] = Away(one.tenant, one.updated_at_us, one.state_reason, one.archived_at_us > 0)
            else:
                self._away.pop(adapter_id, None)
        if is_new:  # ids begin with their time, so they are nearly in order
            self._live = dict(sorted(self._live.items()))
