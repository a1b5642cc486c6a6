"""`RouterService`: protobuf to queries, and decisions to protobuf."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from services.router.api.enums import word_of
from services.router.catalogue.compositions import Stage
from services.router.catalogue.records import AdapterRef
from services.router.learning.habits import hash_of_user
from services.router.metrics import RouterMetrics
from services.router.routing.explanation import Explanation
from services.router.routing.query import Choice, RoutedQuery, RouteQuery
from services.router.routing.router import Router
from services.router.routing.scoring import Chosen, Hints
from smoa.access.principal import known_caller
from smoa.errors import InvalidArgument, ResourceExhausted
from smoa.events import DECISIONS, event
from smoa.identifiers import DEFAULT_TENANT
from smoa.publisher import EventPublisher
from smoa.v1 import common_pb2 as common
from smoa.v1 import router_pb2, router_pb2_grpc

Context = Any
MAX_BATCH = 256
"""Queries of a batch that are routed in one go: a few milliseconds."""
TELL_S = 60.0
_log = logging.getLogger(__name__)


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """`smoa.v1.RouterService`: a decision is answered once it is on disk, on its way to Kafka (see `RouterSettings`)."""

    def __init__(
        self, router: Router, publisher: EventPublisher, metrics: RouterMetrics, *, refuses_when_full: bool = False, leave_bytes: int = 0
    ) -> None:
        """`refuses_when_full`: no decision is given that cannot be counted. `leave_bytes` of the spool are for others."""
        self._router, self._publisher, self._metrics, self._refuses = router, publisher, metrics, refuses_when_full
        self._leave_bytes = leave_bytes
        self._told_at_s = -math.inf
        self._messages: WeakKeyDictionary[Choice, router_pb2.Decision] = WeakKeyDictionary()

    async def Route(self, request: router_pb2.RouteRequest, context: Context) -> router_pb2.Decision:  # noqa: N802
        """See the contract."""
        with self._metrics.route_seconds.time():
            routed = await self._router.route(_to_query(request), look=request.look)
            decision = self._to_decision(routed)
            # All that can fail comes before it is counted; those who count need none of it.
            names = await self._names([decision]) if request.names else {}
            explanations = list(map(_to_explanation, await self._router.explain(routed))) if request.explain else ()
            self._publish([decision])
            _tell_names(decision, names)
            decision.explanations.extend(explanations)
            return decision

    async def _names(self, decisions: Iterable[router_pb2.Decision]) -> dict[str, str]:
        return await self._router.names(list({one.adapter_id for decision in decisions for one in _every(decision)}))

    async def ListExecutors(self, request: router_pb2.ListExecutorsRequest, context: Context) -> router_pb2.ListExecutorsResponse:  # noqa: N802
        """See the contract."""
        there = self._router.executors.listed(time.time_ns() // 1000)
        return router_pb2.ListExecutorsResponse(
            executors=[
                router_pb2.Executor(address=one.address, base_model=one.base_model, base_model_name=one.base_model_name, load=one.load)
                for one in there
            ]
        )

    async def RouteBatch(self, request: router_pb2.RouteBatchRequest, context: Context) -> router_pb2.RouteBatchResponse:  # noqa: N802
        """See the contract."""
        if not 1 <= len(request.requests) <= MAX_BATCH:
            raise InvalidArgument("requests", f"holds {len(request.requests)}", f"send 1 to {MAX_BATCH}")
        decisions: list[router_pb2.Decision] = []
        for one in request.requests:
            decisions.append(self._to_decision(await self._router.route(_to_query(one), look=one.look)))
            await asyncio.sleep(0)  # a search in memory waits for nothing: let others' queries in between
        named = [decision for one, decision in zip(request.requests, decisions, strict=True) if one.names]
        names = await self._names(named) if named else {}
        self._publish(decisions)
        for decision in named:
            _tell_names(decision, names)
        return router_pb2.RouteBatchResponse(decisions=decisions)

    def _publish(self, decisions: Sequence[router_pb2.Decision]) -> None:
        """Let them be counted, but for those without an id, which were only a look."""
        if events := [event(DECISIONS, decision.decision_id, decision) for decision in decisions if decision.decision_id]:
            try:
                self._publisher.publish(events, self._leave_bytes, known_caller())
            except ResourceExhausted as error:
                if self._refuses:
                    raise
                self._metrics.dropped.inc(len(events))
                if time.monotonic() - self._told_at_s > TELL_S:
                    self._told_at_s = time.monotonic()
                    _log.warning("decisions are given and not counted: %s", error)

    def _to_decision(self, routed: RoutedQuery) -> router_pb2.Decision:
        if not routed.cached:
            return to_decision(routed)
        made = self._messages.get(routed.choice)
        if made is None:  # it lives as long as the choice does
            made = self._messages[routed.choice] = to_decision(routed)
        decision = router_pb2.Decision()
        decision.CopyFrom(made)
        decision.decision_id, decision.executor = routed.decision_id, routed.executor
        decision.handler_us, decision.decided_at_us = routed.handler_us, routed.decided_at_us
        return decision


def _every(decision: router_pb2.Decision) -> list[common.WeightedAdapter]:
    return [*decision.adapters, *(one for stage in decision.stages for one in stage.adapters)]


def _tell_names(decision: router_pb2.Decision, names: Mapping[str, str]) -> None:
    for one in _every(decision):
        one.name = names.get(one.adapter_id, "")


def _to_query(request: router_pb2.RouteRequest) -> RouteQuery:
    strategy = word_of(common.RoutingStrategy, request.strategy, "ROUTING_STRATEGY_", "strategy")
    specialization = word_of(common.Specialization, request.specialization, "SPECIALIZATION_", "specialization")
    return RouteQuery(
        query=request.query,
        base_model=request.base_model,
        tenant=request.tenant,
        strategy="hybrid" if strategy == "unspecified" else strategy,
        top_k=request.top_k if request.HasField("top_k") else None,
        score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
        hints=Hints(
            tags=tuple(request.tags),
            specialization="" if specialization == "unspecified" else specialization,
            task_id=request.task_id,
        ),
        composition=request.composition,
        vector=np.array(request.vector, np.float32).tobytes() if request.vector else b"",
        turns=tuple(request.turns),
        session=request.session,
        new_topic=request.new_topic,
        own_only=request.own_only,
        model=request.model,
        user=hash_of_user(request.tenant or DEFAULT_TENANT, request.user) if request.user else b"",
    )


def to_decision(routed: RoutedQuery) -> router_pb2.Decision:
    """The contract's form of an answer."""
    return router_pb2.Decision(
        decision_id=routed.decision_id,
        tenant=routed.query.tenant,
        base_model=routed.query.base_model,
        strategy=f"ROUTING_STRATEGY_{routed.query.strategy.upper()}",
        adapters=[_to_chosen(one) for one in routed.choice.chosen],
        cached=routed.cached,
        handler_us=routed.handler_us,
        decided_at_us=routed.decided_at_us,
        stages=[_to_stage(stage) for stage in routed.stages],
        confidence=routed.choice.confidence,
        ranked=[
            router_pb2.RankedCandidate(adapter_id=one.adapter_id, features=one.features, propensity=propensity, expected=expected)
            for one, propensity, expected in zip(routed.choice.ranked, routed.choice.propensities, routed.choice.expected, strict=True)
        ],
        context=routed.choice.context,
        by_conversation=routed.choice.by_conversation,
        user=routed.query.user,
        closeness=None if (close := routed.choice.closeness) is None else common.Closeness(value=close.value, stands_for=close.stands_for),
        ranker=routed.choice.ranker,
        executor=routed.executor,
        task_id=routed.query.hints.task_id,
    )


