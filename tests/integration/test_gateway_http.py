"""The gateway's HTTP interface on real services: what is answered, what is refused, and what becomes of those who go away."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from services.gateway.serving.decisions import packed
from smoa.v1 import common_pb2 as common
from smoa.v1 import feedback_pb2, registry_pb2, router_pb2
from tests.gateway_support import BASE, CONTEXT, MOST_TOKENS, GatewayWorld, events_of
from tests.integration.router_support import MONEY
from tests.kafka_support import read_events, until

pytestmark = pytest.mark.asyncio(loop_scope="session")
CHAT = "/v1/chat/completions"


def _said(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "smoa-auto", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}


async def test_a_query_is_routed_answered_and_reported_on(gateway: GatewayWorld) -> None:
    status, answer, headers = await gateway.post(CHAT, _said(MONEY[0]))
    assert status == 200
    assert [one["name"] for one in answer["smoa"]["adapters"]] == ["refunds"]
    assert answer["id"] == f"chatcmpl-{answer['smoa']['decision_id']}"
    assert answer["usage"] == {**answer["usage"], "completion_tokens": 4}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert headers["smoa-decision-id"] == answer["smoa"]["decision_id"]
    assert headers["smoa-adapters"] == "refunds:1"
    assert headers["smoa-executor"] in gateway.executors
    assert "smoa-confidence" not in headers, "two adapters are too few to tell"
    assert answer["smoa"]["confidence"] is None
    verdict = {"id": answer["id"], "success": True, "score": 0.75, "input": MONEY[0], "output": "refunds"}
    assert (await gateway.post("/v1/feedback", verdict))[0] == 200

    async def arrived() -> bool:
        events = await read_events(gateway.kafka, "smoa.outcomes.v1")
        outcomes = [feedback_pb2.Outcome.FromString(one.value) for one in events]
        return [(one.success, one.score) for one in outcomes if one.decision_id == answer["smoa"]["decision_id"]] == [(True, 0.75)]

    await until("the verdict being on its topic", 20, arrived)


@pytest.mark.parametrize("by", ["name", "id"])
async def test_an_adapter_that_is_named_is_used(gateway: GatewayWorld, by: str) -> None:
    named = "knees" if by == "name" else gateway.adapters["knees"]
    status, answer, _ = await gateway.post(CHAT, _said(MONEY[0], model=named))
    assert (status, [one["id"] for one in answer["smoa"]["adapters"]]) == (200, [gateway.adapters["knees"]])
    assert answer["smoa"]["decision_id"]


async def test_a_composition_that_is_named_is_carried_out(gateway: GatewayWorld) -> None:
    branches = [registry_pb2.CompositionChild(adapter_id=gateway.adapters[name], weight=0.5) for name in ("knees", "refunds")]
    root = registry_pb2.CompositionNode(strategy=common.COMPOSITION_STRATEGY_PARALLEL, children=branches)
    await gateway.client.compose("both", root)
    for _ in range(2):  # the second time it is known for a composition
        status, answer, _ = await gateway.post(CHAT, _said(MONEY[0], model="both"))
        assert (status, {one["name"] for one in answer["smoa"]["adapters"]}) == (200, {"knees", "refunds"})


async def test_the_base_models_name_means_no_adapter_and_no_decision(gateway: GatewayWorld) -> None:
    status, answer, _ = await gateway.post(CHAT, _said(MONEY[0], model=BASE))
    assert (status, answer["smoa"]["adapters"], answer["smoa"]["decision_id"]) == (200, [], "")
    direct = "".join([piece.text async for piece in gateway.client.stream(MONEY[0], max_tokens=4)])
    assert answer["choices"][0]["message"]["content"] == direct
    status, refusal, _ = await gateway.post("/v1/feedback", {"id": answer["id"], "success": True})
    assert (status, refusal["error"]["param"]) == (400, "id")


async def test_a_stream_says_the_same_as_a_whole_answer(gateway: GatewayWorld) -> None:
    body = _said(MONEY[1], max_tokens=12, n=2, temperature=0.8, seed=7, logprobs=True, top_logprobs=2)
    _, whole, _ = await gateway.post(CHAT, body)
    texts, ends, logprobs, chunks = ["", ""], ["", ""], [list[Any](), list[Any]()], list[Any]()
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with gateway.http.post(f"{gateway.url}/chat/completions", json=streamed) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for _, chunk in events_of(answer):
            chunks.append(chunk)
            for choice in chunk["choices"] if isinstance(chunk, dict) else ():
                texts[choice["index"]] += choice["delta"].get("content", "")
                ends[choice["index"]] += choice["finish_reason"] or ""
                logprobs[choice["index"]] += choice["logprobs"]["content"]
    assert chunks.pop() == "[DONE]"
    assert chunks.pop()["usage"] == whole["usage"]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert ends == [choice["finish_reason"] for choice in whole["choices"]]
    tokens = [[one["token"] for one in choice["logprobs"]["content"]] for choice in whole["choices"]]
    assert [[one["token"] for one in told] for told in logprobs] == tokens
    assert all(len(one["top_logprobs"]) == 2 for told in logprobs for one in told)
    with_decision = [number for number, chunk in enumerate(chunks) if "smoa" in chunk]
    assert with_decision == [0, len(chunks) - 1]


async def test_completions_and_responses_say_what_chat_says(gateway: GatewayWorld) -> None:
    _, chat, _ = await gateway.post(CHAT, _said(MONEY[0]))
    _, completion, _ = await gateway.post("/v1/completions", {"model": "smoa-auto", "prompt": MONEY[0], "max_tokens": 4, "logprobs": 1})
    _, response, _ = await gateway.post("/v1/responses", {"model": "smoa-auto", "input": MONEY[0], "max_output_tokens": 4})
    text = chat["choices"][0]["message"]["content"]
    assert completion["choices"][0]["text"] == text
    assert "".join(completion["choices"][0]["logprobs"]["tokens"]) == text
    assert response["output"][0]["content"][0]["text"] == text
    assert (response["status"], response["usage"]["output_tokens"]) == ("incomplete", 4)
    assert completion["id"].startswith("cmpl-")
    assert response["id"].startswith("resp_")


async def test_a_response_is_streamed_as_typed_events(gateway: GatewayWorld) -> None:
    body = {"model": "smoa-auto", "input": [{"role": "user", "content": [{"type": "input_text", "text": MONEY[0]}]}], "stream": True}
    body["max_output_tokens"] = 8
    kinds, text, numbers = list[str](), "", list[int]()
    async with gateway.http.post(f"{gateway.url}/responses", json=body) as answer:
        async for name, event in events_of(answer):
            assert name == event["type"]
            kinds.append(name)
            numbers.append(event["sequence_number"])
            text += event.get("delta", "")
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert numbers == list(range(len(numbers)))
    assert event["response"]["output"][0]["content"][0]["text"] == text


async def test_no_limit_means_as_many_tokens_as_fit(gateway: GatewayWorld) -> None:
    body = {"model": BASE, "messages": [{"role": "user", "content": "Count from one to a hundred."}], "ignore_eos": True}
    _, answer, _ = await gateway.post(CHAT, body)
    assert answer["usage"]["completion_tokens"] == MOST_TOKENS
    long = "a b c d " * 40
    _, answer, _ = await gateway.post(CHAT, {**body, "messages": [{"role": "user", "content": long}]})
    assert answer["usage"]["total_tokens"] == CONTEXT


async def test_a_session_is_routed_by_what_it_is_about(gateway: GatewayWorld) -> None:
    ours = {"smoa": {"session": "s1", "explain": True}}
    await gateway.post(CHAT, _said(MONEY[0], **ours))
    _, answer, _ = await gateway.post(CHAT, _said("and the second one?", **ours))
    assert answer["smoa"]["adapters"][0]["name"] == "refunds"
    assert {one["name"]: one["before"] > 0.5 for one in answer["smoa"]["explanations"]} == {"refunds": True, "knees": False}
    turns = [{"role": "user", "content": MONEY[0]}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and that?"}]
    _, answer, _ = await gateway.post(CHAT, {**_said(""), "messages": turns})
    assert answer["smoa"]["adapters"][0]["name"] == "refunds"


async def test_models_are_listed_in_pages_and_searched(gateway: GatewayWorld) -> None:
    _, page = await gateway.get("/v1/models?limit=1")
    ids = [one["id"] for one in page["data"]]
    assert ids[:2] == ["smoa-auto", BASE]
    assert page["has_more"]
    found = list(page["data"])
    while page["has_more"]:
        _, page = await gateway.get(f"/v1/models?limit=1&after={page['next_after']}")
        found += page["data"]
    adapters = {one["id"]: one for one in found if one["smoa"]["kind"] == "adapter"}
    assert {"refunds", "knees"} <= adapters.keys()
    assert adapters["knees"]["parent"] == BASE
    assert adapters["knees"]["root"].startswith("sha256:")
    _, page = await gateway.get("/v1/models?search=my+leg+hurts+on+stairs")
    assert page["data"][0]["id"] == "knees"
    _, page = await gateway.get("/v1/models?search=refunds")
    assert page["data"][0]["smoa"]["adapter_id"] == gateway.adapters["refunds"]
    for path in (f"?limit={'9' * 5000}", "?" + "&".join(f"a{number}=1" for number in range(33))):
        assert (await gateway.get(f"/v1/models{path}"))[0] == 400
    assert (await gateway.get("/v1/models/"))[0] == 404
    for name in ("smoa-auto", BASE, "knees", gateway.adapters["knees"]):
        assert (await gateway.get(f"/v1/models/{name}"))[0] == 200
    status, refusal = await gateway.get("/v1/models/nobody")
    assert (status, refusal["error"]["code"]) == (404, "model_not_found")
    async with gateway.http.get(f"http://{gateway.gateway}/metrics") as answer:
        said = await answer.text()
    assert 'smoa_gateway_requests_total{path="/v1/models/{model:path}",status="404"} 2.0' in said
    assert "nobody" not in said


WRONG: list[tuple[dict[str, Any], int, str | None]] = [
    ({"model": "nobody"}, 404, "model"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 1_000_000}]}, 400, "prompt"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, 400, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, 400, "messages[1].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "messages[0].content[0]"),
    ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
    ({"messages": "hello"}, 400, "messages"),
    ({"n": 0}, 400, "n"),
    ({"n": 9}, 400, "n"),
    ({"stop": [f"{number}" for number in range(10_000)]}, 400, "stop"),
    ({"stop": ""}, 400, "stop"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"temperature": 11}, 400, "temperature"),
    ({"top_logprobs": 3}, 400, "top_logprobs"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": MOST_TOKENS + 1}, 400, "max_tokens"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"9" * 5000: 1}}, 400, "logit_bias"),
    ({"logit_bias": {"999999": 1}}, 400, "logit_bias"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"max_token": 3}, 400, "max_token"),
    ({"smoa": {"strategy": "best"}}, 400, "smoa.strategy"),
    ({"smoa": {"colour": "red"}}, 400, "smoa.colour"),
    ({"smoa": {"top_k": 17}}, 400, "smoa.top_k"),
    ({"smoa": {"tenant": "nobody-was-here"}}, 404, "tenant"),
    ({"smoa": {"tenant": "../x"}}, 400, "tenant"),
]


@pytest.mark.parametrize(("changes", "status", "param"), WRONG, ids=[str(list(one[0].items()))[:50] for one in WRONG])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_wrong_is_said_in_openais_form(
    gateway: GatewayWorld, changes: dict[str, Any], status: int, param: str | None, stream: bool
) -> None:
    found, refusal, headers = await gateway.post(CHAT, _said("hello there", stream=stream, **changes))
    assert (found, refusal["error"]["param"]) == (status, param), refusal
    assert refusal["error"].keys() == {"message", "type", "param", "code"}
    assert refusal["error"]["type"] == "invalid_request_error"
    assert len(refusal["error"]["message"]) < 600
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"", {}, 400),
        (b"[]", {}, 400),
        (b'{"model": "smoa-auto", "messages": [{"role": "user", "content": "\\ud800"}]}', {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"model": "smoa-auto", "temperature": NaN}', {}, 400),
        (b"model=smoa-auto", {"content-type": "application/x-www-form-urlencoded"}, 415),
        (b"x" * (4 * 2**20 + 1), {}, 413),
        (json.dumps(_said("hi")).encode(), {"smoa-decision": "!"}, 400),
    ],
    ids=range(10),
)
async def test_a_body_that_is_none_is_said_in_openais_form(
    gateway: GatewayWorld, body: bytes, headers: dict[str, str], status: int
) -> None:
    found, refusal, _ = await gateway.post(CHAT, body, headers)
    assert (found, refusal["error"].keys()) == (status, {"message", "type", "param", "code"}), refusal


async def test_a_forged_decision_makes_it_call_nobody_but_executors(gateway: GatewayWorld) -> None:
    """With its call, the gateway says who it is."""
    called: list[str] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.append("called")
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as elsewhere:
        address = f"127.0.0.1:{elsewhere.sockets[0].getsockname()[1]}"
        forged = router_pb2.Decision(tenant="public", base_model=gateway.base_model, executor=address)
        status, answer, headers = await gateway.post(CHAT, _said(MONEY[0]), {"smoa-decision": packed(forged)})
        assert (status, answer["smoa"]["executor"]) == (200, headers["smoa-executor"])
        assert headers["smoa-executor"] in gateway.executors
        assert not called


async def test_paths_and_methods_that_are_not_there(gateway: GatewayWorld) -> None:
    status, refusal = await gateway.get("/v1/embeddings")
    assert (status, refusal["error"]["code"]) == (404, "unknown_url")
    status, refusal = await gateway.get(CHAT)
    assert (status, refusal["error"]["code"]) == (405, "method_not_allowed")


async def test_fields_without_effect_are_told_of(gateway: GatewayWorld) -> None:
    status, _, headers = await gateway.post(CHAT, _said(MONEY[0], metadata={"a": "b"}, reasoning_effort="low", tools=[]))
    assert status == 200
    assert headers["smoa-warning"] == "metadata: nothing is stored here; reasoning_effort: the models that are served do not reason apart"


@pytest.mark.parametrize("stream", [True, False])
async def test_who_goes_away_frees_its_row(gateway: GatewayWorld, stream: bool) -> None:
    body = _said("Tell me a very long story.", model=BASE, stream=stream, ignore_eos=True, max_tokens=MOST_TOKENS)
    begun = asyncio.create_task(gateway.post(CHAT, body)) if not stream else None
    if begun is None:
        async with gateway.http.post(f"{gateway.url}/chat/completions", json=body) as answer:
            await anext(events_of(answer))
            answer.close()
    else:

        async def runs() -> bool:
            return any([(await gateway.status(address)).running for address in gateway.executors])

        await until("the request running", 10, runs)
        begun.cancel()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await gateway.idle()
    assert loop.time() - began_s < 3, "the whole answer takes longer"


async def test_a_slow_reader_holds_no_row(gateway: GatewayWorld) -> None:
    """It takes the first bytes and no more; its rows are free when its answers are there."""
    readers = []
    for _ in range(2):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        host, _, port = gateway.gateway.partition(":")
        reader.connect((host, int(port)))
        body = json.dumps(
            _said("Tell me a long story.", model=BASE, stream=True, ignore_eos=True, max_tokens=80, n=2, logprobs=True, top_logprobs=20)
        ).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        reader.sendall(head.encode() + body)
        readers.append(reader)
    try:
        for reader in readers:
            assert (await asyncio.to_thread(reader.recv, 100)).startswith(b"HTTP/1.1 200")
        await gateway.idle()  # a megabyte of answers that nobody has taken
    finally:
        for reader in readers:
            reader.close()


async def test_a_head_that_has_no_end_is_cut_off(gateway: GatewayWorld) -> None:
    host, _, port = gateway.gateway.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /healthz HTTP/1.1\r\nx: ")

    async def send() -> None:
        while True:
            writer.write(b"y" * 4096)
            await writer.drain()

    with pytest.raises(ConnectionError):  # that it is too large is said, but who still sends may not hear it
        await send()
    writer.close()
    assert (await gateway.get("/v1/models"))[0] == 200
