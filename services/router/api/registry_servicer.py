"""`RegistryService`: adapters and compositions, to the domain and back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict

from services.router.api.enums import word_of
from services.router.api.tenants import tenant_of
from services.router.catalogue.archiving import archive
from services.router.catalogue.changes import Change
from services.router.catalogue.compositions import Composition, Compositions
from services.router.catalogue.importing import Imported
from services.router.catalogue.merges import Merges
from services.router.catalogue.planned_changes import (
    ChangeState,
    PlannedChanges,
    change_id_of,
    trial_change_id,
    version_change_id,
)
from services.router.catalogue.records import AdapterRecord, Scope, State
from services.router.catalogue.registry import Registry
from services.router.catalogue.reports import Report, take_reports
from services.router.catalogue.statistics import COUNTED, MAX_COUNT, MAX_EPOCH_CHARACTERS, OLDER, REPORTED, Statistics
from services.router.catalogue.uploads import Uploads
from services.router.catalogue.versions import SUPERSEDED, Versions
from smoa.errors import InvalidArgument, SmoaError
from smoa.events import LIFECYCLE, Event, event
from smoa.identifiers import ulid_of
from smoa.v1 import common_pb2 as common
from smoa.v1 import events_pb2, registry_pb2, registry_pb2_grpc

Context = Any
_STATES: dict[int, State] = {
    common.ADAPTER_STATE_ACTIVE: "active",
    common.ADAPTER_STATE_RETIRED: "retired",
    common.ADAPTER_STATE_PURGED: "purged",
    common.ADAPTER_STATE_CANARY: "canary",
    common.ADAPTER_STATE_MISSING: "missing",
}


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """`smoa.v1.RegistryService`."""

    def __init__(self, registry: Registry, compositions: Compositions, uploads: Uploads, planned: PlannedChanges) -> None:
        """`planned` is told of what was done of it, whoever did it."""
        self._registry, self._compositions, self._uploads, self._planned = registry, compositions, uploads, planned
        self._merges, self._versions = Merges(registry), Versions(registry)

    async def RegisterAdapter(self, request: registry_pb2.RegisterAdapterRequest, context: Context) -> registry_pb2.Adapter:  # noqa: N802
        """See the contract."""
        return to_adapter(await self._registry.register(request.tenant, request.digest, request.examples, replace=request.replace))

    async def UploadAdapter(  # noqa: N802
        self, request_iterator: AsyncIterator[registry_pb2.UploadAdapterRequest], context: Context
    ) -> registry_pb2.Adapter:
        """See the contract."""
        first = await anext(request_iterator, registry_pb2.UploadAdapterRequest())
        if not first.HasField("register"):
            raise InvalidArgument("register", "is not in the first message", "say there what RegisterAdapter is told")

        async def parts() -> AsyncIterator[bytes]:
            if first.part:
                yield first.part
            async for request in request_iterator:
                if request.HasField("register"):
                    raise InvalidArgument("register", "comes again", "say it in the first message only")
                yield request.part

        about = first.register
        record = await self._uploads.take(about.tenant, about.digest, about.examples, first.file_bytes, parts(), replace=about.replace)
        return to_adapter(record)

    async def DownloadAdapter(  # noqa: N802
        self, request: registry_pb2.DownloadAdapterRequest, context: Context
    ) -> AsyncIterator[registry_pb2.DownloadAdapterResponse]:
        """See the contract."""
        async for part in self._uploads.parts(request.tenant, request.adapter_id):
            yield registry_pb2.DownloadAdapterResponse(part=part)

    async def ImportAdapters(  # noqa: N802
        self, request_iterator: AsyncIterator[registry_pb2.ImportAdaptersRequest], context: Context
    ) -> AsyncIterator[registry_pb2.ImportAdaptersResponse]:
        """See the contract."""
        durable = added = missing = 0
        async for request in request_iterator:
            imported = await asyncio.to_thread(lambda: [_to_imported(one) for one in request.adapters])  # noqa: B023  awaited at once
            counts = await self._registry.import_adapters(request.tenant, imported, files_unchecked=request.files_unchecked)
            durable, added, missing = durable + len(imported), added + counts.added, missing + counts.missing
            yield registry_pb2.ImportAdaptersResponse(durable=durable, added=added, missing=missing)

    async def GetAdapter(self, request: registry_pb2.GetAdapterRequest, context: Context) -> registry_pb2.Adapter:  # noqa: N802
        """See the contract."""
        return to_adapter(await self._registry.get(request.tenant, request.adapter_id))

    async def ListAdapters(  # noqa: N802
        self, request: registry_pb2.ListAdaptersRequest, context: Context
    ) -> registry_pb2.ListAdaptersResponse:
        """See the contract."""
        scope = Scope(
            tenant=tenant_of(request),
            base_model=request.base_model or None,
            states=tuple(_STATES[state] for state in request.states if state in _STATES) or ("active",),
            all_tags=tuple(request.tags),
            name=request.name or None,
        )
        since_us = request.written_since_us
        records, token = await self._registry.list_adapters(scope, request.page_size, request.page_token, since_us)
        return registry_pb2.ListAdaptersResponse(adapters=[to_adapter(record) for record in records], next_page_token=token)

    async def UpdateAdapter(self, request: registry_pb2.UpdateAdapterRequest, context: Context) -> registry_pb2.Adapter:  # noqa: N802
        """See the contract."""
        return to_adapter(
            await self._registry.update(
                request.tenant,
                request.adapter_id,
                name=request.name if request.HasField("name") else None,
                tags=tuple(request.tags) if request.replace_tags else None,
                examples=request.examples,
                pinned=request.pinned if request.HasField("pinned") else None,
            )
        )

    async def ReportStatistics(  # noqa: N802
        self, request: registry_pb2.ReportStatisticsRequest, context: Context
    ) -> registry_pb2.ReportStatisticsResponse:
        """See the contract."""
        refused: dict[int, SmoaError] = {}
        reports: dict[int, Report] = {}
        for place, one in enumerate(request.reports):
            try:
                reports[place] = Report(one.tenant, one.adapter_id, _reported(one.statistics))
            except InvalidArgument as error:
                refused[place] = error
        refused |= await take_reports(self._registry, reports)
        results = [refused.get(place) for place in range(len(request.reports))]
        return registry_pb2.ReportStatisticsResponse(
            results=[registry_pb2.ReportResult(code=one.code if one else "", message=str(one or "")) for one in results]
        )

    async def RetireAdapter(self, request: registry_pb2.RetireAdapterRequest, context: Context) -> registry_pb2.Adapter:  # noqa: N802
        """See the contract."""
        before = await self._registry.get(request.tenant, request.adapter_id)
        record = await self._registry.retire(request.tenant, request.adapter_id, request.reason, request.evidence)
        await self._planned.happened(record.tenant, change_id_of("prune", record), "done", request.reason, request.evidence)
        if before.state == "canary":
            await self._planned.happened(record.tenant, trial_change_id(record), "undone", request.reason, request.evidence)
        return to_adapter(record)

    async def RestoreAdapter(self, request: registry_pb2.RestoreAdapterRequest, context: Context) -> registry_pb2.Adapter:  # noqa: N802
        """See the contract."""
        before = await self._registry.get(request.tenant, request.adapter_id)
        record = await self._registry.restore(request.tenant, request.adapter_id)
        change_id = change_id_of("prune", before)
        if before.state_reason.startswith(SUPERSEDED):
            younger_id = before.state_reason.removeprefix(SUPERSEDED).partition(":")[0]
            change_id = version_change_id(younger_id, before.adapter_id)
        await self._planned.happened(record.tenant, change_id, "undone", "restored", {})
        return to_adapter(record)

    async def ArchiveAdapter(self, request: registry_pb2.ArchiveAdapterRequest, context: Context) -> registry_pb2.Adapter:  # noqa: N802
        """See the contract."""
        return to_adapter(await archive(self._registry, request.tenant, request.adapter_id))

    async def PurgeAdapter(self, request: registry_pb2.PurgeAdapterRequest, context: Context) -> registry_pb2.Adapter:  # noqa: N802
        """See the contract."""
        record = await self._registry.purge(request.tenant, request.adapter_id)
        await self._planned.happened(record.tenant, change_id_of("purge", record), "done", "", {})
        return to_adapter(record)

    async def ApplyMerge(self, request: registry_pb2.ApplyMergeRequest, context: Context) -> registry_pb2.Adapter:  # noqa: N802
        """See the contract."""
        child = await self._merges.apply(
            request.tenant,
            request.merge_id,
            request.child_digest,
            request.parent_ids,
            request.reason,
            request.canary_share,
            request.evidence,
        )
        state: ChangeState = "trial" if child.state == "canary" else "done"
        await self._planned.happened(child.tenant, trial_change_id(child), state, request.reason, request.evidence)
        return to_adapter(child)

    async def TryVersion(self, request: registry_pb2.TryVersionRequest, context: Context) -> registry_pb2.Adapter:  # noqa: N802
        """See the contract."""
        younger = await self._versions.begin(
            request.tenant, request.adapter_id, request.older_id, request.canary_share, request.reason, request.evidence
        )
        await self._planned.happened(younger.tenant, trial_change_id(younger), "trial", request.reason, request.evidence)
        return to_adapter(younger)

    async def SettleTrial(self, request: registry_pb2.SettleTrialRequest, context: Context) -> registry_pb2.Adapter:  # noqa: N802
        """See the contract."""
        found = await self._registry.get(request.tenant, request.child_id)
        of: Merges | Versions = self._versions if found.tried_against and not found.merge_id else self._merges
        child = await of.settle(request.tenant, request.child_id, promote=request.promote, reason=request.reason, evidence=request.evidence)
        state: ChangeState = "done" if request.promote else "undone"
        await self._planned.happened(child.tenant, trial_change_id(child), state, request.reason, request.evidence)
        return to_adapter(child)

    async def CreateComposition(  # noqa: N802
        self, request: registry_pb2.CreateCompositionRequest, context: Context
    ) -> registry_pb2.Composition:
        """See the contract."""
        by_success = request.weighting == registry_pb2.COMPOSITION_WEIGHTING_MEASURED_SUCCESS
        root = MessageToDict(request.root)
        return _to_composition(await self._compositions.create(request.tenant, request.name, root, by_success=by_success))

    async def GetComposition(self, request: registry_pb2.GetCompositionRequest, context: Context) -> registry_pb2.Composition:  # noqa: N802
        """See the contract."""
        return _to_composition(await self._compositions.get(request.tenant, name=request.name, composition_id_=request.composition_id))

    async def ListCompositions(  # noqa: N802
        self, request: registry_pb2.ListCompositionsRequest, context: Context
    ) -> registry_pb2.ListCompositionsResponse:
        """See the contract."""
        found, token = await self._compositions.page(tenant_of(request), request.page_size, request.page_token)
        return registry_pb2.ListCompositionsResponse(compositions=[_to_composition(one) for one in found], next_page_token=token)

    async def DeleteComposition(  # noqa: N802
        self, request: registry_pb2.DeleteCompositionRequest, context: Context
    ) -> registry_pb2.DeleteCompositionResponse:
        """See the contract."""
        await self._compositions.delete(request.tenant, request.composition_id)
        return registry_pb2.DeleteCompositionResponse()


def _to_imported(one: registry_pb2.ImportedAdapter) -> Imported:
    adapter = one.adapter
    record = AdapterRecord(
        adapter_id=adapter.adapter_id,
        version=adapter.version,
        digest=adapter.digest,
        tenant="",
        name=adapter.name,
        kind=word_of(common.AdapterKind, adapter.kind, "ADAPTER_KIND_", "kind"),
        granularity="",
        specialization=word_of(common.Specialization, adapter.specialization, "SPECIALIZATION_", "specialization"),
        base_model=adapter.base_model,
        rank=adapter.rank,
        modules=tuple(adapter.modules),
        parameter_count=adapter.parameter_count,
        file_bytes=adapter.file_bytes,
        tags=tuple(adapter.tags),
        shared=adapter.shared,
        examples=tuple(one.examples),
    )
    return Imported(record, np.array(one.vector, np.float32) if one.vector else None)


def to_adapter(record: AdapterRecord) -> registry_pb2.Adapter:
    """The contract's form of a record; examples stay inside."""
    return registry_pb2.Adapter(
        adapter_id=record.adapter_id,
        version=record.version,
        digest=record.digest,
        tenant=record.tenant,
        name=record.name,
        kind=f"ADAPTER_KIND_{record.kind.upper()}",
        granularity=f"GRANULARITY_{record.granularity}",
        specialization=f"SPECIALIZATION_{record.specialization.upper()}",
        base_model=record.base_model,
        rank=record.rank,
        modules=record.modules,
        parameter_count=record.parameter_count,
        tags=record.tags,
        shared=record.shared,
        example_count=len(record.examples),
        parents=record.parents,
        state=f"ADAPTER_STATE_{record.state.upper()}",
        state_reason=record.state_reason,
        created_at_us=record.created_at_us,
        updated_at_us=record.updated_at_us,
        statistics=_statistics(record.statistics),
        merge_id=record.merge_id,
        file_bytes=record.file_bytes,
        pinned=record.pinned,
        canary_share=record.canary_share,
        canary_baseline={name: _statistics(one) for name, one in record.canary_baseline.items()},
        canary_since_us=record.canary_since_us,
        examples_digest=ulid_of(*sorted(record.examples)) if record.examples else "",
        archived_at_us=record.archived_at_us,
        restored_at_us=record.restored_at_us,
        restored_baseline=_statistics(record.restored_baseline) if record.restored_at_us else None,
    )