def _to_explanation(one: Explanation) -> router_pb2.CandidateExplanation:
    judged, candidate = one.judged, one.judged.scored.candidate
    return router_pb2.CandidateExplanation(
        adapter_id=candidate.ref.adapter_id,
        name=one.name,
        tenant=one.tenant,
        score=judged.scored.score,
        cosine=candidate.cosine,
        example_cosine=judged.example,
        task=judged.task,
        confidence=judged.confidence,
        probability=one.probability,
        weight=one.weight,
        reason=one.reason,
        before=one.before,
    )


def _to_stage(stage: Stage) -> common.Stage:
    return common.Stage(adapters=[_to_weighted(record.ref, weight) for record, weight in stage.adapters], max_tokens=stage.max_tokens)


def _to_chosen(one: Chosen) -> common.WeightedAdapter:
    made = _to_weighted(one.ref, one.weight)
    made.score = one.score
    if one.stands_for or one.control_of:
        made.trial.CopyFrom(common.TrialSide(stands_for=one.stands_for, control_of=one.control_of, share=one.trial_share))
    return made


def _to_weighted(ref: AdapterRef, weight: float) -> common.WeightedAdapter:
    return common.WeightedAdapter(adapter_id=ref.adapter_id, version=ref.version, digest=ref.digest, weight=weight)
