"""The external processor under a real Envoy: in front of our gateway, and of an engine that only knows names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from smoa.v1 import events_pb2, router_pb2
from tests.envoy_support import ENVOY, Upstream, running_envoy, running_upstream
from tests.gateway_support import BASE, GatewayWorld, events_of, running_gateway
from tests.integration.router_support import KNEES, MONEY
from tests.kafka_support import read_events, until

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.skipif(ENVOY is None, reason="no envoy in this environment")]
MODES = ("BUFFERED", "STREAMED", "FULL_DUPLEX_STREAMED")
CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture(loop_scope="session", params=MODES)
async def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="session")
async def upstream() -> AsyncIterator[Upstream]:
    async with running_upstream() as running:
        yield running


def _chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "smoa-auto", "messages": [{"role": "user", "content": text}], **more}


async def _post(gateway: GatewayWorld, envoy: str, body: Any, *, parts: int = 1) -> tuple[int, Any, dict[str, str]]:
    """Status, answer and headers of a request whose body goes out in parts."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = -(-len(data) // parts)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]
            await asyncio.sleep(0)

    headers = {"content-type": "application/json"}
    async with gateway.http.post(f"http://{envoy}{CHAT}", data=pieces(), headers=headers) as answer:
        said = json.loads(await answer.read()) if answer.content_type == "application/json" else await answer.text()
        return answer.status, said, dict(answer.headers)


@pytest.mark.parametrize("parts", [1, 50])
async def test_an_engine_gets_the_adapters_name(gateway: GatewayWorld, upstream: Upstream, mode: str, parts: int, tmp_path: Path) -> None:
    async with running_envoy(tmp_path, gateway.envoy, upstream.address, mode) as envoy:
        sent = _chat(MONEY[0], tools=[{"type": "function"}], smoa={"explain": True})
        status, answer, headers = await _post(gateway, envoy, sent, parts=parts)
        assert (status, answer["model"]) == (200, "refunds")
        ((told, body),) = upstream.asked
        assert body == {**{name: value for name, value in sent.items() if name != "smoa"}, "model": "refunds"}
        assert headers["smoa-adapters"] == "refunds:1"
        if mode != "STREAMED":  # where a request's headers have gone before its body is read
            assert told["x-gateway-model-name"] == "refunds"
            assert told["x-gateway-destination-endpoint"] in gateway.executors

        async def counted() -> bool:
            events = await read_events(gateway.kafka, "smoa.usage.v1")
            used = [events_pb2.UsageEvent.FromString(one.value) for one in events]
            return [(one.tokens, one.adapter_id) for one in used if one.decision_id == headers["smoa-decision-id"]] == [
                (7, gateway.adapters["refunds"])
            ]

        await until("the answer's tokens being on their topic", 20, counted)


async def test_a_megabyte_goes_through(gateway: GatewayWorld, upstream: Upstream, mode: str, tmp_path: Path) -> None:
    """What the user said before is long; the line that is routed is not."""
    long = [{"role": "user", "content": "x" * 1_000_000}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": KNEES[0]}]
    async with running_envoy(tmp_path, gateway.envoy, upstream.address, mode) as envoy:
        status, answer, _ = await _post(gateway, envoy, {"model": "smoa-auto", "messages": long}, parts=30)
        assert (status, answer["model"]) == (200, "knees")
        assert upstream.asked[0][1]["messages"] == long
        assert (await _post(gateway, envoy, _chat("x" * (4 * 2**20 + 1)), parts=30))[0] == 413  # Envoy's own where it keeps bodies


async def test_streams_errors_and_what_names_its_model_pass(gateway: GatewayWorld, upstream: Upstream, mode: str, tmp_path: Path) -> None:
    async with running_envoy(tmp_path, gateway.envoy, upstream.address, mode) as envoy:
        async with gateway.http.post(f"http://{envoy}{CHAT}", json=_chat(MONEY[0], stream=True)) as answer:
            chunks = [chunk async for _, chunk in events_of(answer)]
            decision_id = answer.headers["smoa-decision-id"]
        assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[:-1]) == "01234"
        assert chunks[-1] == "[DONE]"

        async def counted() -> bool:
            events = await read_events(gateway.kafka, "smoa.usage.v1")
            used = [events_pb2.UsageEvent.FromString(one.value) for one in events]
            return [one.tokens for one in used if one.decision_id == decision_id] == [5]

        await until("a stream's tokens being on their topic", 20, counted)
        named = _chat(MONEY[0], model="their-own")
        aimed = {"x-gateway-destination-endpoint": "10.0.0.1:80", "x-other": "kept"}
        async with gateway.http.post(f"http://{envoy}{CHAT}", json=named, headers=aimed) as answer:
            assert (await answer.json())["model"] == "their-own"
        told, body = upstream.asked[-1]
        assert body == named
        assert {name: told.get(name) for name in aimed} == {"x-gateway-destination-endpoint": None, "x-other": "kept"}
        upstream.status = 404
        status, answered, _ = await _post(gateway, envoy, _chat(MONEY[0]))
        assert (status, answered["error"]["message"]) == (404, "no such model")
        upstream.status = 200
        status, refusal, _ = await _post(gateway, envoy, _chat("", messages=[]))
        assert (status, refusal["error"]["param"]) == (400, "messages")
        async with gateway.http.post(f"http://{envoy}{CHAT}", data=b"{nonsense", headers={"content-type": "application/json"}) as broken:
            assert broken.status == 500  # the engine's own


async def test_in_front_of_the_gateway_a_decision_is_made_once(gateway: GatewayWorld, tmp_path: Path) -> None:
    async with running_envoy(tmp_path, gateway.envoy, gateway.gateway) as envoy:
        status, answer, headers = await _post(gateway, envoy, _chat(MONEY[0], max_tokens=2, smoa={"task": "once"}))
        assert (status, [one["name"] for one in answer["smoa"]["adapters"]]) == (200, ["refunds"])
        assert headers["smoa-decision-id"] == answer["smoa"]["decision_id"]

        async def counted() -> bool:
            events = await read_events(gateway.kafka, "smoa.usage.v1")
            used = [events_pb2.UsageEvent.FromString(one.value) for one in events]
            return [one.tokens for one in used if one.decision_id == answer["smoa"]["decision_id"]] == [2]

        await until("the executor's usage, and no other", 20, counted)
        decisions = [router_pb2.Decision.FromString(one.value) for one in await read_events(gateway.kafka, "smoa.decisions.v1")]
        assert [one.decision_id for one in decisions if one.task_id == "once"] == [answer["smoa"]["decision_id"]]


@pytest.mark.parametrize("policy", ["refuse", "pass"])
async def test_without_a_router_requests_are_refused_or_go_on_as_is_set(policy: str, upstream: Upstream, tmp_path: Path) -> None:
    changes = {"SMOA_GATEWAY_WHEN_ROUTER_IS_AWAY": policy, "SMOA_GATEWAY_BASE_MODEL_NAME": BASE, "SMOA_ROUTER": "127.0.0.1:1"}
    async with (
        running_gateway(tmp_path / "world", executors=0, **changes) as world,
        running_envoy(tmp_path, world.envoy, upstream.address) as envoy,
    ):
        status, answer, _ = await _post(world, envoy, _chat(MONEY[0]))
        if policy == "refuse":
            assert (status, answer["error"]["code"]) == (503, "service_unavailable")
        else:
            assert (status, answer["model"]) == (200, BASE)
        status, refusal, headers = await world.post(CHAT, _chat(MONEY[0]))
        assert (status, refusal["error"]["code"]) == (503, "service_unavailable")
        assert int(headers["retry-after"]) >= 1
