"""From a request to its answer: the decision, then the executor's text."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc

from services.gateway.serving.asked import AUTO, Asked
from smoa.access.access import REPRESENTED
from smoa.access.principal import ANYBODY, Principal
from smoa.errors import NotFound, Unavailable
from smoa.executor_calls import ExecutorCalls, Metadata
from smoa.v1 import executor_pb2, feedback_pb2_grpc, registry_pb2_grpc, router_pb2, router_pb2_grpc
from smoa.v1.access_pb2 import Represented

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_NAMES_KEPT = 10_000


@dataclass(frozen=True)
class Services:
    """The router's, as they are called."""

    router: router_pb2_grpc.RouterServiceAsyncStub
    registry: registry_pb2_grpc.RegistryServiceAsyncStub
    feedback: feedback_pb2_grpc.FeedbackServiceAsyncStub


@dataclass(frozen=True)
class Answer:
    """An answer that has begun."""

    decision: router_pb2.Decision
    """Without an id where the base model answers by name, or because no router is there."""
    executor: str
    first: executor_pb2.GenerateResponse
    rest: AsyncGenerator[tuple[str, executor_pb2.GenerateResponse], None]
    """Close it, and the executor's row is free."""
    warnings: tuple[str, ...]


def on_behalf_of(principal: Principal) -> Metadata:
    """What goes with the calls that are made for a caller; nothing where nobody was asked who they are."""
    if principal is ANYBODY:
        return ()
    said = Represented(name=principal.name, tenants=sorted(principal.tenants), roles=sorted(principal.roles))
    return ((REPRESENTED, said.SerializeToString()),)


class Answering:
    """Decides by a router and has executors answer."""

    def __init__(
        self, services: Services, executors: ExecutorCalls, *, base_model: str, passes: bool, timeout_s: float, route_timeout_s: float
    ) -> None:
        """`base_model` is meant where a request names none; `passes`: without a router, the base model answers."""
        self._services, self._executors = services, executors
        self._base_model, self._passes = base_model, passes
        self._timeout_s, self._route_timeout_s = timeout_s, route_timeout_s
        self._compositions: set[tuple[str, str]] = set()
        """(tenant, name) of those that were used: asked for first, the next time."""

    async def answer(self, principal: Principal, asked: Asked, made: router_pb2.Decision | None = None) -> Answer:
        """Begin an answer: returns when the executor has said something.

        Args:
            principal: Who asks.
            asked: What for.
            made: A decision that was made before; it is not routed again.

        Raises:
            PermissionDenied: for a tenant that is not the caller's.
            InvalidArgument: several tenants or base models are meant.
            NotFound: no such model.
            Unavailable: no router, or no executor.
            grpc.aio.AioRpcError: a service's status.
        """
        tenant = principal.tenant(made.tenant if made is not None else asked.route.tenant, "smoa.tenant")
        metadata = on_behalf_of(principal)
        decision, warnings = (made, ()) if made is not None else await self.decide(tenant, asked, metadata)
        decision.tenant = tenant
        pieces = self._executors.answer(asked.generate, decision, metadata, self._timeout_s)
        try:
            executor, first = await anext(pieces)
        except StopAsyncIteration:
            raise Unavailable("executor: ended without an answer; try again", 1.0) from None
        except BaseException:
            await pieces.aclose()
            raise
        return Answer(decision, executor, first, pieces, (*asked.warnings, *warnings))

    async def base_models(self, metadata: Metadata) -> dict[str, str]:
        """Fingerprint -> name of the base models that executors run.

        Raises:
            grpc.aio.AioRpcError: the router's status.
        """
        return {one.base_model: one.base_model_name for one in await self._executors.listed(metadata)}

    async def decide(self, tenant: str, asked: Asked, metadata: Metadata) -> tuple[router_pb2.Decision, tuple[str, ...]]:
        """The decision for a request, and what its caller should know.

        Raises:
            See `answer`.
        """
        request = router_pb2.RouteRequest()
        request.CopyFrom(asked.route)
        request.tenant, request.names = tenant, True
        try:
            if asked.model == AUTO:
                request.base_model = request.base_model or self._base_model
                return await self._route(request, metadata), ()
            known = await self.base_models(metadata)
            if (base_model := _meant(asked.model, known)) is not None:
                return router_pb2.Decision(tenant=tenant, base_model=base_model), ()
            return await self._named(request, asked.model, metadata), ()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _AWAY:
                raise
            return self._without_router(tenant, asked, error), ("the router is away: the base model answered, without adapters",)

    def _without_router(self, tenant: str, asked: Asked, error: grpc.aio.AioRpcError) -> router_pb2.Decision:
        known = {one.base_model: one.base_model_name for one in self._executors.last_listed()}
        wanted = (asked.route.base_model or self._base_model) if asked.model == AUTO else asked.model
        base_model = _meant(wanted, known) if wanted else next(iter(known), None) if len(known) == 1 else None
        if base_model is None or (asked.model == AUTO and not self._passes):
            raise Unavailable(f"router: is away ({error.code().name}); try again", 1.0) from error
        return router_pb2.Decision(tenant=tenant, base_model=base_model)

    async def _named(self, request: router_pb2.RouteRequest, name: str, metadata: Metadata) -> router_pb2.Decision:
        """The decision for an adapter, or a composition, that is named."""
        key = request.tenant, name
        fields = ("composition", "adapter") if key in self._compositions else ("adapter", "composition")
        for field in fields:
            named = router_pb2.RouteRequest()
            named.CopyFrom(request)
            setattr(named, field, name)
            try:
                decision = await self._route(named, metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                continue
            if field == "composition":
                if len(self._compositions) >= _NAMES_KEPT:
                    self._compositions.clear()
                self._compositions.add(key)
            return decision
        raise NotFound("model", name[:200], f"use {AUTO}, or a name that GET /v1/models lists")

    async def _route(self, request: router_pb2.RouteRequest, metadata: Metadata) -> router_pb2.Decision:
        return await self._services.router.Route(request, timeout=self._route_timeout_s, metadata=tuple(metadata))


def _meant(name: str, known: dict[str, str]) -> str | None:
    """The base model of a name or a fingerprint."""
    return name if name in known else next((base_model for base_model, called in known.items() if called == name), None)
