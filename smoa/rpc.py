"""A gRPC server's life: one mapping of errors to statuses, health, readiness, and a drain in order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from smoa.access.access import Access, checked
from smoa.access.addresses import is_loopback
from smoa.access.settings import AccessSettings
from smoa.access.tls import ServerTls
from smoa.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SmoaError,
    Unauthenticated,
    Unavailable,
)
from smoa.rules import check_rules
from smoa.tasks import end

_log = logging.getLogger(__name__)
STATUS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_ERROR_BYTES = 1500
LIVE = "live"
"""Health's name for "the process answers", whatever it needs may be away: restarting it would not bring that back."""


def status_of(error: SmoaError) -> status_pb2.Status:
    """The `google.rpc.Status` of an error: which field, id, limit, precondition or delay."""
    said = _short(str(error))
    detail: Message | None = None
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=_short(f"{error.problem}; {error.remedy}"))
        detail = error_details_pb2.BadRequest(field_violations=[violation])
    elif isinstance(error, NotFound):
        detail = error_details_pb2.ResourceInfo(resource_type=error.kind, resource_name=_short(error.identifier), description=said)
    elif isinstance(error, FailedPrecondition):
        subject = said.partition(":")[0]
        failed = error_details_pb2.PreconditionFailure.Violation(type="STATE", subject=subject, description=said)
        detail = error_details_pb2.PreconditionFailure(violations=[failed])
    elif isinstance(error, ResourceExhausted):
        quota = error_details_pb2.QuotaFailure.Violation(subject=error.limit.partition(":")[0], description=said)
        detail = error_details_pb2.QuotaFailure(violations=[quota])
    elif isinstance(error, Unavailable):
        whole = int(error.retry_delay_s)
        delay = Duration(seconds=whole, nanos=int((error.retry_delay_s - whole) * 1e9))
        detail = error_details_pb2.RetryInfo(retry_delay=delay)
    elif isinstance(error, PermissionDenied | Unauthenticated):
        detail = error_details_pb2.ErrorInfo(reason=error.code, domain="smoa", metadata={"subject": said.partition(":")[0]})
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=said)
    if detail is not None:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _short(text: str) -> str:
    """A part of a status: it goes out as metadata, in up to three copies, of which clients take 16 KiB."""
    return text.encode()[:MAX_ERROR_BYTES].decode(errors="ignore")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: SmoaError) -> None:
    status = status_of(error)
    await context.abort(grpc.StatusCode[error.code], status.message, ((STATUS_KEY, status.SerializeToString()),))


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Admits a call, holds its requests to the caller's rights, and turns a `SmoaError` into its status.

    Anything else is a bug: logged with its trace, answered INTERNAL.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
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
        if handler is None or not method.startswith("/smoa."):
            return handler
        self._made[method] = self._guarded(method, handler)
        return self._made[method]

    def _guarded(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        admit = self._access.admit
        if handler.response_streaming:
            stream: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def streaming(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
                try:
                    principal, rights = await admit(method, context)
                    if handler.request_streaming:
                        request = checked(request, principal, rights)
                    else:
                        check_rules(request)
                        rights.check_request(principal, request)
                    async for response in stream(request, context):
                        yield response
                except SmoaError as error:
                    await _abort(context, error)
                except grpc.aio.AbortError:
                    raise
                except Exception:  # noqa: BLE001  the last handler: a bug must reach the log and the caller, not vanish
                    _log.exception("%s failed", method)
                    await context.abort(grpc.StatusCode.INTERNAL, f"{method} failed; see the server's log")

            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
            return make(streaming, handler.request_deserializer, handler.response_serializer)
        unary: Any = handler.unary_unary

        async def single(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                principal, rights = await admit(method, context)
                check_rules(request)
                rights.check_request(principal, request)
                return await unary(request, context)
            except SmoaError as error:
                await _abort(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception:  # noqa: BLE001  the last handler: a bug must reach the log and the caller, not vanish
                _log.exception("%s failed", method)
                await context.abort(grpc.StatusCode.INTERNAL, f"{method} failed; see the server's log")

        return grpc.unary_unary_rpc_method_handler(single, handler.request_deserializer, handler.response_serializer)


class RpcServer:
    """A `grpc.aio` server with health. Not serving until `ready()`; `stop()` refuses new calls, then lets running ones end."""

    def __init__(
        self,
        address: str,
        max_concurrent_rpcs: int = 1000,
        *,
        share_address: bool = False,
        access: Access | None = None,
        tls: ServerTls | None = None,
        insecure: bool = False,
    ) -> None:
        """Without `access` that asks, it listens on loopback only, unless `insecure` says that this is wanted."""
        self._access, self._tls, self._insecure = access or Access(), tls, insecure
        self.server = grpc.aio.server(
            interceptors=[CallInterceptor(self._access)],
            maximum_concurrent_rpcs=max_concurrent_rpcs,
            options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", int(share_address))],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        self._address = address
        self._loading: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Bind and listen; health answers NOT_SERVING until `ready`.

        Raises:
            FailedPrecondition: the address is taken, or others than this machine could reach it and nobody would ask them who they are.
        """
        if not (self._access.asks or self._insecure or is_loopback(self._address)):
            raise FailedPrecondition(
                f"address: {self._address} can be reached from elsewhere, and nothing says who may call; name callers (SMOA_CALLERS) or an "
                "issuer of tokens (SMOA_TOKEN_ISSUER), or say that everybody may do everything there (SMOA_INSECURE=true)"
            )
        try:
            if self._tls is not None:
                self.port = self.server.add_secure_port(self._address, self._tls.credentials())
            else:
                self.port = self.server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise FailedPrecondition(f"address: cannot listen on {self._address} ({error}); choose another or stop its owner") from error
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        await self.server.start()

    def load(self, work: Coroutine[Any, Any, None]) -> None:
        """Work that has to be done before it is ready; calls are answered meanwhile, as well as can be."""
        self._loading = asyncio.create_task(work, name="loading")

    async def ready(self) -> None:
        """Every part has said that it is ready, or does so soon."""
        if self._loading is not None:
            await asyncio.shield(self._loading)
        await self._set(health_pb2.HealthCheckResponse.SERVING)
        _log.info("serving on port %d", self.port)

    async def unready(self) -> None:
        """Something it needs is away; calls are still answered as well as can be."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float = 10.0) -> None:
        """Drain."""
        if self._loading is not None:
            await end(self._loading)
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)
        await self._access.close()

    @classmethod
    def of(cls, address: str, settings: AccessSettings, *, share_address: bool = False) -> RpcServer:
        """As the settings say.

        Raises:
            InvalidArgument, FailedPrecondition: settings that contradict each other, or files that cannot be read.
        """
        tls = None
        if settings.tls_certificate or settings.tls_key or settings.tls_client_ca:
            tls = ServerTls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        return cls(address, share_address=share_address, access=Access.of(settings), tls=tls, insecure=settings.insecure)

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        await self._health.set("", status)


def stop_event() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopped.set)
    return stopped


async def serve(build: Callable[[AsyncExitStack], Awaitable[RpcServer]]) -> None:
    """Run a service: build its parts on a stack, say ready, wait for a signal, unwind the stack in reverse order."""
    async with AsyncExitStack() as stack:
        server = await build(stack)
        stopped = stop_event()  # only now: while it loads a model, a signal ends the process as it ends any other
        waiting, saying = (asyncio.ensure_future(one) for one in (stopped.wait(), server.ready()))
        try:
            await asyncio.wait({waiting, saying}, return_when=asyncio.FIRST_COMPLETED)
            if saying.done():
                saying.result()
            await waiting
        finally:
            for one in (waiting, saying):
                await end(one)
        _log.info("draining")
