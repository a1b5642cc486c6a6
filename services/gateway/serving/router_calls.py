"""The router, as it is called for somebody."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from smoa.access.access import REPRESENTED
from smoa.access.principal import ANYBODY, Principal
from smoa.executor_calls import Metadata
from smoa.v1 import feedback_pb2, feedback_pb2_grpc, registry_pb2, registry_pb2_grpc, router_pb2, router_pb2_grpc
from smoa.v1.access_pb2 import Represented

CONNECTIONS: Final = 16
"""A router takes few calls at once on each (`SMOA_ROUTER_CONNECTION_STREAMS`), and the others wait: those of a caller go over one of these,
so that whoever asks for much is in the way of few.
"""
Sent = TypeVar("Sent", bound=Message)
Answered = TypeVar("Answered", bound=Message)


def on_behalf_of(principal: Principal) -> Metadata:
    """What goes with the calls that are made for a caller; nothing where nobody was asked who they are."""
    if principal is ANYBODY:
        return ()
    said = Represented(name=principal.name, tenants=sorted(principal.tenants), roles=sorted(principal.roles))
    return ((REPRESENTED, said.SerializeToString()),)


@dataclass(frozen=True)
class _Stubs:
    router: router_pb2_grpc.RouterServiceAsyncStub
    registry: registry_pb2_grpc.RegistryServiceAsyncStub
    feedback: feedback_pb2_grpc.FeedbackServiceAsyncStub


class RouterCalls:
    """Calls for a principal, who is counted and limited there.

    Each raises `grpc.aio.AioRpcError`: the router's status.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel], timeout_s: float) -> None:
        """`channels` are connections of their own to one address."""
        self._every = [
            _Stubs(
                router_pb2_grpc.RouterServiceStub(one),
                registry_pb2_grpc.RegistryServiceStub(one),
                feedback_pb2_grpc.FeedbackServiceStub(one),
            )
            for one in channels
        ]
        self._in_turn = itertools.cycle(self._every)
        self._timeout_s = timeout_s

    async def route(self, principal: Principal, request: router_pb2.RouteRequest) -> router_pb2.Decision:
        """See the contract, as for those below."""
        return await self._called(self._for(principal).router.Route, principal, request)

    async def get_adapter(self, principal: Principal, request: registry_pb2.GetAdapterRequest) -> registry_pb2.Adapter:
        """See the contract."""
        return await self._called(self._for(principal).registry.GetAdapter, principal, request)

    async def list_adapters(self, principal: Principal, request: registry_pb2.ListAdaptersRequest) -> registry_pb2.ListAdaptersResponse:
        """See the contract."""
        return await self._called(self._for(principal).registry.ListAdapters, principal, request)

    async def get_composition(self, principal: Principal, request: registry_pb2.GetCompositionRequest) -> registry_pb2.Composition:
        """See the contract."""
        return await self._called(self._for(principal).registry.GetComposition, principal, request)

    async def list_compositions(
        self, principal: Principal, request: registry_pb2.ListCompositionsRequest
    ) -> registry_pb2.ListCompositionsResponse:
        """See the contract."""
        return await self._called(self._for(principal).registry.ListCompositions, principal, request)

    async def report(self, principal: Principal, outcome: feedback_pb2.Outcome) -> None:
        """See the contract (`ReportOutcome`)."""
        request = feedback_pb2.ReportOutcomeRequest(outcome=outcome)
        await self._called(self._for(principal).feedback.ReportOutcome, principal, request)

    def _for(self, principal: Principal) -> _Stubs:
        if principal is ANYBODY:
            return next(self._in_turn)
        return self._every[zlib.crc32(principal.name.encode()) % len(self._every)]

    async def _called(self, method: grpc.aio.UnaryUnaryMultiCallable[Sent, Answered], principal: Principal, request: Sent) -> Answered:
        return await method(request, timeout=self._timeout_s, metadata=tuple(on_behalf_of(principal)))
