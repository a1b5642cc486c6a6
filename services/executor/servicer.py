"""Protobuf to domain and back, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from services.executor.adapters.leases import AdapterRef
from services.executor.engine.pipeline import Requests, Stage
from services.executor.engine.port import GenerationUsage, Piece
from services.executor.engine.sampling import TokenLogprob
from services.executor.metrics import ExecutorMetrics
from services.executor.requests import check_text, to_generations, to_messages, to_refs
from smoa.access.principal import caller, known_caller
from smoa.errors import InvalidArgument, SmoaError
from smoa.events import USAGE, Event, event
from smoa.identifiers import checked_tenant
from smoa.publisher import EventPublisher
from smoa.v1 import common_pb2 as common
from smoa.v1 import events_pb2, executor_pb2, executor_pb2_grpc

Context = Any
MAX_COMPLETIONS = 64
_log = logging.getLogger(__name__)


class ExecutorServicer(executor_pb2_grpc.ExecutorServiceServicer):
    """`smoa.v1.ExecutorService`."""

    def __init__(
        self,
        requests: Requests,
        publisher: EventPublisher,
        metrics: ExecutorMetrics,
        base_model: str,
        base_model_name: str,
        shape: common.ModelShape,
    ) -> None:
        self._requests, self._publisher, self._metrics = requests, publisher, metrics
        self._base_model, self._base_model_name, self._shape = base_model, base_model_name, shape

    async def Generate(  # noqa: N802
        self, request: executor_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[executor_pb2.GenerateResponse]:
        """See the contract."""
        generations = to_generations(request, self._requests.vocabulary)
        stages, spent = generations[0].stages, list[GenerationUsage]()
        async with AsyncExitStack() as stack:
            publish = stack.enter_context(self._publisher.room_for(_largest_events(request, stages), known_caller()))
            pieces = await stack.enter_async_context(aclosing(self._requests.answers(generations)))
            async for index, piece in pieces:
                if piece.usage.finish:
                    self._metrics.finished(piece.usage)
                    spent.append(piece.usage)
                if len(spent) == len(generations):
                    self._publish(publish, _usage_events(request, stages, spent))
                response = self._to_response(index, piece)
                if piece.usage.finish or request.stream_usage:
                    response.usage.CopyFrom(_to_usage(piece.usage))
                    response.usage.seed = generations[index].sampling.seed
                yield response

    def _publish(self, publish: Callable[[Sequence[Event]], None], events: Sequence[Event]) -> None:
        """Of an answer that is there: it goes out, whatever becomes of its events."""
        try:
            publish(events)
        except SmoaError as error:
            self._metrics.lost(len(events))
            _log.error("%d usage events of a finished request are lost, so its adapters' tokens are not counted: %s", len(events), error)

    def _to_response(self, index: int, piece: Piece) -> executor_pb2.GenerateResponse:
        logprobs = [self._to_logprob(one) for one in piece.logprobs]
        return executor_pb2.GenerateResponse(index=index, text=piece.text, tokens=piece.tokens, logprobs=logprobs)

    def _to_logprob(self, told: TokenLogprob) -> executor_pb2.TokenLogprob:
        return executor_pb2.TokenLogprob(
            token=told.token,
            text=self._requests.tokenizer.text([told.token]),
            logprob=told.logprob,
            alternatives=[self._to_logprob(one) for one in told.alternatives],
        )

    async def Score(self, request: executor_pb2.ScoreRequest, context: Context) -> executor_pb2.ScoreResponse:  # noqa: N802
        """See the contract."""
        messages = to_messages(request)
        completions = request.completions or [request.completion]
        for completion in completions:
            check_text("completion", completion)
        if len(completions) > MAX_COMPLETIONS or (request.completions and request.completion):
            problem = "come with a completion beside them" if request.completion else f"holds {len(completions)}"
            raise InvalidArgument("completions", problem, f"send one completion, or 1 to {MAX_COMPLETIONS} completions")
        tenant, refs = checked_tenant(request.tenant), to_refs(request.adapters)
        logprobs = await self._requests.score(tenant, messages, completions, refs)
        scores = [executor_pb2.CompletionScore(token_logprobs=one, logprob=sum(one)) for one in logprobs]
        return executor_pb2.ScoreResponse(token_logprobs=logprobs[0], logprob=sum(logprobs[0]), scores=scores)

    async def GetStatus(self, request: executor_pb2.GetStatusRequest, context: Context) -> executor_pb2.GetStatusResponse:  # noqa: N802
        """See the contract."""
        state, who = self._requests.state(), caller()
        return executor_pb2.GetStatusResponse(
            base_model=self._base_model,
            base_model_name=self._base_model_name,
            slots=state.slots,
            residents=[
                executor_pb2.Resident(
                    adapter_id=one.ref.adapter_id, version=one.ref.version, digest=one.ref.digest, leases=one.leases, bytes=one.nbytes
                )
                for one in state.residents
                if one.shared or who.sees(one.owner)
            ],
            queued=state.waiting,
            running=state.running,
            adapter_hits=state.adapter_hits,
            adapter_misses=state.adapter_misses,
            evictions=state.slot_evictions,
            max_batch=state.rows,
            spooled_events=self._publisher.waiting,
            host_hits=state.host_hits,
            store_loads=state.store_loads,
            store_load_us=state.store_load_us,
            slot_bytes=state.slot_bytes,
            host_bytes=state.host_bytes,
            cache_blocks=state.cache_blocks,
            cache_blocks_free=state.cache_blocks_free,
            prefix_lookups=state.prefix_lookups,
            prefix_hits=state.prefix_hits,
            preemptions=state.preemptions,
            model=self._shape,
        )


def _usage_events(request: executor_pb2.GenerateRequest, stages: Sequence[Stage], spent: Sequence[GenerationUsage]) -> list[Event]:
    """One for each adapter of each stage, however many answers it had a part in: a request counts once."""
    of_stages = zip(*(usage.stages or (usage,) for usage in spent), strict=True)
    return [
        _usage_event(
            request,
            ref,
            sum(usage.completion_tokens for usage in usages),
            max(usage.total_us for usage in usages),
            min(usage.first_token_us for usage in usages),
        )
        for stage, usages in zip(stages, of_stages, strict=True)
        for ref in stage.adapters
    ]


def _largest_events(request: executor_pb2.GenerateRequest, stages: Sequence[Stage]) -> list[Event]:
    """Events that are no smaller than those that the request will have."""
    return [_usage_event(request, ref, 2**31 - 1, 2**63 - 1, 2**63 - 1) for stage in stages for ref in stage.adapters]


def _usage_event(request: executor_pb2.GenerateRequest, ref: AdapterRef, tokens: int, total_us: int, first_token_us: int) -> Event:
    value = events_pb2.UsageEvent(
        adapter_id=ref.adapter_id,
        tenant=request.tenant or "public",
        decision_id=request.decision_id,
        tokens=tokens,
        total_us=total_us,
        first_token_us=first_token_us,
    )
    return event(USAGE, ref.adapter_id, value)


def _to_usage(usage: GenerationUsage) -> executor_pb2.Usage:
    return executor_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        queue_us=usage.queue_us,
        first_token_us=usage.first_token_us,
        total_us=usage.total_us,
        adapter_hits=usage.adapter_hits,
        adapter_misses=usage.adapter_misses,
        finish_reason=f"FINISH_REASON_{usage.finish.upper()}" if usage.finish else None,
        stages=[_to_usage(stage) for stage in usage.stages],
    )
