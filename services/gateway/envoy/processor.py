"""Envoy's external processor (envoy.service.ext_proc.v3): one stream for each HTTP request that passes.

It takes a request's body in whichever way the filter sends it: BUFFERED, whole before its headers go on; FULL_DUPLEX_STREAMED, in parts
that are kept until the last one, and the headers with them; STREAMED, in parts, while the headers go on at once, so that only the body's
`model` can say what was decided.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import grpc
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as ext_proc_grpc
from envoy.type.v3.http_status_pb2 import HttpStatus
from pydantic_core import to_json

from services.gateway.api.errors import HttpError, http_error
from services.gateway.api.http_calls import STALLED_S
from services.gateway.envoy.bodies import PATHS, AnswerTokens, Passing, read_request
from services.gateway.metrics import GatewayMetrics
from services.gateway.serving.answering import Answering
from services.gateway.serving.decisions import DECISION_HEADER, ID_HEADER, headers_of, packed
from smoa.access.access import Access
from smoa.access.places import Places
from smoa.access.principal import Principal
from smoa.errors import ResourceExhausted, SmoaError, Unavailable
from smoa.events import USAGE, Event, event
from smoa.v1 import events_pb2, router_pb2

_log = logging.getLogger(__name__)
_PART_BYTES: Final = 60 * 1024
"""Of a body that is sent on in parts."""
_STREAMED, _DUPLEX = ProcessingMode.STREAMED, ProcessingMode.FULL_DUPLEX_STREAMED
_ROLES: Final = frozenset({"infer"})
_ENVOY: Final = "envoy"
"""Of whom places are: who asks is known only once a body is whole."""
MODEL_HEADER: Final = "x-gateway-model-name"
"""By which an inference gateway (Gateway API Inference Extension) chooses a pool."""
ENDPOINT_HEADER: Final = "x-gateway-destination-endpoint"
"""By which it chooses an endpoint of the pool."""

_PRINTED: Final = "".join(map(chr, range(32, 127)))

Publish = Callable[[Sequence[Event]], None]
Message: TypeAlias = Any
"""`ProcessingRequest`: Envoy's contracts come without types."""
Reply: TypeAlias = Any
"""`ProcessingResponse`."""
_reply: Final = ext_proc.ProcessingResponse


class Processor(ext_proc_grpc.ExternalProcessorServicer):  # type: ignore[misc]  # it comes without types
    """Routes requests to `smoa-auto`, and lets all others pass."""

    def __init__(
        self,
        answering: Answering,
        access: Access,
        metrics: GatewayMetrics,
        publish: Publish,
        *,
        places: Places,
        bodies: Places,
        base_model_name: str,
        passes: bool,
        max_body_bytes: int,
    ) -> None:
        """`publish` takes usage events; `places` are of requests that pass at once, `bodies` of the bytes that are kept of them; `passes`:
        without a router, a request goes on to the base model.
        """
        self.answering, self.access, self.metrics, self.publish = answering, access, metrics, publish
        self._places, self._bodies = places, bodies
        self.base_model_name, self.passes, self.max_body_bytes = base_model_name, passes, max_body_bytes

    async def Process(self, requests: AsyncIterator[Message], context: Any) -> AsyncIterator[Reply]:  # noqa: N802
        """See Envoy's contract."""
        try:
            with self._places.held(_ENVOY), self._bodies.held(_ENVOY, 0) as more:
                exchange, waiting = _Exchange(self, more), aiter(requests)
                while (message := await _next(waiting, STALLED_S if exchange.is_kept else None)) is not None:
                    for reply in await exchange.replies(message):
                        yield reply
        except ResourceExhausted as error:
            yield self.refusal(http_error(error))
        except HttpError as error:
            yield self.refusal(error)

    def refusal(self, error: HttpError) -> Reply:
        """What Envoy is to answer in place of what is behind it."""
        self.metrics.routed_by_envoy.labels("refused").inc()
        headers = {"content-type": "application/json", **error.headers}
        return _reply(
            immediate_response=ext_proc.ImmediateResponse(
                status=HttpStatus(code=error.status),
                headers=_setting(headers),
                body=to_json(error.body),
                details="smoa",
            )
        )

    async def decide(self, principal: Principal, passing: Passing) -> router_pb2.Decision:
        """The router's decision for a request, or the base model's name alone where no router is there and that is enough."""
        tenant = principal.tenant(passing.asked.route.tenant, "smoa.tenant")
        try:
            decision, _ = await self.answering.decide(principal, tenant, passing.asked)
        except Unavailable:
            if not (self.passes and self.base_model_name):
                raise
            return router_pb2.Decision(tenant=tenant)  # the base model's name is enough
        return decision

    async def model_of(self, decision: router_pb2.Decision) -> str:
        """What the engine behind calls what was decided: its first adapter, or the base model.

        Raises:
            Unavailable: nothing tells the base model's name.
        """
        if decision.adapters:
            return decision.adapters[0].name or decision.adapters[0].adapter_id
        if self.base_model_name:
            return self.base_model_name
        if not (name := (await self.answering.base_models()).get(decision.base_model)):
            raise Unavailable("base_model: no executor tells its name; set SMOA_GATEWAY_BASE_MODEL_NAME", 5.0)
        return name


