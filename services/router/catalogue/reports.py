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
from smoa.identifiers import check_ulid, checked_tenant
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
    good: dict[K, Report] = {}
    for key, report in left.items():
        try:
            check_ulid(report.adapter_id)
            good[key] = report._replace(tenant=checked_tenant(report.tenant))
        except InvalidArgument as error:
            refused[key] = error
    async with registry.writing:
        there = await registry.catalogue.get_many(list({report.adapter_id for report in good.values()}))
        entries: dict[str, Entry] = {}
        for number, (key, report) in enumerate(good.items()):
            await now_and_then(number)
            try:
                found = entries.get(report.adapter_id) or there.get(report.adapter_id)
                if found is None or found[0].tenant != report.tenant:
                    raise NotFound("adapter", report.adapter_id)
                record, vector = found[:2]
                counts = record.statistics.after(report.statistics, now_us())
            except (NotFound, FailedPrecondition) as error:
                refused[key] = error
            else:
                entries[report.adapter_id] = Entry(dataclasses.replace(record, statistics=counts), vector)
        try:
            if entries:
                await registry.catalogue.write(list(entries.values()), together=False)
        except Conflict as conflict:
            for key in [key for key, report in left.items() if key not in refused and report.adapter_id not in conflict.lost]:
                del left[key]
            raise
    return refused
