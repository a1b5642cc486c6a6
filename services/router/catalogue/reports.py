"""What an optimizer has counted, of many adapters at once: shown beside what else is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from services.router.catalogue.changes import now_us
from services.router.catalogue.port import Conflict, Entry
from services.router.catalogue.registry import Registry
from services.router.catalogue.statistics import Statistics
from smoa.errors import FailedPrecondition, InvalidArgument, NotFound, SmoaError
from smoa.identifiers import checked_tenant
from smoa.tasks import now_and_then

K = TypeVar("K")


class Report(NamedTuple):
    """An adapter's counts."""

    tenant: str
    adapter_id: str
    statistics: Statistics


async def take_reports(registry: Registry, reports: Mapping[K, Report]) -> dict[K, SmoaError]:
    """Write the counts down; what is wrong with a report is said, and the others are taken. They make no lifecycle events: they come every
    second.

    Raises:
        ResourceExhausted: too many wait.
        Unavailable: other routers always wrote first; all may be reported again.
    """
    left = dict(reports)
    return await registry.whole(lambda: _take(registry, left))


async def _take(registry: Registry, left: dict[K, Report]) -> dict[K, SmoaError]:
    """Of those that are left; when others wrote some of them first, those are."""
    refused: dict[K, SmoaError] = {}
    entries: dict[str, Entry] = {}
    async with registry.writing:
        for number, (key, report) in enumerate(left.items()):
            await now_and_then(number)
            try:
                tenant = checked_tenant(report.tenant)
                if (entry := entries.get(report.adapter_id)) is None:
                    entry = Entry(*await registry.owned(tenant, report.adapter_id))
                elif entry.record.tenant != tenant:
                    raise NotFound("adapter", report.adapter_id)
                counts = entry.record.statistics.after(report.statistics, now_us())
            except (InvalidArgument, NotFound, FailedPrecondition) as error:
                refused[key] = error
            else:
                entries[report.adapter_id] = entry._replace(record=dataclasses.replace(entry.record, statistics=counts))
        try:
            if entries:
                await registry.catalogue.write(list(entries.values()), together=False)
        except Conflict as conflict:
            for key in [key for key, report in left.items() if key not in refused and report.adapter_id not in conflict.lost]:
                del left[key]
            raise
    return refused
