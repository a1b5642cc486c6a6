"""The client's half that keeps a library: adapters, merges and compositions."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping, Sequence

import grpc

from smoa.errors import InvalidArgument
from smoa.limits import SLOWEST_BYTES_PER_S, UPLOAD_PART_BYTES
from smoa.listing import pages
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2, registry_pb2_grpc

_IMPORT_AHEAD = 2
"""Batches of an import that are on their way while one is waited for."""


class LibraryClient:
    """What `SmoaClient` can do with a router's library."""

    registry: registry_pb2_grpc.RegistryServiceAsyncStub
    _timeout_s: float

    async def register(
        self, digest: str, examples: Sequence[str], tenant: str = "public", *, replace: bool = False
    ) -> registry_pb2.Adapter:
        """Register an adapter whose file is in the store; with `replace`, in the place of the live one of its name."""
        request = registry_pb2.RegisterAdapterRequest(tenant=tenant, digest=digest, examples=examples, replace=replace)
        return await self.registry.RegisterAdapter(request, timeout=self._timeout_s)

    async def upload(self, data: bytes, examples: Sequence[str], tenant: str = "public", *, replace: bool = False) -> registry_pb2.Adapter:
        """Register an adapter by its file; with `replace`, in the place of the live one of its name."""
        register = registry_pb2.RegisterAdapterRequest(
            tenant=tenant, digest=hashlib.sha256(data).hexdigest(), examples=examples, replace=replace
        )

        def requests() -> Iterator[registry_pb2.UploadAdapterRequest]:
            yield registry_pb2.UploadAdapterRequest(register=register, file_bytes=len(data))
            for start in range(0, len(data), UPLOAD_PART_BYTES):
                yield registry_pb2.UploadAdapterRequest(part=data[start : start + UPLOAD_PART_BYTES])

        return await self.registry.UploadAdapter(requests(), timeout=self._timeout_s + len(data) / SLOWEST_BYTES_PER_S)

    async def download(self, tenant: str, adapter_id: str) -> bytes:
        """The file of an adapter of the tenant's own.

        Raises:
            InvalidArgument: it is not the file that was registered.
        """
        wanted, data = (await self.get(adapter_id, tenant)), bytearray()
        request = registry_pb2.DownloadAdapterRequest(tenant=tenant, adapter_id=adapter_id)
        async for answer in self.registry.DownloadAdapter(request, timeout=self._timeout_s + wanted.file_bytes / SLOWEST_BYTES_PER_S):
            data += answer.part
        if hashlib.sha256(whole := bytes(data)).hexdigest() != wanted.digest:
            raise InvalidArgument("file", f"that of {adapter_id} has another sha256 than it was registered with", "push it again")
        return whole

    async def import_adapters(
        self, batches: Iterable[Sequence[registry_pb2.ImportedAdapter]], tenant: str = "public", *, files_unchecked: bool = False
    ) -> AsyncIterator[registry_pb2.ImportAdaptersResponse]:
        """Add batches of at most 1,000 adapters; yields an answer for each, once it is durable and searchable.

        Those whose file is not in the store are kept and not routed to, unless `files_unchecked` says that nobody wants their weights.
        """
        call = self.registry.ImportAdapters()
        waiting = 0
        try:
            for batch in batches:
                try:
                    request = registry_pb2.ImportAdaptersRequest(tenant=tenant, adapters=batch, files_unchecked=files_unchecked)
                    await call.write(request)
                except asyncio.InvalidStateError:  # the server has ended it; the next answer says why
                    break
                waiting += 1
                if waiting > _IMPORT_AHEAD:
                    yield await self._answer(call)
                    waiting -= 1
            else:
                await call.done_writing()
            for _ in range(waiting):
                yield await self._answer(call)
        finally:
            call.cancel()

    async def _answer(
        self, call: grpc.aio.StreamStreamCall[registry_pb2.ImportAdaptersRequest, registry_pb2.ImportAdaptersResponse]
    ) -> registry_pb2.ImportAdaptersResponse:
        async with asyncio.timeout(self._timeout_s):
            answer = await call.read()
        assert isinstance(answer, registry_pb2.ImportAdaptersResponse), "the server ended an import without an answer"
        return answer

    async def list_all(
        self,
        tenant: str = "public",
        *,
        states: Sequence[common.AdapterState] = (common.ADAPTER_STATE_ACTIVE,),
        tags: Sequence[str] = (),
        name: str = "",
        all_tenants: bool = False,
        written_since_us: int = 0,
    ) -> AsyncIterator[registry_pb2.Adapter]:
        """Every adapter of a listing, page by page."""
        request = registry_pb2.ListAdaptersRequest(
            tenant=tenant,
            states=states,
            tags=tags,
            name=name,
            page_size=500,
            all_tenants=all_tenants,
            written_since_us=written_since_us,
        )

        def page_after(token: str) -> Awaitable[registry_pb2.ListAdaptersResponse]:
            request.page_token = token
            return self.registry.ListAdapters(request, timeout=self._timeout_s)

        async for page in pages(page_after):
            for adapter in page.adapters:
                yield adapter

    async def get(self, adapter_id: str, tenant: str = "public") -> registry_pb2.Adapter:
        """One adapter that the tenant may use."""
        request = registry_pb2.GetAdapterRequest(tenant=tenant, adapter_id=adapter_id)
        return await self.registry.GetAdapter(request, timeout=self._timeout_s)

    async def retire(self, tenant: str, adapter_id: str, reason: str, evidence: Mapping[str, float] | None = None) -> registry_pb2.Adapter:
        """Stop routing to an adapter."""
        request = registry_pb2.RetireAdapterRequest(tenant=tenant, adapter_id=adapter_id, reason=reason, evidence=evidence or {})
        return await self.registry.RetireAdapter(request, timeout=self._timeout_s)

    async def restore(self, tenant: str, adapter_id: str) -> registry_pb2.Adapter:
        """Route to a retired adapter again."""
        request = registry_pb2.RestoreAdapterRequest(tenant=tenant, adapter_id=adapter_id)
        return await self.registry.RestoreAdapter(request, timeout=self._timeout_s)

    async def archive(self, tenant: str, adapter_id: str) -> registry_pb2.Adapter:
        """Move a retired adapter's file to where it costs less; it comes back with `restore`."""
        request = registry_pb2.ArchiveAdapterRequest(tenant=tenant, adapter_id=adapter_id)
        return await self.registry.ArchiveAdapter(request, timeout=self._timeout_s)

    async def purge(self, tenant: str, adapter_id: str) -> registry_pb2.Adapter:
        """Delete a retired adapter's weights; there is no way back."""
        return await self.registry.PurgeAdapter(
            registry_pb2.PurgeAdapterRequest(tenant=tenant, adapter_id=adapter_id), timeout=self._timeout_s
        )

    async def apply_merge(
        self,
        tenant: str,
        merge_id: str,
        child_digest: str,
        parent_ids: Sequence[str],
        reason: str,
        canary_share: float = 0.0,
        evidence: Mapping[str, float] | None = None,
    ) -> registry_pb2.Adapter:
        """Replace parents by their merged child, or put it on trial for a share of their queries."""
        request = registry_pb2.ApplyMergeRequest(
            tenant=tenant,
            merge_id=merge_id,
            child_digest=child_digest,
            parent_ids=parent_ids,
            reason=reason,
            canary_share=canary_share,
            evidence=evidence or {},
        )
        return await self.registry.ApplyMerge(request, timeout=self._timeout_s)

    async def try_version(
        self, tenant: str, adapter_id: str, older_id: str, reason: str, canary_share: float, evidence: Mapping[str, float] | None = None
    ) -> registry_pb2.Adapter:
        """Put an adapter on trial against an older version of it."""
        request = registry_pb2.TryVersionRequest(
            tenant=tenant, adapter_id=adapter_id, older_id=older_id, canary_share=canary_share, reason=reason, evidence=evidence or {}
        )
        return await self.registry.TryVersion(request, timeout=self._timeout_s)

    async def settle_trial(
        self, tenant: str, child_id: str, *, promote: bool, reason: str, evidence: Mapping[str, float] | None = None
    ) -> registry_pb2.Adapter:
        """End a canary's trial, or undo a merge."""
        request = registry_pb2.SettleTrialRequest(tenant=tenant, child_id=child_id, promote=promote, reason=reason, evidence=evidence or {})
        return await self.registry.SettleTrial(request, timeout=self._timeout_s)

    async def pin(self, tenant: str, adapter_id: str, *, pinned: bool = True) -> registry_pb2.Adapter:
        """Keep every automatic change from an adapter, or allow them again."""
        request = registry_pb2.UpdateAdapterRequest(tenant=tenant, adapter_id=adapter_id, pinned=pinned)
        return await self.registry.UpdateAdapter(request, timeout=self._timeout_s)

    async def compose(
        self,
        name: str,
        root: registry_pb2.CompositionNode,
        *,
        tenant: str = "public",
        weighting: registry_pb2.CompositionWeighting = registry_pb2.COMPOSITION_WEIGHTING_UNSPECIFIED,
    ) -> registry_pb2.Composition:
        """Name a tree over adapters; `route(composition=name)` carries it out."""
        request = registry_pb2.CreateCompositionRequest(tenant=tenant, name=name, root=root, weighting=weighting)
        return await self.registry.CreateComposition(request, timeout=self._timeout_s)

    async def composition(self, name: str, tenant: str = "public") -> registry_pb2.Composition:
        """A composition by its name."""
        return await self.registry.GetComposition(registry_pb2.GetCompositionRequest(tenant=tenant, name=name), timeout=self._timeout_s)

    async def list_compositions(self, tenant: str = "public", *, all_tenants: bool = False) -> AsyncIterator[registry_pb2.Composition]:
        """Every composition of a tenant, page by page."""
        request = registry_pb2.ListCompositionsRequest(tenant=tenant, page_size=500, all_tenants=all_tenants)

        def page_after(token: str) -> Awaitable[registry_pb2.ListCompositionsResponse]:
            request.page_token = token
            return self.registry.ListCompositions(request, timeout=self._timeout_s)

        async for page in pages(page_after):
            for composition in page.compositions:
                yield composition

    async def delete_composition(self, name: str, tenant: str = "public") -> None:
        """Forget a composition, unless another nests it."""
        found = await self.composition(name, tenant)
        request = registry_pb2.DeleteCompositionRequest(tenant=tenant, composition_id=found.composition_id)
        await self.registry.DeleteComposition(request, timeout=self._timeout_s)

    async def report_statistics(self, reports: Sequence[registry_pb2.ReportedStatistics]) -> Sequence[registry_pb2.ReportResult]:
        """Show adapters' counts in the registry, of at most 1,000; what became of each report, in their order."""
        request = registry_pb2.ReportStatisticsRequest(reports=reports)
        return (await self.registry.ReportStatistics(request, timeout=self._timeout_s)).results
