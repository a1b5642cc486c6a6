"""What every call goes through before its method: who calls, whether there is a place for it, the contract's rules, the caller's rights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError

from smoa.access.access import Access, Admitted
from smoa.access.audit import Asked, Audit
from smoa.access.noting import noting
from smoa.access.places import Places
from smoa.access.rates import Rates
from smoa.errors import DeadlineExceeded, InvalidArgument, SmoaError
from smoa.fair_turns import LoopTurns
from smoa.statuses import abort

T = TypeVar("T")
_log = logging.getLogger(__name__)
STALLED_S: Final = 60.0
"""For so long a caller may leave its stream alone: take no answer, or send no request."""
_WATCH: Final = "/grpc.health.v1.Health/Watch"
_REFLECTION: Final = "/grpc.reflection."


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Admits a call, holds its requests to the caller's rights, and turns a `SmoaError` into its status.

    Anything else is a bug: logged with its trace, answered INTERNAL.
    """

    def __init__(self, access: Access, places: Places, audit: Audit, rates: Rates) -> None:
        self._access, self._places, self._audit, self._rates, self._stalled_s = access, places, audit, rates, STALLED_S
        self._watches, self._turns = Places(places.each, places.each), LoopTurns()
        self._made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See `grpc.aio.ServerInterceptor`."""
        method = handler_call_details.method
        if (made := self._made.get(method)) is not None:  # a server's methods do not change
            return made
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if method.startswith("/smoa."):
            self._made[method] = self._streaming(method, handler) if handler.response_streaming else self._single(method, handler)
        elif method == _WATCH or method.startswith(_REFLECTION):
            self._made[method] = self._for_anybody(method, handler)
        else:
            return handler  # a probe must be answered whoever else calls
        return self._made[method]

    def _streaming(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        stream: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def streaming(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            asked = Asked(method)

            async def answer() -> None:
                asked.admitted = admitted = await self._access.admit(method, context)
                with self._places.held(admitted.principal.name):
                    wanted = self._wanted(asked, admitted, request, handler)
                    await self._in_turn(admitted, self._streamed(stream(wanted, context), context))

            await self._guarded(asked, context, answer())

        make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        return make(streaming, None, handler.response_serializer)  # parsed by us: see `_parse`

    async def _in_turn(self, admitted: Admitted, work: Coroutine[Any, Any, T]) -> T:
        """The work of a call. Where callers are known, no one's keeps the others' waiting."""
        return await (self._turns.run(admitted.principal.name, work) if self._access.asks else work)

    async def _streamed(self, stream: AsyncGenerator[Any, None], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with aclosing(stream) as responses:  # whoever goes away, what it held is given back at once
            async for response in responses:
                await self._written(context, response)

    async def _written(self, context: grpc.aio.ServicerContext[Any, Any], response: Any) -> None:
        try:
            async with asyncio.timeout(self._stalled_s):
                await context.write(response)
        except TimeoutError:
            raise DeadlineExceeded(f"stream: no answer was taken for {self._stalled_s:g} s; read as they come") from None

    def _single(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        unary: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def single(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            asked = Asked(method, before=noting())

            async def answer() -> Any:
                asked.admitted = admitted = await self._access.admit(method, context)
                with self._places.held(admitted.principal.name):
                    wanted = self._wanted(asked, admitted, request, handler)
                    asked.response = found = await self._in_turn(admitted, unary(wanted, context))
                    return found

            return await self._guarded(asked, context, answer())

        make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        return make(single, None, handler.response_serializer)

    def _wanted(self, asked: Asked, admitted: Admitted, request: Any, handler: grpc.RpcMethodHandler[Any, Any]) -> Any:
        """What a method is given: its request, or an iterator of them; parsed, and held to everything that holds for it."""
        self._rates.begin(admitted)
        if handler.request_streaming:
            return self._held(asked, admitted, _in_time(request, self._stalled_s), handler)
        asked.held(wanted := _parse(request, handler))
        self._rates.take(admitted, wanted)
        return wanted

    async def _held(
        self, asked: Asked, admitted: Admitted, requests: AsyncIterator[bytes], handler: grpc.RpcMethodHandler[Any, Any]
    ) -> AsyncIterator[Any]:
        async for data in requests:
            asked.held(request := _parse(data, handler))
            await asyncio.sleep(self._rates.owe(admitted, request))  # the stream is slower then, and not refused
            yield request

    def _for_anybody(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """A stream of health, or of the contracts: anybody may ask, and some of them at once."""
        stream: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def streaming(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            async def answer() -> None:
                with self._watches.held(method):
                    if handler.request_streaming:
                        await self._streamed(stream(_in_time(request, self._stalled_s), context), context)
                    else:
                        await stream(request, context)

            await self._guarded(Asked(method), context, answer())

        make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        return make(streaming, handler.request_deserializer, handler.response_serializer)

    async def _guarded(self, asked: Asked, context: grpc.aio.ServicerContext[Any, Any], answer: Coroutine[Any, Any, T]) -> T:
        """The answer; of an error its status, and of a bug, which is logged with its trace, INTERNAL. How it ended is told."""
        status = "CANCELLED"
        try:
            found = await answer
            status = "OK"
            return found
        except SmoaError as error:
            status = error.code
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception:  # noqa: BLE001  the last handler: a bug must reach the log and the caller, not vanish
            status = "INTERNAL"
            _log.exception("%s failed", asked.method)
            await context.abort(grpc.StatusCode.INTERNAL, f"{asked.method} failed; see the server's log")
        finally:
            self._audit.ended(asked, status)
        raise AssertionError("an abort raises")


def _parse(data: bytes, handler: grpc.RpcMethodHandler[Any, Any]) -> Any:
    """A request. gRPC itself would answer UNKNOWN to bytes that are none, and log a trace of them.

    Raises:
        InvalidArgument: it is not the method's message.
    """
    parse: Any = handler.request_deserializer
    try:
        return parse(data)
    except DecodeError as error:
        raise InvalidArgument("request", "is not the message that this method takes", "make it by the contracts in proto/") from error


async def _in_time(requests: AsyncIterator[Any], stalled_s: float) -> AsyncIterator[Any]:
    """The requests of a stream, each within a time after the one before was answered."""
    waiting = aiter(requests)
    while True:
        try:
            async with asyncio.timeout(stalled_s):
                request = await anext(waiting)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DeadlineExceeded(f"stream: no request came for {stalled_s:g} s; end it, and begin another when there is more") from None
        yield request