def _statistics(counts: Statistics) -> registry_pb2.AdapterStatistics:
    epochs = {name: registry_pb2.EpochCounts(**vars(one)) for name, one in counts.epochs.items()}
    return registry_pb2.AdapterStatistics(**{name: getattr(counts, name) for name in REPORTED}, epochs=epochs)


def _reported(report: registry_pb2.AdapterStatistics) -> Statistics:
    values = {name: getattr(report, name) for name in REPORTED}
    # Written so that NaN does not pass.
    sane = all(0 <= value <= (MAX_COUNT if name in COUNTED else sys.float_info.max) for name, value in values.items() if name != "epoch")
    # Sums of weights, added up in another order than each other: equal ones may differ in their last places.
    more = report.successes > report.outcomes or report.recent_successes > report.recent_outcomes * (1 + 1e-9)
    if not sane or more:
        problem = "holds a negative count, one that nobody can have counted, or more successes than outcomes"
        raise InvalidArgument("statistics", problem, "send what was counted")
    if len(report.epoch) > MAX_EPOCH_CHARACTERS or report.epoch == OLDER:
        remedy = f"give at most {MAX_EPOCH_CHARACTERS} characters, and not {OLDER!r}"
        raise InvalidArgument("statistics.epoch", f"{report.epoch[:80]!r} cannot be one", remedy)
    return Statistics(**values)


def _to_composition(composition: Composition) -> registry_pb2.Composition:
    return registry_pb2.Composition(
        composition_id=composition.composition_id,
        tenant=composition.tenant,
        name=composition.name,
        root=ParseDict(composition.root, registry_pb2.CompositionNode()),
        created_at_us=composition.created_at_us,
        weighting=registry_pb2.COMPOSITION_WEIGHTING_MEASURED_SUCCESS if composition.by_success else None,
        adapter_ids=composition.adapter_ids,
        children=composition.children,
        parents=composition.parents,
    )


def lifecycle_event(change: Change) -> Event:
    """A change of the library on its way to Kafka."""
    record = change.record
    return event(
        LIFECYCLE,
        record.adapter_id,
        events_pb2.LifecycleEvent(
            adapter_id=record.adapter_id,
            tenant=record.tenant,
            action=f"LIFECYCLE_ACTION_{change.action.upper()}",
            reason=change.reason,
            occurred_at_us=record.updated_at_us,
            merge_id=record.merge_id,
            parents=record.parents,
            digest=record.digest,
            evidence=dict(change.evidence),
            base_model=record.base_model,
            shared=record.shared,
        ),
    )
