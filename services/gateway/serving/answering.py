"""From a request to its answer: the decision, then the executor's text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

import grpc

from services.gateway.serving.asked import AUTO, Asked
from services.gateway.serving.router_calls import RouterCalls, on_behalf_of
from smoa.access.principal import Principal
from smoa.errors import Unavailable
from smoa.executor_calls import NO_EXECUTOR, ExecutorCalls
from smoa.statuses import status_in
from smoa.v1 import executor_pb2, router_pb2

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


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


class Answering:
    """Decides by a router and has executors answer."""

    def __init__(self, router: RouterCalls, executors: ExecutorCalls, *, base_model: str, passes: bool, timeout_s: float) -> None:
        """`base_model` is meant where a request names none; `passes`: without a router, the base model answers."""
        self._router, self._executors = router, executors
        self._base_model, self._passes = base_model, passes
        self._timeout_s = timeout_s

    async def answer(self, principal: Principal, asked: Asked, made: router_pb2.Decision | None = None, *, anew: bool = False) -> Answer:
        """Begin an answer: returns when the executor has said something.

        Args:
            principal: Who asks.
            asked: What for.
            made: A decision that was made before; it is not routed again.
            anew: An executor began the answer, and died.

        Raises:
            PermissionDenied: for a tenant that is not the caller's.
            InvalidArgument: several tenants or base models are meant.
            NotFound: no such model.
            Unavailable: no router, or no executor.
            grpc.aio.AioRpcError: a service's status.
        """
        tenant = principal.tenant(made.tenant if made is not None else asked.route.tenant, "smoa.tenant")
        decision, warnings = (made, ()) if made is not None else await self.decide(principal, tenant, asked)
        decision.tenant = tenant
        pieces = self._executors.answer(asked.generate, decision, on_behalf_of(principal), self._timeout_s, anew=anew)
        try:
            executor, first = await anext(pieces)
        except StopAsyncIteration:
            raise Unavailable("executor: ended without an answer; try again", 1.0) from None
        except BaseException:
            await pieces.aclose()
            raise
        return Answer(decision, executor, first, pieces, (*asked.warnings, *warnings))

    async def again(self, principal: Principal, asked: Asked, broken: Answer) -> Answer:
        """Begin an answer anew whose executor has died, on whichever is there.

        Raises:
            See `answer`.
        """
        decision = router_pb2.Decision()
        decision.CopyFrom(broken.decision)
        decision.executor = ""
        return await self.answer(principal, asked, decision, anew=True)

    async def base_models(self) -> Mapping[str, str]:
        """Fingerprint -> name of the base models that executors run, or did while this process has run.

        Raises:
            grpc.aio.AioRpcError: the router's status.
        """
        await self._executors.listed()
        return self._executors.base_models

    async def decide(self, principal: Principal, tenant: str, asked: Asked) -> tuple[router_pb2.Decision, tuple[str, ...]]:
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
                return await self._router.route(principal, request), ()
            known = await self.base_models()
            if (base_model := _meant(asked.model, known)) is not None:
                return router_pb2.Decision(tenant=tenant, base_model=base_model), ()
            if not known:  # it may be the name of one that comes yet
                raise Unavailable(NO_EXECUTOR, 2.0)
            request.model = asked.model
            return await self._router.route(principal, request), ()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _AWAY:
                raise
            return self._without_router(tenant, asked, error), ("the router is away: the base model answered, without adapters",)

    def _without_router(self, tenant: str, asked: Asked, error: grpc.aio.AioRpcError) -> router_pb2.Decision:
        known = self._executors.base_models
        wanted = (asked.route.base_model or self._base_model) if asked.model == AUTO else asked.model
        base_model = _meant(wanted, known) if wanted else next(iter(known), None) if len(known) == 1 else None
        if base_model is None or (asked.model == AUTO and not self._passes):
            said = status_in(error)  # a router that is there says what is missing
            raise Unavailable(said.message if said else f"router: is away ({error.code().name}); try again", 1.0) from error
        return router_pb2.Decision(tenant=tenant, base_model=base_model)


def _meant(name: str, known: Mapping[str, str]) -> str | None:
    """The base model of a name or a fingerprint."""
    return name if name in known else next((base_model for base_model, called in known.items() if called == name), None)
