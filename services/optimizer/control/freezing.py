"""What is left alone now: what people froze, and incidents, which the registry is told so that every worker knows them after a restart."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from services.optimizer.policy.incidents import Level, Scope, incidents
from services.optimizer.policy.library_policy import AdapterView, Family, Rules
from smoa.client import SmoaClient
from smoa.v1.changes_pb2 import FreezeRecord

_log = logging.getLogger(__name__)
TOLD_AGAIN_US: Final = int(300e6)
"""After so long the registry is told again of an incident that goes on. A worker that starts takes for open what was seen in twice that."""


class Freezing:
    """Owns nothing: the registry keeps the freezes. `incident_tenants`: of whose answers so much fails now that what is said of them is set
    aside.
    """

    def __init__(self, client: SmoaClient, rules: Rules) -> None:
        self._client, self._rules = client, rules
        self.incident_tenants: frozenset[str] = frozenset()
        self._found: dict[Scope, str] = {}
        self._freezes: list[FreezeRecord] = []

    async def look(self, levels: Mapping[Scope, Level], families: Iterable[Family]) -> None:
        """See what is frozen now: by people; by incidents that are seen now; and for a half-life of the recent counts after one, as what
        failed then is still in them.

        Args:
            levels: Success of each tenant and base model.
            families: Those of the library.
        """
        self._found = found = incidents(levels, self._rules)
        now_us = time.time_ns() // 1000
        listed = await self._client.list_freezes(all_tenants=True)
        if new := [one for one in found.items() if _is_to_be_told(one[0], listed, now_us)]:
            for scope, why in new:
                await self._client.freeze(*_place(scope), reason=why, incident=True)
            listed = await self._client.list_freezes(all_tenants=True)
        freezes = list[FreezeRecord]()
        for one in listed:
            over = one.incident and _scope(one) not in found and (one.thawed or now_us - one.seen_at_us > self._rules.half_life_s * 1e6)
            if over:
                await self._client.thaw(one.tenant or None, one.base_model, incident=True)
            elif not one.thawed:
                freezes.append(one)
        seen = [one for one in freezes if one.incident and _scope(one) in found]
        for one in seen:
            if one.since_us == one.seen_at_us and new:
                _log.warning("%s", one.reason)
        held = (one.tenant for one in families if any(_holds(freeze, one.tenant, one.base_model) for freeze in seen))
        self.incident_tenants = frozenset(held)
        self._freezes = freezes

    def protected(self, view: AdapterView) -> AdapterView:
        """It, protected if something holds it, as of the last look."""
        of_it = [one for one in self._freezes if _holds(one, view.tenant, view.base_model)]
        if view.protected or not of_it:
            return view
        [why, *_] = [
            (self._found.get(_scope(one)) or f"an incident of its {_scope(one).kind} was not long ago")
            if one.incident
            else f"frozen: {one.reason}"
            for one in of_it
        ]
        return dataclasses.replace(view, protected=why, frozen=True)

    async def recall(self, seen_within_s: float) -> None:
        """After a start: tenants whose incident was seen so recently that it is probably not over; until the first pass knows better."""
        after_us = time.time_ns() // 1000 - int(seen_within_s * 1e6)
        freezes = await self._client.list_freezes(all_tenants=True)
        fresh = [one for one in freezes if one.incident and not one.thawed and one.seen_at_us > after_us]
        self.incident_tenants = frozenset(one.tenant for one in fresh if one.tenant)

    async def holds(self, tenant: str, base_model: str) -> bool:
        """Whether something holds a tenant's adapters of a base model, by what the registry says now."""
        return any(not one.thawed and _holds(one, tenant, base_model) for one in await self._client.list_freezes(tenant))


def _is_to_be_told(scope: Scope, listed: Sequence[FreezeRecord], now_us: int) -> bool:
    """Whether the registry does not know of an incident, or has not heard of it for a while: each time is a line of the audit."""
    there = [one for one in listed if _scope(one) == scope]
    return not there or any(one.incident and now_us - one.seen_at_us > TOLD_AGAIN_US for one in there)


def _place(scope: Scope) -> tuple[str | None, str]:
    return (scope.name, "") if scope.kind == "tenant" else (None, scope.name)


def _scope(freeze: FreezeRecord) -> Scope:
    return Scope("tenant", freeze.tenant) if freeze.tenant else Scope("base model", freeze.base_model)


def _holds(freeze: FreezeRecord, tenant: str, base_model: str) -> bool:
    return freeze.tenant in ("", tenant) and freeze.base_model in ("", base_model)
