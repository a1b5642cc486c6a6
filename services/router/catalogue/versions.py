"""Two versions of one thing: the younger is on trial against the older, and the one that does better stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from services.router.catalogue.changes import Change, as_it_is, now_us, retired
from services.router.catalogue.merges import MAX_CANARY_SHARE
from services.router.catalogue.port import Entry
from services.router.catalogue.records import AdapterRecord
from services.router.catalogue.registry import Registry
from services.router.catalogue.replacing import check_not_on_trial
from smoa.access.noting import note_before
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.identifiers import checked_tenant

MIN_LIKENESS: Final = 0.7
"""Least cosine of two versions' examples. Of the example library's jobs, sets of five inputs of one job have 0.74 and more, of two jobs
0.62 and less; sets of twenty 0.92 and more, and 0.68 and less.
"""
SUPERSEDED: Final = "superseded by "
"""How the reason of a version begins that a younger one took the place of; that one's id follows."""


class Versions:
    """Writes through the registry, under its lock."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def begin(
        self, tenant: str, adapter_id: str, older_id: str, canary_share: float, reason: str, evidence: Mapping[str, float] | None = None
    ) -> AdapterRecord:
        """Put an active adapter on trial against an older one; the same again returns it as it is.

        Raises:
            InvalidArgument: a share out of bounds, or adapters that were made for other queries.
            NotFound: no such adapter of the tenant's.
            FailedPrecondition: one of them is not active, is pinned or on trial, or other tenants may use only one of the two.
        """
        if not 0 < canary_share <= MAX_CANARY_SHARE:
            raise InvalidArgument("canary_share", f"{canary_share} is outside 0..{MAX_CANARY_SHARE}", "send a share of the queries")
        if adapter_id == older_id:
            raise InvalidArgument("older_id", "is the adapter itself", "name the version that it is tried against")
        tenant = checked_tenant(tenant)
        return await self._registry.whole(lambda: self._begin(tenant, adapter_id, older_id, canary_share, reason, evidence or {}))

    async def _begin(
        self, tenant: str, adapter_id: str, older_id: str, canary_share: float, reason: str, evidence: Mapping[str, float]
    ) -> AdapterRecord:
        registry = self._registry
        async with registry.writing:
            (younger, vector), (older, where) = await registry.owned(tenant, adapter_id), await registry.owned(tenant, older_id)
            note_before(younger.state)
            if younger.state == "canary" and younger.tried_against == (older_id,):
                registry.changed([as_it_is(younger)])
                return younger
            _check_versions([younger, older])
            await check_not_on_trial(registry.catalogue, tenant, {adapter_id, older_id})
            if (likeness := float(vector @ where)) < MIN_LIKENESS:
                raise InvalidArgument(
                    "older_id", f"was made for other queries (cosine {likeness:.2f})", "give one of them another name, or retire it"
                )
            now = now_us()
            trial = dataclasses.replace(
                younger,
                state="canary",
                state_reason=reason,
                canary_share=canary_share,
                canary_taken=0,
                canary_since_us=now,
                canary_baseline={older_id: older.statistics},
                updated_at_us=now,
            )
            # The older one is written as it is: so that nobody retires it, or begins another trial, on what was read before.
            await registry.write([Entry(trial, vector), Entry(older, where)])
        registry.changed([as_it_is(trial, evidence)])
        return trial

    async def settle(
        self, tenant: str, adapter_id: str, *, promote: bool, reason: str, evidence: Mapping[str, float] | None = None
    ) -> AdapterRecord:
        """Retire the older one, or let both go on; the same again returns the younger as it is.

        Raises:
            NotFound: no such adapter of the tenant's.
            FailedPrecondition: it was on no such trial.
        """
        tenant = checked_tenant(tenant)
        return await self._registry.whole(lambda: self._settle(tenant, adapter_id, promote, reason, evidence or {}))

    async def _settle(self, tenant: str, adapter_id: str, promote: bool, reason: str, evidence: Mapping[str, float]) -> AdapterRecord:
        registry = self._registry
        async with registry.writing:
            younger, vector = await registry.owned(tenant, adapter_id)
            note_before(younger.state)
            if younger.merge_id or not younger.tried_against or younger.state not in ("canary", "active"):
                raise FailedPrecondition(f"adapter: {adapter_id} is {younger.state} and on no trial, so there is nothing to settle")
            olders = [await registry.owned(tenant, one) for one in younger.tried_against]
            if younger.state == "active":
                registry.changed([as_it_is(younger), *(as_it_is(older) for older, _ in olders)])
                return younger
            gone = [
                retired(older, where, f"{SUPERSEDED}{adapter_id}: {reason}")
                for older, where in olders
                if promote and older.state == "active"  # one that somebody retired during the trial stays as it is
            ]
            said = reason if promote else f"stays beside {', '.join(younger.tried_against)}: {reason}"
            younger = dataclasses.replace(younger, state="active", state_reason=said, updated_at_us=now_us())
            await registry.write([Entry(younger, vector), *gone])
        first = Change("promoted" if promote else "restored", younger, reason, evidence)
        registry.changed([first, *(Change("retired", one.record, one.record.state_reason) for one in gone)])
        return younger


def _check_versions(both: Sequence[AdapterRecord]) -> None:
    for one in both:
        if one.state != "active":
            raise FailedPrecondition(f"adapter: {one.adapter_id} is {one.state}; only active ones are tried against each other")
        if one.pinned:
            raise FailedPrecondition(f"adapter: {one.adapter_id} is pinned; unpin it with `smoa adapter pin --off` first")
    if both[0].base_model != both[1].base_model or both[0].shared != both[1].shared:
        raise FailedPrecondition("adapter: the two differ in base model, or in who may use them; versions of one thing do not")
