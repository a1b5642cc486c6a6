"""Protobuf to domain and back, and nothing else."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from services.executor.adapters.residency import AdapterRef
from services.executor.engine.engine import Engine
from services.executor.engine.pipeline import Generation, GenerationUsage, Stage
from services.executor.engine.runner import Sampling
from services.executor.metrics import ExecutorMetrics
from smoa.errors import InvalidArgument
from smoa.events import USAGE, Event, event
from smoa.identifiers import checked_tenant
from smoa.limits import MAX_ID_CHARACTERS, MAX_STAGE_ADAPTERS, MAX_STAGES, MAX_WEIGHT
from smoa.publisher import EventPublisher
from smoa.v1 import common_pb2 as common
from smoa.v1 import events_pb2, executor_pb2, executor_pb2_grpc

Context = Any
MAX_PROMPT_CHARACTERS, MAX_STOPS, MAX_STOP_CHARACTERS = 32_768, 8, 64


class ExecutorServicer(executor_pb2_grpc.ExecutorServiceServicer):
    """`smoa.v1.ExecutorService`."""

    def __init__(
        self,
        engine: Engine,
        publisher: EventPublisher,
        metrics: ExecutorMetrics,
        base_model: str,
        base_model_name: str,
        rows: int,
        shape: common.ModelShape,
    ) -> None:
        self._engine, self._publisher, self._metrics = engine, publisher, metrics
        self._base_model, self._base_model_name, self._rows, self._shape = base_model, base_model_name, rows, shape

    async def Generate(  # noqa: N802
        self, request: executor_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[executor_pb2.GenerateResponse]:
        """See the contract."""
        generation = _to_generation(request)
        async with aclosing(self._engine.generate(generation)) as pieces:
            async for piece in pieces:
                response = executor_pb2.GenerateResponse(text=piece.text, tokens=piece.tokens)
                if piece.usage:
                    self._metrics.finished(piece.usage)
                    spent = zip(generation.stages, piece.usage.stages or (piece.usage,), strict=True)
                    self._publisher.publish([one for stage, usage in spent for one in _usage_events(request, stage, usage)])
                    response.usage.CopyFrom(_to_usage(piece.usage))
                yield response

    async def Score(self, request: executor_pb2.ScoreRequest, context: Context) -> executor_pb2.ScoreResponse:  # noqa: N802
        """See the contract."""
        _check_text("prompt", request.prompt)
        _check_text("completion", request.completion)
        logprobs = await self._engine.score(checked_tenant(request.tenant), request.prompt, request.completion, _to_refs(request.adapters))
        return executor_pb2.ScoreResponse(token_logprobs=logprobs, logprob=sum(logprobs))

    async def GetStatus(self, request: executor_pb2.GetStatusRequest, context: Context) -> executor_pb2.GetStatusResponse:  # noqa: N802
        """See the contract."""
        residency, scheduler = self._engine.residency, self._engine.scheduler
        pool, counts = residency.pool, residency.counts
        return executor_pb2.GetStatusResponse(
            base_model=self._base_model,
            base_model_name=self._base_model_name,
            slots=pool.slots,
            residents=[
                executor_pb2.Resident(
                    adapter_id=one.ref.adapter_id, version=one.ref.version, digest=one.ref.digest, leases=one.leases, bytes=one.nbytes
                )
                for one in residency.residents()
            ],
            queued=scheduler.waiting,
            running=len(scheduler.running),
            adapter_hits=pool.hits,
            adapter_misses=pool.misses,
            evictions=pool.evictions,
            max_batch=self._rows,
            spooled_events=self._publisher.waiting,
            host_hits=counts.host_hits,
            store_loads=counts.store_loads,
            store_load_us=counts.load_us,
            slot_bytes=pool.used_bytes,
            host_bytes=residency.host.used_bytes,
            cache_blocks=scheduler.blocks.blocks,
            cache_blocks_free=scheduler.blocks.available,
            prefix_lookups=scheduler.prefix_lookups,
            prefix_hits=scheduler.prefix_hits,
            model=self._shape,
        )


def _usage_events(request: executor_pb2.GenerateRequest, stage: Stage, usage: GenerationUsage) -> list[Event]:
    return [
        event(
            USAGE,
            ref.adapter_id,
            events_pb2.UsageEvent(
                adapter_id=ref.adapter_id,
                tenant=request.tenant or "public",
                decision_id=request.decision_id,
                tokens=usage.completion_tokens,
                total_us=usage.total_us,
            ),
        )
        for ref in stage.adapters
    ]


def _to_usage(usage: GenerationUsage) -> executor_pb2.Usage:
    return executor_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        queue_us=usage.queue_us,
        first_token_us=usage.first_token_us,
        total_us=usage.total_us,
        adapter_hits=usage.adapter_hits,
        adapter_misses=usage.adapter_misses,
        finish_reason=f"FINISH_REASON_{usage.finish.upper()}",
        stages=[_to_usage(stage) for stage in usage.stages],
    )


def _check_text(field: str, text: str) -> None:
    if not text:
        raise InvalidArgument(field, "is empty", "send a text")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidArgument(field, f"has {len(text):,} characters, over {MAX_PROMPT_CHARACTERS:,}", "shorten it")


def _to_refs(adapters: Iterable[common.WeightedAdapter]) -> tuple[AdapterRef, ...]:
    refs = tuple(AdapterRef(one.adapter_id, one.version, one.digest, one.weight) for one in adapters)
    if len(refs) > MAX_STAGE_ADAPTERS:
        raise InvalidArgument("adapters", f"holds {len(refs)}", f"send at most {MAX_STAGE_ADAPTERS}")
    if len({ref.adapter_id for ref in refs}) < len(refs):
        raise InvalidArgument("adapters", "names an adapter twice", "add up its weights")
    for ref in refs:
        if not math.isfinite(ref.weight) or abs(ref.weight) > MAX_WEIGHT:
            raise InvalidArgument(
                "adapters.weight", f"{ref.weight:g} is outside -{MAX_WEIGHT:g}..{MAX_WEIGHT:g}", "a decision's weights add up to 1"
            )
    return refs


def _to_generation(request: executor_pb2.GenerateRequest) -> Generation:
    _check_text("prompt", request.prompt)
    if not math.isfinite(request.temperature) or not 0 <= request.temperature <= 10:
        raise InvalidArgument("temperature", f"{request.temperature} is outside 0..10", "use 0 for greedy")
    if not math.isfinite(request.top_p) or not 0 <= request.top_p <= 1:
        raise InvalidArgument("top_p", f"{request.top_p} is outside 0..1", "leave it out for 1")
    stops: Sequence[str] = request.stop
    if len(stops) > MAX_STOPS or any(not stop or len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise InvalidArgument(
            "stop", "holds an empty text, a long one, or too many", f"send at most {MAX_STOPS} of 1 to {MAX_STOP_CHARACTERS} characters"
        )
    if request.stages and request.adapters:
        raise InvalidArgument("stages", "come with adapters beside them", "send one of the two; a decision on a composition has stages")
    if len(request.stages) > MAX_STAGES:
        raise InvalidArgument("stages", f"holds {len(request.stages)}", f"send at most {MAX_STAGES}")
    max_tokens = request.max_tokens or 64
    stages = [Stage(_to_refs(one.adapters), one.max_tokens or max_tokens) for one in request.stages]
    stages = stages or [Stage(_to_refs(request.adapters), max_tokens)]
    if len(request.decision_id) > MAX_ID_CHARACTERS:  # it comes back in every adapter's usage event
        raise InvalidArgument("decision_id", f"has {len(request.decision_id):,} characters", "send the id that Route returned")
    return Generation(
        tenant=checked_tenant(request.tenant),
        prompt=request.prompt,
        adapters=stages[-1].adapters,
        max_tokens=stages[-1].max_tokens,
        before=tuple(stages[:-1]),
        sampling=Sampling(temperature=request.temperature, top_p=request.top_p or 1.0, seed=request.seed % 2**63),
        stop=tuple(stops),
    )
