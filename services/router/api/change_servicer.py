"""`ChangeService`: changes that are planned and freezes, to the domain and back."""

from __future__ import annotations

import dataclasses
from typing import Any

from services.router.api.enums import word_of
from services.router.api.tenants import tenant_of
from services.router.catalogue.freezes import Freeze, Freezes
from services.router.catalogue.planned_changes import KINDS, STATES, ChangeKind, ChangeState, PlannedChange, PlannedChanges
from smoa.events import CHANGES, Event, event
from smoa.identifiers import chosen_word
from smoa.v1 import changes_pb2, changes_pb2_grpc

Context = Any


class ChangeServicer(changes_pb2_grpc.ChangeServiceServicer):
    """`smoa.v1.ChangeService`."""

    def __init__(self, planned: PlannedChanges, freezes: Freezes) -> None:
        self._planned, self._freezes = planned, freezes

    async def ProposeChange(self, request: changes_pb2.ProposeChangeRequest, context: Context) -> changes_pb2.PlannedChange:  # noqa: N802
        """See the contract."""
        word = word_of(changes_pb2.ChangeKind, request.kind, "CHANGE_KIND_", "kind")
        kind: ChangeKind = chosen_word(word, KINDS, "kind", "is not given", "say what the change is")
        made = await self._planned.propose(
            request.tenant, kind, request.adapter_ids, request.merge_id, request.reason, dict(request.evidence)
        )
        return to_change(made)

    async def BeginChange(self, request: changes_pb2.BeginChangeRequest, context: Context) -> changes_pb2.PlannedChange:  # noqa: N802
        """See the contract."""
        return to_change(await self._planned.begin(request.tenant, request.change_id, request.most_per_hour))

    async def AdvanceChange(self, request: changes_pb2.AdvanceChangeRequest, context: Context) -> changes_pb2.PlannedChange:  # noqa: N802
        """See the contract."""
        state = _state(request.state)
        change = await self._planned.advance(
            request.tenant, request.change_id, state, request.reason, dict(request.evidence), request.child_digest
        )
        return to_change(change)

    async def DecideChange(self, request: changes_pb2.DecideChangeRequest, context: Context) -> changes_pb2.PlannedChange:  # noqa: N802
        """See the contract."""
        return to_change(await self._planned.decide(request.tenant, request.change_id, approve=request.approve, reason=request.reason))

    async def ListChanges(self, request: changes_pb2.ListChangesRequest, context: Context) -> changes_pb2.ListChangesResponse:  # noqa: N802
        """See the contract."""
        tenant = tenant_of(request)
        states = [_state(one) for one in request.states]
        found, token = await self._planned.page(tenant, states, request.page_size, request.page_token)
        return changes_pb2.ListChangesResponse(changes=[to_change(one) for one in found], next_page_token=token)

    async def Freeze(self, request: changes_pb2.FreezeRequest, context: Context) -> changes_pb2.FreezeResponse:  # noqa: N802
        """See the contract."""
        tenant = tenant_of(request)
        if request.thaw:
            await self._freezes.thaw(tenant, request.base_model, incident=request.incident)
            return changes_pb2.FreezeResponse()
        made = await self._freezes.freeze(tenant, request.base_model, request.reason, incident=request.incident)
        return changes_pb2.FreezeResponse(freeze=_to_freeze(made))

    async def ListFreezes(self, request: changes_pb2.ListFreezesRequest, context: Context) -> changes_pb2.ListFreezesResponse:  # noqa: N802
        """See the contract."""
        found = await self._freezes.all(tenant_of(request))
        return changes_pb2.ListFreezesResponse(freezes=[_to_freeze(one) for one in found])


def _state(value: int) -> ChangeState:
    word = word_of(changes_pb2.ChangeState, value, "CHANGE_STATE_", "state")
    return chosen_word(word, STATES, "state", "is not given", "say which")


def to_change(change: PlannedChange) -> changes_pb2.PlannedChange:
    """The contract's form of a change."""
    return changes_pb2.PlannedChange(
        change_id=change.change_id,
        tenant=change.tenant,
        kind=f"CHANGE_KIND_{change.kind.upper()}",
        adapter_ids=change.adapter_ids,
        state=f"CHANGE_STATE_{change.state.upper()}",
        merge_id=change.merge_id,
        child_digest=change.child_digest,
        approved=change.approved,
        begun_at_us=change.begun_at_us,
        created_at_us=change.steps[0].at_us,
        updated_at_us=change.steps[-1].at_us,
        steps=[
            changes_pb2.ChangeStep(
                state=f"CHANGE_STATE_{one.state.upper()}", reason=one.reason, evidence=dict(one.evidence), at_us=one.at_us, by=one.by
            )
            for one in change.steps
        ],
    )


def change_event(change: PlannedChange) -> Event:
    """A change's newest step on its way to Kafka."""
    return event(CHANGES, change.change_id, to_change(change))


def _to_freeze(freeze: Freeze) -> changes_pb2.FreezeRecord:
    known = dataclasses.asdict(freeze)
    known["since_us"] = known.pop("created_at_us")
    return changes_pb2.FreezeRecord(**known)