class _Exchange:
    """One HTTP request and its answer, as messages of them come."""

    def __init__(self, processor: Processor, more_bytes: Callable[[int], None]) -> None:
        """`more_bytes` is told how much more, or less, of the body is kept."""
        self._processor, self._more_bytes = processor, more_bytes
        self._headers: dict[str, str] = {}
        self._request_mode = self._response_mode = ProcessingMode.NONE
        self._body = bytearray()
        self._routes = self._is_whole = False
        self._decision: router_pb2.Decision | None = None
        self._tokens = AnswerTokens()
        self._counts = False
        self._began_ns = time.perf_counter_ns()
        self._first_us = 0

    async def replies(self, message: Message) -> Iterable[Reply]:
        """What Envoy is answered to a message; none while parts are kept."""
        if message.HasField("protocol_config"):
            self._request_mode = message.protocol_config.request_body_mode
            self._response_mode = message.protocol_config.response_body_mode
        kind = message.WhichOneof("request")
        try:
            if kind == "request_headers":
                return self._request_headers(message.request_headers)
            if kind == "request_body":
                return await self._request_body(message.request_body.body, last=message.request_body.end_of_stream)
            if kind == "request_trailers":
                return [*await self._before_trailers(), _reply(request_trailers=ext_proc.TrailersResponse())]
        except (SmoaError, grpc.aio.AioRpcError) as error:
            return [self._refused(http_error(error))]
        except HttpError as error:
            return [self._refused(error)]
        if kind == "response_headers":
            return self._response_headers(message.response_headers)
        if kind == "response_body":
            return self._response_body(message.response_body.body, last=message.response_body.end_of_stream)
        self._count()
        return [_reply(response_trailers=ext_proc.TrailersResponse())]

    @property
    def is_kept(self) -> bool:
        """Envoy waits for the rest of the request, with what is here of it."""
        return self._routes and not self._is_whole and self._request_mode in (_DUPLEX, _STREAMED)

    def _refused(self, error: HttpError) -> Reply:
        self._routes = False
        self._release()
        return self._processor.refusal(error)

    def _release(self) -> bytes:
        """What was kept of the body."""
        body = bytes(self._body)
        self._body.clear()
        self._more_bytes(-len(body))
        return body

    def _request_headers(self, sent: Any) -> Iterable[Reply]:
        self._headers = {one.key: one.raw_value.decode("latin-1") or one.value for one in sent.headers.headers}
        path = self._headers.get(":path", "").partition("?")[0]
        self._routes = self._headers.get(":method") == "POST" and path.endswith(PATHS) and not sent.end_of_stream
        if self._routes and self._request_mode == _DUPLEX:
            return ()  # they go on with the body
        response = ext_proc.CommonResponse()
        self._remove_what_only_we_say(response, {})
        if self._routes and self._request_mode == _STREAMED:
            response.header_mutation.remove_headers.append("content-length")  # another model's name has another length
        return [_reply(request_headers=ext_proc.HeadersResponse(response=response))]

    def _remove_what_only_we_say(self, response: Any, said: Mapping[str, str]) -> None:
        """Whoever sends a request does not choose the endpoint that it goes to."""
        if sent := [name for name in (MODEL_HEADER, ENDPOINT_HEADER) if name in self._headers and name not in said]:
            response.header_mutation.remove_headers.extend(sent)
            response.clear_route_cache = True  # a route may have been chosen by them

    async def _before_trailers(self) -> Iterable[Reply]:
        if not self.is_kept:
            return ()
        if self._request_mode == _STREAMED:
            problem = "trailers: cannot go with a body that is routed while it streams; send none, or have bodies sent FULL_DUPLEX_STREAMED"
            raise HttpError(400, problem, "invalid_request_error", "trailers", None)
        return await self._whole_request(trailers=True)

    async def _request_body(self, data: bytes, *, last: bool) -> Iterable[Reply]:
        if not self._routes:
            return [_body_reply(data, last, self._request_mode)]
        self._more_bytes(len(data))
        self._body += data
        if len(self._body) > self._processor.max_body_bytes:
            problem = f"body: has more than {self._processor.max_body_bytes:,} bytes; send less"
            raise HttpError(413, problem, "invalid_request_error", None, "request_too_large")
        if last or self._request_mode not in (_DUPLEX, _STREAMED):
            return await self._whole_request()
        if self._request_mode == _STREAMED:
            return [_reply(request_body=ext_proc.BodyResponse(response=_cleared()))]
        return ()

    async def _whole_request(self, *, trailers: bool = False) -> Iterable[Reply]:
        """Everything of the request is there, but for trailers if any follow: decide."""
        body, headers = self._release(), dict[str, str]()
        self._is_whole = True
        passing = read_request(body)
        if passing is not None:
            principal = await self._processor.access.admit_to(self._headers[":path"], _ROLES, _Call(self._headers))
            self._decision = decision = await self._processor.decide(principal, passing)
            model = await self._processor.model_of(decision)
            self._processor.metrics.routed_by_envoy.labels("routed" if decision.decision_id else "passed").inc()
            body = passing.with_model(model)
            headers = {**headers_of(decision), MODEL_HEADER: quote(model, safe=_PRINTED)}
            if decision.executor:
                headers[ENDPOINT_HEADER] = decision.executor
            if decision.decision_id:
                headers[DECISION_HEADER] = packed(decision)
            if "content-length" in self._headers and self._request_mode != _DUPLEX:
                headers["content-length"] = str(len(body))
        response = ext_proc.CommonResponse(header_mutation=_setting(headers), clear_route_cache=bool(headers))
        if self._request_mode == _DUPLEX:
            response.header_mutation.remove_headers.append("content-length")
            self._remove_what_only_we_say(response, headers)
            return [_reply(request_headers=ext_proc.HeadersResponse(response=response)), *_parts(body, ends=not trailers)]
        if self._request_mode == _STREAMED:
            response = ext_proc.CommonResponse()  # headers have gone
        if passing is not None or self._request_mode == _STREAMED:
            response.body_mutation.body = body
        return [_reply(request_body=ext_proc.BodyResponse(response=response))]

    def _response_headers(self, sent: Any) -> Iterable[Reply]:
        told = {one.key: one.raw_value.decode("latin-1") or one.value for one in sent.headers.headers}
        response = ext_proc.CommonResponse()
        if self._decision is not None:
            # What came from a gateway of ours is counted by its executor.
            self._counts = bool(self._decision.adapters) and told.get(":status") == "200" and ID_HEADER not in told
            if ID_HEADER not in told:
                response.header_mutation.CopyFrom(_setting(headers_of(self._decision)))
            if sent.end_of_stream:
                self._counts = False
        return [_reply(response_headers=ext_proc.HeadersResponse(response=response))]

    def _response_body(self, data: bytes, *, last: bool) -> Iterable[Reply]:
        if self._counts:
            self._first_us = self._first_us or self._passed_us()
            self._tokens.take(data)
            if last:
                self._count()
        return [_body_reply(data, last, self._response_mode, of_response=True)]

    def _passed_us(self) -> int:
        return (time.perf_counter_ns() - self._began_ns) // 1000

    def _count(self) -> None:
        """The answer is there: tell what it took of the adapter that gave it."""
        if not self._counts:
            return
        assert self._decision is not None
        self._counts = False
        adapter = self._decision.adapters[0]
        used = events_pb2.UsageEvent(
            adapter_id=adapter.adapter_id,
            tenant=self._decision.tenant,
            decision_id=self._decision.decision_id,
            tokens=self._tokens.tokens,
            total_us=self._passed_us(),
            first_token_us=self._first_us,
        )
        try:
            self._processor.publish([event(USAGE, adapter.adapter_id, used)])
        except SmoaError as error:
            _log.error("a usage event of an answer that passed is lost: %s", error)


