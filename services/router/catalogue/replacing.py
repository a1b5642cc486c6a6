"""A new adapter under a name that its tenant uses already: refused where it can only be a mistake, or put in the other's place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from collections.abc import Set as AbstractSet
from typing import Final

from services.router.catalogue.changes import retired
from services.router.catalogue.pagination import pages_of_adapters
from services.router.catalogue.port import Catalogue, Entry
from services.router.catalogue.records import AdapterRecord, Scope, State
from smoa.errors import AlreadyExists, FailedPrecondition

_CANARIES_AT_ONCE: Final = 500
"""Of a listing of those that are on trial."""
LIVE: Final[tuple[State, ...]] = ("active", "canary", "missing")
MAX_NAMESAKES: Final = 100
"""Adapters of one name that a new one is compared with."""


async def check_name(catalogue: Catalogue, record: AdapterRecord) -> None:
    """Raise AlreadyExists for a name that a live adapter has with the same examples: no query could be meant for one and not the other."""
    for one in await _namesakes(catalogue, record):
        if set(one.examples) == set(record.examples):
            raise AlreadyExists(
                f"name: {record.name!r} is the name of {one.adapter_id}, which has the same examples, so both would answer every query by "
                "half; push it with --replace (`replace` of RegisterAdapter) to retire that one in the same step, or give it another name"
            )


async def replaced_by(catalogue: Catalogue, record: AdapterRecord) -> list[Entry]:
    """The live adapter that a new one takes the place of, as retired: its namesake; of several, the one with the same examples.

    Raises:
        FailedPrecondition: it is one of several, on trial, or other tenants may use only one of the two.
    """
    namesakes = await _namesakes(catalogue, record)
    meant = [one for one in namesakes if set(one.examples) == set(record.examples)] or namesakes
    if len(meant) > 1:
        ids = ", ".join(one.adapter_id for one in meant[:5])
        raise FailedPrecondition(
            f"name: {record.name!r} is the name of {len(meant)} live adapters ({ids}); retire those that this one takes the place of with "
            "`smoa adapter retire`, then push it again"
        )
    found = await catalogue.get(meant[0].adapter_id) if meant else None
    if found is None or found[0].state not in LIVE:
        return []
    old, vector = found
    await check_not_on_trial(catalogue, old.tenant, {old.adapter_id})
    if old.shared != record.shared:
        shared, private = (old, record) if old.shared else (record, old)
        raise FailedPrecondition(
            f"adapter: {shared.adapter_id} is shared and {private.adapter_id} is not; replace it with one that the same tenants may use"
        )
    return [retired(old, vector, f"replaced by {record.adapter_id}")]


async def check_not_on_trial(catalogue: Catalogue, tenant: str, adapter_ids: AbstractSet[str]) -> None:
    """Raise FailedPrecondition for one on trial, or one that another is tried against."""
    async for canaries in on_trial(catalogue, tenant):
        for canary in canaries:
            if there := adapter_ids & {canary.adapter_id, *canary.tried_against}:
                raise FailedPrecondition(
                    f"parent: {min(there)} has a canary on trial already ({canary.adapter_id}); wait until it is settled, or roll it back"
                )


def on_trial(catalogue: Catalogue, tenant: str | None = None) -> AsyncIterator[list[AdapterRecord]]:
    """All canaries of a tenant, or of all tenants, by id, in pages."""
    return pages_of_adapters(catalogue, Scope(tenant=tenant, include_shared=False, states=("canary",)), _CANARIES_AT_ONCE)


async def _namesakes(catalogue: Catalogue, record: AdapterRecord) -> list[AdapterRecord]:
    """The tenant's other live adapters of the same name and base model."""
    scope = Scope(
        tenant=record.tenant,
        include_shared=False,
        base_model=record.base_model,
        name=record.name,
        states=LIVE,
    )
    return [one for one in await catalogue.scroll(scope, "", MAX_NAMESAKES) if one.adapter_id != record.adapter_id]
