"""Envoy's external processor on requests that it does not route: what it keeps of them, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc

from services.gateway.envoy import processor as tested
from services.gateway.envoy.processor import ENDPOINT_HEADER, MODEL_HEADER, Processor
from services.gateway.metrics import GatewayMetrics
from smoa.access.access import Access
from smoa.access.places import Places

BODY = b'{"model": "named", "messages": []}'
STREAMED, DUPLEX = ProcessingMode.STREAMED, ProcessingMode.FULL_DUPLEX_STREAMED


def _processor(places: Places | None = None, bodies: Places | None = None) -> Processor:
    nobody: Any = None
    return Processor(
        nobody,
        Access(),
        GatewayMetrics(nobody),
        lambda events: None,
        places=places or Places(4, 4),
        bodies=bodies or Places(1000, 1000, "bytes of bodies"),
        base_model_name="base",
        passes=False,
        max_body_bytes=500,
    )


def _headers(mode: int, **more: str) -> Any:
    sent = {":method": "POST", ":path": "/v1/chat/completions", **{name.replace("_", "-"): value for name, value in more.items()}}
    every = HeaderMap(headers=[HeaderValue(key=name, raw_value=value.encode()) for name, value in sent.items()])
    return ext_proc.ProcessingRequest(
        request_headers=ext_proc.HttpHeaders(headers=every),
        protocol_config=ext_proc.ProtocolConfiguration(request_body_mode=mode),
    )


def _body(data: bytes, *, last: bool) -> Any:
    return ext_proc.ProcessingRequest(request_body=ext_proc.HttpBody(body=data, end_of_stream=last))


TRAILERS = ext_proc.ProcessingRequest(request_trailers=ext_proc.HttpTrailers())


async def _replies(processor: Processor, *messages: Any, hangs: bool = False) -> list[Any]:
    async def sent() -> AsyncIterator[Any]:
        for one in messages:
            yield one
        if hangs:
            await asyncio.Event().wait()

    return [one async for one in processor.Process(sent(), None)]


async def test_trailers_follow_a_body_that_goes_both_ways() -> None:
    half = len(BODY) // 2
    parts = [_body(BODY[:half], last=False), _body(BODY[half:], last=False), TRAILERS]
    headers, body, trailers = await _replies(_processor(), _headers(DUPLEX), *parts)
    assert headers.HasField("request_headers")
    streamed = body.request_body.response.body_mutation.streamed_response
    assert (streamed.body, streamed.end_of_stream) == (BODY, False)
    assert trailers.HasField("request_trailers")
    *_, body = await _replies(_processor(), _headers(DUPLEX), _body(BODY, last=True))
    assert body.request_body.response.body_mutation.streamed_response.end_of_stream


async def test_trailers_after_a_body_that_streams_are_refused() -> None:
    """It would be lost: only a part of a body may stand for what was kept."""
    *_, refused = await _replies(_processor(), _headers(STREAMED), _body(BODY, last=False), TRAILERS)
    assert refused.immediate_response.status.code == 400
    assert b"trailers: cannot go with a body" in refused.immediate_response.body


@pytest.mark.parametrize("mode", [ProcessingMode.BUFFERED, STREAMED, DUPLEX])
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_who_sends_a_request_does_not_choose_its_endpoint(mode: int, method: str) -> None:
    sent = _headers(mode, x_gateway_destination_endpoint="10.0.0.1:80", x_gateway_model_name="other", x_other="kept")
    sent.request_headers.headers.headers[0].raw_value = method.encode()
    first, *_ = await _replies(_processor(), sent, *([_body(BODY, last=True)] if method == "POST" else []))
    response = first.request_headers.response
    assert {MODEL_HEADER, ENDPOINT_HEADER} <= set(response.header_mutation.remove_headers)
    assert "x-other" not in response.header_mutation.remove_headers
    assert response.clear_route_cache


async def test_what_is_kept_of_bodies_is_bounded_together() -> None:
    bodies = Places(100, 100, "bytes of bodies")
    processor = _processor(bodies=bodies)
    waiting = asyncio.create_task(_replies(processor, _headers(DUPLEX), _body(b"x" * 80, last=False), hangs=True))
    while bodies.taken < 80:  # noqa: ASYNC110  nobody tells when a part was taken
        await asyncio.sleep(0)
    *_, refused = await _replies(processor, _headers(DUPLEX), _body(BODY, last=True))
    assert refused.immediate_response.status.code == 429
    assert b"bytes of bodies: envoy has 80 of its 100 at once" in refused.immediate_response.body
    waiting.cancel()
    await asyncio.wait({waiting})
    assert bodies.taken == 0
    *_, body = await _replies(processor, _headers(DUPLEX), _body(BODY, last=True))
    assert body.request_body.response.body_mutation.streamed_response.body == BODY
    assert bodies.taken == 0


async def test_a_body_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tested, "STALLED_S", 0.01)
    *_, refused = await _replies(_processor(), _headers(DUPLEX), _body(BODY[:5], last=False), hangs=True)
    assert refused.immediate_response.status.code == 408


async def test_no_more_pass_at_once_than_there_are_places() -> None:
    places = Places(1, 1)
    with places.held("envoy"):
        (refused,) = await _replies(_processor(places), _headers(DUPLEX), _body(BODY, last=True))
    assert refused.immediate_response.status.code == 429
