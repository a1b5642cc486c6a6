"""Files of retired adapters, moved to where they cost less. They are read there, too, so whoever begins to use one meanwhile finds it."""

from __future__ import annotations

import dataclasses

from services.router.catalogue.changes import check_move, now_us
from services.router.catalogue.port import Conflict, Entry
from services.router.catalogue.records import AdapterRecord
from services.router.catalogue.registry import Registry
from smoa.access.noting import note_before
from smoa.identifiers import checked_tenant


async def archive(registry: Registry, tenant: str, adapter_id: str) -> AdapterRecord:
    """Move a retired adapter's file, unless another adapter is in use that has the same; again is fine.

    Raises:
        NotFound: no adapter of the tenant's.
        FailedPrecondition: it is not retired.
    """
    return await registry.whole(lambda: _archive(registry, tenant, adapter_id))


async def _archive(registry: Registry, tenant: str, adapter_id: str) -> AdapterRecord:
    async with registry.writing:
        record, vector = await registry.owned(checked_tenant(tenant), adapter_id)
        check_move(record, ("retired",), "archived")
        note_before(record.state)
        if record.archived_at_us:
            return record
        users = await registry.users_of(record, "active", "canary")
        if users is None or await registry.catalogue.scroll(users, "", 1):
            return record
        await registry.files.archive(record.digest)
        try:
            # Not as an update: how long it has been away is counted from when it was retired.
            record = dataclasses.replace(record, archived_at_us=now_us())
            await registry.catalogue.write([Entry(record, vector)])
        except Conflict:  # perhaps it was restored meanwhile
            await registry.files.bring_back(record.digest)
            raise
        return record
