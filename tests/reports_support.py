"""Counts as an optimizer would report them."""

from __future__ import annotations

from smoa.client import SmoaClient
from smoa.v1 import registry_pb2


async def refusal_of(
    client: SmoaClient, tenant: str, adapter_id: str, statistics: registry_pb2.AdapterStatistics
) -> registry_pb2.ReportResult:
    """What the registry says of one adapter's."""
    [result] = await client.report_statistics(
        [registry_pb2.ReportedStatistics(tenant=tenant, adapter_id=adapter_id, statistics=statistics)]
    )
    return result


async def report_one(client: SmoaClient, tenant: str, adapter_id: str, statistics: registry_pb2.AdapterStatistics) -> None:
    """Have one adapter's counts taken."""
    result = await refusal_of(client, tenant, adapter_id, statistics)
    assert not result.code, result