class _Call:
    """A request that passes, as `Access` asks about calls: only what is in its headers counts."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """Its headers."""
        return list(self._headers.items())

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Nothing: the certificate that came here is Envoy's."""
        return {}


def _setting(headers: Mapping[str, str]) -> Any:
    overwrite = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    return ext_proc.HeaderMutation(
        set_headers=[
            HeaderValueOption(header=HeaderValue(key=name, raw_value=value.encode()), append_action=overwrite)
            for name, value in headers.items()
        ]
    )


def _cleared() -> Any:
    return ext_proc.CommonResponse(body_mutation=ext_proc.BodyMutation(clear_body=True))


def _body_reply(data: bytes, last: bool, mode: int, *, of_response: bool = False) -> Reply:
    """A part that goes on as it came; where parts go both ways, it has to be sent back."""
    response = ext_proc.CommonResponse()
    if mode == _DUPLEX:
        response.body_mutation.streamed_response.body = data
        response.body_mutation.streamed_response.end_of_stream = last
    made = ext_proc.BodyResponse(response=response)
    return _reply(response_body=made) if of_response else _reply(request_body=made)


async def _next(requests: AsyncIterator[Message], stalled_s: float | None) -> Message | None:
    """The next message; None after the last one.

    Raises:
        HttpError: it did not come in time.
    """
    try:
        async with asyncio.timeout(stalled_s):
            return await anext(requests)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        raise HttpError(408, f"body: nothing came for {stalled_s:g} s; send it again", "timeout_error", None, "timeout") from None


def _parts(body: bytes, *, ends: bool) -> Iterator[Reply]:
    """A body in parts; the last one ends the request, if nothing follows it."""
    starts = range(0, max(1, len(body)), _PART_BYTES)
    for start in starts:
        yield _body_reply(body[start : start + _PART_BYTES], ends and start == starts[-1], _DUPLEX)
