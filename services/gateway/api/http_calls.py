"""One HTTP request from its bytes to its answer: who calls, their place, the body, and an end when they go away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

import grpc
from pydantic_core import to_json
from starlette.types import Message, Receive, Scope, Send

from services.gateway.api.errors import HttpError, http_error
from services.gateway.metrics import GatewayMetrics
from smoa.access.access import NAMES, Access
from smoa.access.places import Places
from smoa.access.principal import Principal
from smoa.errors import DeadlineExceeded, InvalidArgument, SmoaError
from smoa.tasks import end

_log = logging.getLogger(__name__)
STALLED_S: Final = 60.0
"""For so long a caller may send nothing of a body, or take nothing of an answer."""
JSON: Final = "application/json"


@dataclass(frozen=True)
class Incoming:
    """A request whose caller is known and whose body is there."""

    principal: Principal
    path: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON

    @classmethod
    def of(cls, body: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Reply:
        """In JSON."""
        return cls(to_json(body), status, headers or {})


@dataclass(frozen=True)
class Stream:
    """An answer as it comes; closing its events ends what makes them."""

    events: AsyncGenerator[bytes, None]
    failed: Callable[[HttpError], bytes]
    """The event that says what went wrong."""
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Incoming], Awaitable[Reply | Stream]]


class _Call:
    """An HTTP request, as `Access` asks about calls."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """Its headers."""
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._scope["headers"]]

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Of its certificate (`services.gateway.http_server` puts its names there)."""
        return {NAMES: self._scope.get("extensions", {}).get("tls", {}).get("client_cert_names", ())}


class Endpoint:
    """Answers one path, as an ASGI application."""

    def __init__(
        self,
        path: str,
        handler: Handler,
        roles: frozenset[str],
        *,
        access: Access,
        places: Places,
        bodies: Places,
        metrics: GatewayMetrics,
        max_body_bytes: int,
        timeout_s: float,
        takes_body: bool,
    ) -> None:
        """`path`: as the application names it, whatever stands in its place; `roles`: one of which a caller needs; `bodies`: bytes of all
        requests that are being answered.
        """
        self._path = path
        self._handler, self._roles, self._access, self._places, self._bodies = handler, roles, access, places, bodies
        self._metrics, self._max_body_bytes, self._timeout_s, self._takes_body = metrics, max_body_bytes, timeout_s, takes_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        answer = _Sending(send)
        with self._metrics.request(self._path) as told:  # not by what callers say: each would be a metric of its own
            try:
                principal = await self._access.admit_to(self._path, self._roles, _Call(scope))
                with self._places.held(principal.name), self._bodies.held(principal.name, 0) as more:
                    incoming = await self._incoming(principal, scope, receive, more)
                    told.status = "gone"
                    if await _unless_gone(receive, self._answered(incoming, answer)):
                        told.status = str(answer.status)
            except (SmoaError, grpc.aio.AioRpcError) as error:
                told.status = str(await answer.fail(http_error(error)))
            except HttpError as error:
                told.status = str(await answer.fail(error))
            except _Gone:
                told.status = "gone"
            except Exception:  # noqa: BLE001  the last handler: a bug must reach the log and the caller, not vanish
                _log.exception("%s failed", self._path)
                told.status = str(
                    await answer.fail(HttpError(500, "the gateway failed; see its log", "server_error", None, "internal_error"))
                )

    async def _incoming(self, principal: Principal, scope: Scope, receive: Receive, more: Callable[[int], None]) -> Incoming:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            given = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=32)
        except ValueError as error:
            raise InvalidArgument("query", "has more than 32 fields", "send fewer") from error
        query = {name: values[-1] for name, values in given.items()}
        body = b""
        if self._takes_body:
            said = headers.get("content-type", JSON).partition(";")[0].strip().lower()
            if said != JSON:
                problem = f"content-type: {said[:80]!r} is not served; send {JSON}"
                raise HttpError(415, problem, "invalid_request_error", "content-type", "unsupported_media_type")
            body = await self._body(headers, receive, more)
        return Incoming(principal, scope["path"], headers, query, body)

    async def _body(self, headers: Mapping[str, str], receive: Receive, more_bytes: Callable[[int], None]) -> bytes:
        self._check_size(int(length) if (length := headers.get("content-length", "")).isdecimal() else 0)
        parts, size, more = list[bytes](), 0, True
        while more:
            try:
                async with asyncio.timeout(STALLED_S):
                    message = await receive()
            except TimeoutError as error:
                raise HttpError(408, f"body: nothing came for {STALLED_S:g} s; send it again", "timeout_error", None, "timeout") from error
            if message["type"] == "http.disconnect":
                raise _Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._check_size(size)
            more_bytes(len(parts[-1]))
            more = message.get("more_body", False)
        return b"".join(parts)

    def _check_size(self, size: int) -> None:
        if size > self._max_body_bytes:
            problem = f"body: has more than {self._max_body_bytes:,} bytes; send less"
            # The connection stays: were it closed while the rest is on its way, the caller would see that, and not this.
            raise HttpError(413, problem, "invalid_request_error", None, "request_too_large")

    async def _answered(self, incoming: Incoming, answer: _Sending) -> None:
        try:
            async with asyncio.timeout(self._timeout_s) as deadline:
                reply = await self._handler(incoming)
                if isinstance(reply, Reply):
                    await answer.whole(reply)
                    return
                async with aclosing(reply.events) as events:
                    answer.failed = reply.failed
                    first = await anext(events)  # what never began would not be closed
                    await answer.begin(200, "text/event-stream; charset=utf-8", {"cache-control": "no-cache", **reply.headers})
                    await answer.part(first)
                    async for one in events:
                        await answer.part(one)
                await answer.end()
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(f"request: took more than {self._timeout_s:g} s; ask for less, or try again") from error


class _Gone(Exception):
    """The caller went away while it sent."""


class _Sending:
    """What is sent of an answer. A caller who takes nothing for a while has gone."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self._streaming = send, 0, False
        self.failed: Callable[[HttpError], bytes] | None = None

    async def whole(self, reply: Reply) -> None:
        headers = {"content-length": str(len(reply.body)), **reply.headers}
        await self.begin(reply.status, reply.content_type, headers)
        self._streaming = False
        await self._sent({"type": "http.response.body", "body": reply.body})

    async def begin(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        self.status, self._streaming = status, True
        named = [(name.encode(), _ascii(value)) for name, value in {"content-type": content_type, **headers}.items()]
        await self._sent({"type": "http.response.start", "status": status, "headers": named})

    async def part(self, data: bytes) -> None:
        await self._sent({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._sent({"type": "http.response.body", "body": b""})
        self._streaming = False

    async def fail(self, error: HttpError) -> int:
        """Say what went wrong: with its status, or within a stream that has begun, which it ends. The status that was sent."""
        with suppress(_Gone):
            if not self.status:
                await self.whole(Reply.of(error.body, error.headers, error.status))
            elif self._streaming and self.failed is not None:
                await self.part(self.failed(error))
                await self.end()
        return self.status

    async def _sent(self, message: Message) -> None:
        try:
            async with asyncio.timeout(STALLED_S):
                await self._send(message)
        except TimeoutError as error:
            raise _Gone from error


def _ascii(value: str) -> bytes:
    return "".join(one if " " <= one <= "~" else "?" for one in value).encode()


async def _unless_gone(receive: Receive, work: Awaitable[None]) -> bool:
    """Do it; if the caller goes away before it is done, end it at once and return False."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (watching, working):
            await end(task)
