"""The client's part that plans and decides changes of a library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence

from smoa.listing import pages
from smoa.v1 import changes_pb2, changes_pb2_grpc


class ChangesClient:
    """What `SmoaClient` can do with the changes that are planned, and with freezes."""

    changes: changes_pb2_grpc.ChangeServiceAsyncStub
    _timeout_s: float

    async def propose_change(
        self,
        tenant: str,
        kind: changes_pb2.ChangeKind,
        adapter_ids: Sequence[str],
        reason: str,
        evidence: Mapping[str, float] | None = None,
        merge_id: str = "",
    ) -> changes_pb2.PlannedChange:
        """Plan a change; one that is there already is returned as it is."""
        request = changes_pb2.ProposeChangeRequest(
            tenant=tenant, kind=kind, adapter_ids=adapter_ids, merge_id=merge_id, reason=reason, evidence=evidence or {}
        )
        return await self.changes.ProposeChange(request, timeout=self._timeout_s)

    async def begin_change(self, tenant: str, change_id: str, most_per_hour: int) -> changes_pb2.PlannedChange:
        """Take a place of the tenant's hour for a change."""
        request = changes_pb2.BeginChangeRequest(tenant=tenant, change_id=change_id, most_per_hour=most_per_hour)
        return await self.changes.BeginChange(request, timeout=self._timeout_s)

    async def advance_change(
        self,
        tenant: str,
        change_id: str,
        state: changes_pb2.ChangeState,
        reason: str,
        evidence: Mapping[str, float] | None = None,
        child_digest: str = "",
    ) -> changes_pb2.PlannedChange:
        """Say that a change passed its gate, was refused by it, or is not wanted any more."""
        request = changes_pb2.AdvanceChangeRequest(
            tenant=tenant, change_id=change_id, state=state, reason=reason, evidence=evidence or {}, child_digest=child_digest
        )
        return await self.changes.AdvanceChange(request, timeout=self._timeout_s)

    async def decide_change(self, tenant: str, change_id: str, *, approve: bool, reason: str = "") -> changes_pb2.PlannedChange:
        """Say yes or no to a change that is proposed."""
        request = changes_pb2.DecideChangeRequest(tenant=tenant, change_id=change_id, approve=approve, reason=reason)
        return await self.changes.DecideChange(request, timeout=self._timeout_s)

    async def list_changes(
        self, tenant: str = "public", *, states: Sequence[changes_pb2.ChangeState] = (), all_tenants: bool = False
    ) -> AsyncIterator[changes_pb2.PlannedChange]:
        """Every change of a listing, page by page."""
        request = changes_pb2.ListChangesRequest(tenant=tenant, states=states, page_size=500, all_tenants=all_tenants)

        def page_after(token: str) -> Awaitable[changes_pb2.ListChangesResponse]:
            request.page_token = token
            return self.changes.ListChanges(request, timeout=self._timeout_s)

        async for page in pages(page_after):
            for change in page.changes:
                yield change

    async def freeze(
        self, tenant: str | None, base_model: str = "", reason: str = "", *, incident: bool = False
    ) -> changes_pb2.FreezeRecord:
        """Keep the optimizer's hands off a tenant (None: every one), or a base model of it."""
        request = changes_pb2.FreezeRequest(
            tenant=tenant or "", all_tenants=tenant is None, base_model=base_model, reason=reason, incident=incident
        )
        return (await self.changes.Freeze(request, timeout=self._timeout_s)).freeze

    async def thaw(self, tenant: str | None, base_model: str = "", *, incident: bool = False) -> None:
        """Let it go on."""
        request = changes_pb2.FreezeRequest(
            tenant=tenant or "", all_tenants=tenant is None, base_model=base_model, incident=incident, thaw=True
        )
        await self.changes.Freeze(request, timeout=self._timeout_s)

    async def list_freezes(self, tenant: str = "public", *, all_tenants: bool = False) -> Sequence[changes_pb2.FreezeRecord]:
        """Freezes that concern a tenant, or all."""
        request = changes_pb2.ListFreezesRequest(tenant=tenant, all_tenants=all_tenants)
        return (await self.changes.ListFreezes(request, timeout=self._timeout_s)).freezes
