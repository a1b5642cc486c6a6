"""The HTTP interface: which path answers what, to whom."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final

import grpc
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.gateway.api import requests
from services.gateway.api.errors import HttpError, http_error, not_allowed
from services.gateway.api.forms import ChatForm, CompletionForm, Form, ResponseForm
from services.gateway.api.http_calls import Endpoint, Incoming, Reply, Stream
from services.gateway.api.models import Models
from services.gateway.api.requests import Defaults, Parse
from services.gateway.metrics import GatewayMetrics
from services.gateway.serving.answering import Answer, Answering
from services.gateway.serving.asked import Asked
from services.gateway.serving.decisions import DECISION_HEADER, headers_of, unpacked
from services.gateway.serving.router_calls import RouterCalls
from smoa.access.access import Access
from smoa.access.places import Places
from smoa.errors import DeadlineExceeded, Unavailable

_CALLERS: Final = frozenset({"infer"})
_READERS: Final = frozenset({"infer", "library", "operate"})
ROUTES: Final[dict[str, tuple[str, frozenset[str]]]] = {
    "/v1/chat/completions": ("POST", _CALLERS),
    "/v1/completions": ("POST", _CALLERS),
    "/v1/responses": ("POST", _CALLERS),
    "/v1/feedback": ("POST", _CALLERS),
    "/v1/models": ("GET", _READERS),
    "/v1/models/{model:path}": ("GET", _READERS),
    "/metrics": ("GET", frozenset({"operate"})),
}
"""Path -> method, and the roles one of which a caller needs. `/healthz` and `/readyz` are for anybody."""
_WARNING: Final = "smoa-warning"


class Application:
    """What the gateway answers by HTTP."""

    def __init__(
        self,
        router: RouterCalls,
        answering: Answering,
        metrics: GatewayMetrics,
        *,
        access: Access,
        places: Places,
        bodies: Places,
        defaults: Defaults,
        max_body_bytes: int,
        timeout_s: float,
        ready: Callable[[], Awaitable[None]],
    ) -> None:
        """`bodies`: bytes of requests that are held at once; `ready` raises while what it needs is away."""
        self._router, self._answering, self._metrics, self._defaults = router, answering, metrics, defaults
        self._models, self._ready = Models(router, answering), ready
        handlers = {
            "/v1/chat/completions": self._generating(requests.chat, ChatForm),
            "/v1/completions": self._generating(requests.completion, CompletionForm),
            "/v1/responses": self._generating(requests.response, ResponseForm),
            "/v1/feedback": self._feedback,
            "/v1/models": self._list_models,
            "/v1/models/{model:path}": self._one_model,
            "/metrics": self._read_metrics,
        }
        routes = [Route("/healthz", self._healthz, methods=["GET"]), Route("/readyz", self._readyz, methods=["GET"])]
        for path, (method, roles) in ROUTES.items():
            endpoint = Endpoint(
                path,
                handlers[path],
                roles,
                access=access,
                places=places,
                bodies=bodies,
                metrics=metrics,
                max_body_bytes=max_body_bytes,
                timeout_s=timeout_s,
                takes_body=method == "POST",
            )
            routes.append(Route(path, endpoint, methods=[method]))
        self.asgi = Starlette(routes=routes, exception_handlers={HTTPException: _unknown})

    def _generating(self, parse: Parse, form: type[Form]) -> Callable[[Incoming], Awaitable[Reply | Stream]]:
        async def answer(incoming: Incoming) -> Reply | Stream:
            began_s = time.monotonic()
            asked = parse(incoming.body, self._defaults)
            sent = incoming.headers.get(DECISION_HEADER)
            answer = await self._answering.answer(incoming.principal, asked, None if sent is None else unpacked(sent))
            self._metrics.first_seconds.observe(time.monotonic() - began_s)
            headers = headers_of(answer.decision, answer.executor)
            if answer.warnings:
                headers[_WARNING] = "; ".join(answer.warnings)
            written = form(asked, answer.decision, answer.executor)
            if asked.stream:
                return Stream(_streamed(written, answer), written.failed, headers)
            return await self._whole(incoming, asked, answer, written, form, headers)

        return answer

    async def _whole(
        self, incoming: Incoming, asked: Asked, answer: Answer, written: Form, form: type[Form], headers: dict[str, str]
    ) -> Reply:
        """The answer as one body. Nothing of it is out until it is there: should its executor die, another begins anew."""
        for again in (True, False):
            try:
                async with aclosing(answer.rest) as rest:
                    written.take(answer.first)
                    async for _, piece in rest:
                        written.take(piece)
                break
            except grpc.aio.AioRpcError as error:
                if not again or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                answer = await self._answering.again(incoming.principal, asked, answer)
                written = form(asked, answer.decision, answer.executor)
                headers |= headers_of(answer.decision, answer.executor)
        _check_whole(written)
        return Reply.of(written.whole(), headers)

    async def _feedback(self, incoming: Incoming) -> Reply:
        outcome = requests.feedback(incoming.body)
        outcome.tenant = incoming.principal.tenant(outcome.tenant)
        await self._router.report(incoming.principal, outcome)
        return Reply.of({"object": "feedback", "decision_id": outcome.decision_id})

    async def _list_models(self, incoming: Incoming) -> Reply:
        return Reply.of(await self._models.page(incoming.principal, incoming.query))

    async def _one_model(self, incoming: Incoming) -> Reply:
        name = incoming.path.removeprefix("/v1/models/")
        return Reply.of(await self._models.one(incoming.principal, name, incoming.query))

    async def _read_metrics(self, incoming: Incoming) -> Reply:
        encode, content_type = choose_encoder(incoming.headers.get("accept", ""))
        return Reply(encode(self._metrics.registry), content_type=content_type)

    async def _healthz(self, request: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def _readyz(self, request: Request) -> Response:
        try:
            await self._ready()
        except (grpc.aio.AioRpcError, Unavailable) as error:
            said = http_error(error)
            return Response(f"{said.message}\n", status_code=503, media_type="text/plain")
        return Response("ok\n", media_type="text/plain")


async def _streamed(form: Form, answer: Answer) -> AsyncGenerator[bytes, None]:
    async with aclosing(answer.rest) as rest:
        for one in (*form.begin(), *form.piece(answer.first)):
            yield one
        async for _, piece in rest:
            for one in form.piece(piece):
                yield one
    _check_whole(form)
    for one in form.end():
        yield one


def _check_whole(form: Form) -> None:
    if not form.ended:
        raise DeadlineExceeded("executor: ended before the answer did; try again")


async def _unknown(request: Request, error: Exception) -> Response:
    """A path, or a method, that is not there."""
    assert isinstance(error, HTTPException)
    method, path = request.method[:20], request.url.path[:200]
    allowed = (error.headers or {}).get("Allow", "")
    said = not_allowed(method, path, allowed) if error.status_code == 405 else _no_path(method, path)
    reply = Reply.of(said.body, said.headers, said.status)
    return Response(reply.body, status_code=reply.status, headers=dict(reply.headers), media_type=reply.content_type)


def _no_path(method: str, path: str) -> HttpError:
    served = ", ".join(ROUTES)
    return HttpError(404, f"{method} {path}: is not served; use {served}", "invalid_request_error", None, "unknown_url")
