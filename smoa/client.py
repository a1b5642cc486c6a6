"""The async client: one object over the router and an executor, every call with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Unpack

import grpc

from smoa.access.channels import Channels, ConnectionSettings
from smoa.errors import FailedPrecondition
from smoa.sampling_options import SamplingOptions
from smoa.turns import Turn, said
from smoa.v1 import common_pb2 as common
from smoa.v1 import (
    executor_pb2,
    executor_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
)

_IMPORT_AHEAD = 2
"""Batches of an import that are on their way while one is waited for."""


class SmoaClient:
    """Route, generate, report, and keep the library.

        async with SmoaClient(router="127.0.0.1:50051", executor="127.0.0.1:50052") as smoa:
            base = (await smoa.status()).base_model
            decision = await smoa.route("my card was charged twice", base_model=base)
            text, usage = await smoa.generate("my card was charged twice", decision)
            await smoa.report(decision, success=text == "billing")

    Where a `prompt` is taken, so is a conversation: `messages`, the last one the user's, on which it is routed.

    Every method raises `grpc.aio.AioRpcError` with the server's status.
    """

    def __init__(
        self,
        *,
        router: str | None = None,
        executor: str | None = None,
        timeout_s: float = 30.0,
        connection: ConnectionSettings | None = None,
    ) -> None:
        """`connection` says by what it is known to the services; left out, the environment does (SMOA_TOKEN_FILE, SMOA_TLS_CA, ...).

        Raises:
            InvalidArgument: a token that would cross a network in the clear, or files of a certificate that do not go together.
            FailedPrecondition: one that cannot be read.
        """
        self._timeout_s = timeout_s
        self._made_by = Channels(connection)
        self._channels: list[grpc.aio.Channel] = []
        if router is not None:
            channel = self._channel(router)
            self.router: router_pb2_grpc.RouterServiceAsyncStub = router_pb2_grpc.RouterServiceStub(channel)
            self.registry: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(channel)
            self.feedback: feedback_pb2_grpc.FeedbackServiceAsyncStub = feedback_pb2_grpc.FeedbackServiceStub(channel)
        self._chosen_executors: dict[str, executor_pb2_grpc.ExecutorServiceAsyncStub] | None = {} if executor is None else None
        if executor is not None:
            self.executor: executor_pb2_grpc.ExecutorServiceAsyncStub = executor_pb2_grpc.ExecutorServiceStub(self._channel(executor))

    def _channel(self, target: str) -> grpc.aio.Channel:
        # Reconnect quickly: a restarted service should be found within a second, not after gRPC's two minutes. round_robin spreads calls
        # over all the pods behind a headless service.
        channel = self._made_by.to(
            target,
            [
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.lb_policy_name", "round_robin"),
            ],
        )
        self._channels.append(channel)
        return channel

    async def __aenter__(self) -> SmoaClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()

    async def route(
        self,
        query: str = "",
        *,
        base_model: str,
        tenant: str = "public",
        strategy: common.RoutingStrategy | str = common.ROUTING_STRATEGY_HYBRID,
        top_k: int | None = None,
        score_threshold: float | None = None,
        tags: Sequence[str] = (),
        task_id: str = "",
        composition: str = "",
        look: bool = False,
        explain: bool = False,
        messages: Sequence[Turn] = (),
        vector: Sequence[float] = (),
        turns: Sequence[str] = (),
        session: str = "",
        new_topic: bool = False,
        user: str = "",
    ) -> router_pb2.Decision:
        """Which adapters answer the query, or what the user said last in `messages`, or its `vector`; or how a composition is carried out.

        With `look` it is not counted, and has no id: nothing can be reported on it. With `explain` it tells of near candidates, too. What
        was said before, in `messages` or in `turns`, or in the `session` that the router remembers, says what the query is about if it does
        not say so itself; with a `new_topic`, it does not count. The learned strategy learns what is right for a `user`.
        """
        query, before = said(query, messages)
        request = router_pb2.RouteRequest(
            tenant=tenant,
            base_model=base_model,
            query=query,
            strategy=strategy,
            top_k=top_k,
            score_threshold=score_threshold,
            tags=tags,
            task_id=task_id,
            composition=composition,
            look=look,
            explain=explain,
            vector=vector,
            turns=turns or before,
            session=session,
            new_topic=new_topic,
            user=user,
        )
        return await self.router.Route(request, timeout=self._timeout_s)

    async def stream(
        self,
        prompt: str = "",
        adapters: Iterable[common.WeightedAdapter] = (),
        *,
        tenant: str = "public",
        decision_id: str = "",
        max_tokens: int = 64,
        stages: Iterable[common.Stage] = (),
        executor: str = "",
        messages: Sequence[Turn] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncIterator[executor_pb2.GenerateResponse]:
        """Generate under the adapters, or through the stages of a composition; an answer's last message carries its usage.

        A client that was made without an executor calls the one at `executor`, which a decision names.
        """
        request = executor_pb2.GenerateRequest(
            tenant=tenant,
            prompt=prompt,
            adapters=adapters,
            decision_id=decision_id,
            max_tokens=max_tokens,
            stages=stages,
            messages=messages,
            **sampling,
        )
        async for response in self._executor_at(executor).Generate(request, timeout=self._timeout_s):
            yield response

    def _executor_at(self, address: str) -> executor_pb2_grpc.ExecutorServiceAsyncStub:
        if self._chosen_executors is None:
            return self.executor
        if not address:
            raise FailedPrecondition("executor: the decision names none, and this client was made without one; give SmoaClient an executor")
        if address not in self._chosen_executors:
            self._chosen_executors[address] = executor_pb2_grpc.ExecutorServiceStub(self._channel(address))
        return self._chosen_executors[address]

    async def generate(
        self, prompt: str = "", decision: router_pb2.Decision | None = None, *, max_tokens: int = 64, messages: Sequence[Turn] = ()
    ) -> tuple[str, executor_pb2.Usage]:
        """The whole greedy answer under a decision, and its usage."""
        text, usage = "", executor_pb2.Usage()
        chosen = decision or router_pb2.Decision(tenant="public")
        async for response in self.carry_out(prompt, chosen, max_tokens=max_tokens, messages=messages):
            text += response.text
            usage = response.usage
        return text, usage

    def carry_out(
        self,
        prompt: str,
        decision: router_pb2.Decision,
        *,
        max_tokens: int = 64,
        messages: Sequence[Turn] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncIterator[executor_pb2.GenerateResponse]:
        """Stream the answer under a decision: its mixture, or the stages of the composition that it names."""
        return self.stream(
            prompt,
            () if decision.stages else decision.adapters,
            tenant=decision.tenant,
            decision_id=decision.decision_id,
            max_tokens=max_tokens,
            stages=decision.stages,
            executor=decision.executor,
            messages=messages,
            **sampling,
        )

    async def score(
        self,
        prompt: str,
        completion: str,
        adapters: Sequence[common.WeightedAdapter] = (),
        tenant: str = "public",
        messages: Sequence[Turn] = (),
    ) -> list[float]:
        """Natural log-probability of each token of a given completion under a mixture."""
        return (await self.score_all(prompt, [completion], adapters, tenant, messages))[0]

    async def score_all(
        self,
        prompt: str,
        completions: Sequence[str],
        adapters: Sequence[common.WeightedAdapter] = (),
        tenant: str = "public",
        messages: Sequence[Turn] = (),
    ) -> list[list[float]]:
        """`score` of each of several completions; the prompt is computed once."""
        request = executor_pb2.ScoreRequest(tenant=tenant, prompt=prompt, completions=completions, adapters=adapters, messages=messages)
        return [list(one.token_logprobs) for one in (await self.executor.Score(request, timeout=self._timeout_s)).scores]

    async def status(self) -> executor_pb2.GetStatusResponse:
        """Slots, residents and queue of the executor."""
        return await self.executor.GetStatus(executor_pb2.GetStatusRequest(), timeout=self._timeout_s)

    async def report(
        self,
        decision: router_pb2.Decision,
        *,
        success: bool,
        score: float | None = None,
        input_text: str = "",
        output: str = "",
        corrected_output: str = "",
        right_adapter_id: str = "",
    ) -> None:
        """Say how a decision turned out; durable when this returns.

        `input_text` and `output` of a success become an example to try merges on; a failure's `corrected_output`, one to learn from. The
        learned strategy learns which adapter would have been right.
        """
        outcome = feedback_pb2.Outcome(
            decision_id=decision.decision_id,
            tenant=decision.tenant,
            success=success,
            score=score,
            input=input_text,
            output=output,
            corrected_output=corrected_output,
            right_adapter_id=right_adapter_id,
        )
        await self.feedback.ReportOutcome(feedback_pb2.ReportOutcomeRequest(outcome=outcome), timeout=self._timeout_s)

    async def register(
        self, digest: str, examples: Sequence[str], tenant: str = "public", *, replace: bool = False
    ) -> registry_pb2.Adapter:
        """Register an adapter whose file is in the store; with `replace`, in the place of the live one of its name."""
        request = registry_pb2.RegisterAdapterRequest(tenant=tenant, digest=digest, examples=examples, replace=replace)
        return await self.registry.RegisterAdapter(request, timeout=self._timeout_s)

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
    ) -> AsyncIterator[registry_pb2.Adapter]:
        """Every adapter of a listing, page by page."""
        token = ""
        while True:
            request = registry_pb2.ListAdaptersRequest(
                tenant=tenant, states=states, tags=tags, name=name, page_size=500, page_token=token, all_tenants=all_tenants
            )
            page = await self.registry.ListAdapters(request, timeout=self._timeout_s)
            for adapter in page.adapters:
                yield adapter
            token = page.next_page_token
            if not token:
                return

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

    async def settle_merge(
        self, tenant: str, child_id: str, *, promote: bool, reason: str, evidence: Mapping[str, float] | None = None
    ) -> registry_pb2.Adapter:
        """End a canary's trial, or undo a merge."""
        request = registry_pb2.SettleMergeRequest(tenant=tenant, child_id=child_id, promote=promote, reason=reason, evidence=evidence or {})
        return await self.registry.SettleMerge(request, timeout=self._timeout_s)

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

    async def list_compositions(self, tenant: str = "public") -> AsyncIterator[registry_pb2.Composition]:
        """Every composition of a tenant, page by page."""
        token = ""
        while True:
            request = registry_pb2.ListCompositionsRequest(tenant=tenant, page_size=500, page_token=token)
            page = await self.registry.ListCompositions(request, timeout=self._timeout_s)
            for composition in page.compositions:
                yield composition
            token = page.next_page_token
            if not token:
                return

    async def delete_composition(self, name: str, tenant: str = "public") -> None:
        """Forget a composition, unless another nests it."""
        found = await self.composition(name, tenant)
        request = registry_pb2.DeleteCompositionRequest(tenant=tenant, composition_id=found.composition_id)
        await self.registry.DeleteComposition(request, timeout=self._timeout_s)

    async def report_statistics(self, tenant: str, adapter_id: str, statistics: registry_pb2.AdapterStatistics) -> None:
        """Show an adapter's counts in the registry."""
        request = registry_pb2.UpdateAdapterRequest(tenant=tenant, adapter_id=adapter_id, statistics=statistics)
        await self.registry.UpdateAdapter(request, timeout=self._timeout_s)
