"""What the gateway makes of bodies, and of answers: pure."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.api.errors import http_error
from services.gateway.api.fields import EVERY
from services.gateway.api.forms import ChatForm, ResponseForm
from services.gateway.api.requests import Defaults, chat, decision_of, feedback, response
from services.gateway.envoy.bodies import AnswerTokens, read_request
from services.gateway.serving.asked import Asked
from services.gateway.serving.decisions import headers_of, packed, unpacked
from services.router.routing.executors import Executor, ExecutorDirectory
from smoa.access.principal import Principal
from smoa.errors import InvalidArgument, NotFound, ResourceExhausted, Unauthenticated, Unavailable
from smoa.v1 import executor_pb2, router_pb2
from tests.access_support import caller

DECISION_ID = "01J9ZC3B5T8QH7M2K4N6P0R1SV"


def _decision() -> router_pb2.Decision:
    made = router_pb2.Decision(decision_id=DECISION_ID, tenant="acme", base_model="b", confidence=0.25, context=b"x" * 64)
    made.adapters.add(adapter_id="A", name="knees, naïve", version=2, weight=0.75)
    made.adapters.add(adapter_id="B", weight=0.25)
    return made


def test_a_conversation_becomes_a_route_and_a_generation() -> None:
    body = {
        "model": "smoa-auto",
        "messages": [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "?"}]},
        ],
        "safety_identifier": "u1",
        "max_completion_tokens": 9,
        "seed": -1,
        "stop": "\n",
        "logit_bias": {"7": -100},
        "smoa": {"session": "s", "tags": ["t"], "strategy": "learned", "tenant": "acme"},
    }
    asked = chat(json.dumps(body).encode(), Defaults(temperature=0.5))
    assert (asked.route.query, list(asked.route.turns), asked.route.user) == ("two?", ["one"], "u1")
    assert (asked.route.session, list(asked.route.tags), asked.route.strategy, asked.route.tenant) == ("s", ["t"], 3, "acme")
    assert [turn.role for turn in asked.generate.messages] == ["system", "user", "assistant", "user"]
    assert (asked.generate.max_tokens, asked.generate.seed, list(asked.generate.stop)) == (9, 2**64 - 1, ["\n"])
    assert asked.generate.temperature == 0.5
    assert dict(asked.generate.logit_bias) == {7: -100}


def test_a_long_line_is_routed_by_its_beginning() -> None:
    body = {"model": "smoa-auto", "input": "x" * 100_000, "instructions": "Be short."}
    asked = response(json.dumps(body).encode(), Defaults())
    assert len(asked.route.query) == 8192
    assert [len(turn.content) for turn in asked.generate.messages] == [9, 100_000]


def test_no_field_is_in_two_columns() -> None:
    for fields in EVERY:
        names = [*fields.served, *fields.ignored, *fields.refused]
        assert len(names) == len(set(names))
        assert fields.harmless.keys() <= fields.refused.keys()


def test_a_decision_goes_through_a_header_and_back() -> None:
    kept = unpacked(packed(_decision()))
    assert kept.adapters == _decision().adapters
    assert (kept.decision_id, kept.context) == (DECISION_ID, b"")
    for wrong in ("!", "AAAA", "x" * 10):
        with pytest.raises(InvalidArgument, match=r"^smoa-decision: is no decision; leave it out"):
            unpacked(wrong)


def test_headers_are_ascii() -> None:
    told = headers_of(_decision(), "h:1")
    assert told == {
        "smoa-decision-id": DECISION_ID,
        "smoa-adapters": "knees%2C%20na%C3%AFve:0.75, B:0.25",
        "smoa-executor": "h:1",
        "smoa-confidence": "0.25",
    }


@pytest.mark.parametrize("said", [DECISION_ID, f"chatcmpl-{DECISION_ID}", f"cmpl-{DECISION_ID}", f"resp_{DECISION_ID}"])
def test_feedback_is_on_a_decision_or_an_answer(said: str) -> None:
    assert decision_of(said) == DECISION_ID
    outcome = feedback(json.dumps({"id": said, "success": False, "corrected_output": "right"}).encode())
    assert (outcome.decision_id, outcome.success, outcome.corrected_output) == (DECISION_ID, False, "right")


@given(st.lists(st.text(max_size=5), min_size=1, max_size=6), st.integers(1, 3))
def test_a_streams_texts_are_the_whole_answers(texts: list[str], n: int) -> None:
    asked = Asked(model="m", route=router_pb2.RouteRequest(), generate=executor_pb2.GenerateRequest(n=n))
    streamed, whole = (ChatForm(asked, _decision(), "h:1") for _ in range(2))
    events = []
    for index in range(n):
        for number, text in enumerate(texts):
            usage = executor_pb2.Usage(finish_reason="FINISH_REASON_END", prompt_tokens=3, completion_tokens=len(texts))
            piece = executor_pb2.GenerateResponse(index=index, text=text, usage=usage if number == len(texts) - 1 else None)
            events += list(streamed.piece(piece))
            whole.take(piece)
    chunks = [json.loads(one.removeprefix(b"data: ")) for one in events]
    for index, choice in enumerate(whole.whole()["choices"]):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(one["delta"]["content"] for one in mine) == choice["message"]["content"] == "".join(texts)
        assert [one["finish_reason"] for one in mine] == [None] * (len(texts) - 1) + ["stop"]
        assert "role" in mine[0]["delta"]
    assert ["smoa" in chunk for chunk in chunks].count(True) == min(2, len(chunks))
    assert streamed.usage == {"prompt_tokens": 3, "completion_tokens": n * len(texts), "total_tokens": 3 + n * len(texts)}


def test_a_response_that_is_cut_or_fails_says_so_in_its_own_form() -> None:
    body = {"model": "smoa-auto", "input": "hi", "instructions": "Be short.", "stream": True}
    asked = response(json.dumps(body).encode(), Defaults())
    form = ResponseForm(asked, _decision(), "h:1")
    usage = executor_pb2.Usage(finish_reason="FINISH_REASON_LENGTH", prompt_tokens=3, completion_tokens=2)
    events = [*form.begin(), *form.piece(executor_pb2.GenerateResponse(text="so", usage=usage))]
    failed = form.failed(http_error(Unavailable("executor: is away", 1.0)))
    assert failed.startswith(b"event: error\n")
    assert json.loads(failed.partition(b"data: ")[2]) == {
        "type": "error",
        "sequence_number": len(events),
        "code": "service_unavailable",
        "message": "executor: is away",
        "param": None,
    }
    done, last = (json.loads(one.partition(b"data: ")[2]) for one in list(form.end())[-2:])
    assert (done["type"], done["item"]["status"]) == ("response.output_item.done", "incomplete")
    assert (last["type"], last["response"]["output"][0]["status"]) == ("response.incomplete", "incomplete")
    assert last["response"]["instructions"] == "Be short."
    assert last["response"]["output"][0]["content"][0]["text"] == "so"


@pytest.mark.parametrize(
    ("error", "status", "param", "headers"),
    [
        (InvalidArgument("n", "is 0", "ask for one"), 400, "n", {}),
        (NotFound("model", "x"), 404, "model", {}),
        (NotFound("tenant", "x"), 404, "tenant", {}),
        (Unauthenticated("key: nobody's here"), 401, None, {"www-authenticate": "Bearer"}),
        (ResourceExhausted("calls: bot is over 5 a second", "wait 2.3 s, or ask for a higher limit"), 429, None, {"retry-after": "3"}),
        (ResourceExhausted("queue: is full", "wait until one ends"), 429, None, {"retry-after": "1"}),
        (Unavailable("router: is away", 4.2), 503, None, {"retry-after": "5"}),
    ],
)
def test_an_error_has_openais_form(error: Any, status: int, param: str | None, headers: dict[str, str]) -> None:
    made = http_error(error)
    assert (made.status, made.param, made.headers) == (status, param, headers)
    assert made.body["error"]["message"] == str(error)


def test_what_grpc_says_of_itself_is_not_shown() -> None:
    failed = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="ipv4:10.0.0.7:50052 refused"
    )
    made = http_error(failed)
    assert (made.status, made.code) == (503, "service_unavailable")
    assert "10.0.0.7" not in made.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"model": "other", "messages": 5}',
        b'{"messages": [{"role": "user", "content": "x"}]}',
        b'{"model": ["smoa-auto"]}',
    ],
)
def test_what_is_not_to_be_routed_passes(body: bytes) -> None:
    assert read_request(body) is None


def test_a_request_that_passes_keeps_all_that_is_not_ours() -> None:
    body = {
        "model": "smoa-auto",
        "messages": [
            {"role": "tool", "content": "x"},
            {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "hi"}]},
        ],
        "tools": [1],
        "smoa": {"top_k": 1},
    }
    passing = read_request(json.dumps(body).encode())
    assert passing is not None
    assert (passing.asked.route.query, passing.asked.route.top_k) == ("hi", 1)
    assert json.loads(passing.with_model("knees")) == {"model": "knees", "messages": body["messages"], "tools": [1]}
    with pytest.raises(InvalidArgument, match=r"^messages: hold no text of a user"):
        read_request(b'{"model": "smoa-auto", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}')
    with pytest.raises(InvalidArgument, match=r"^smoa\.top_k: "):
        read_request(b'{"model": "smoa-auto", "messages": [], "smoa": {"top_k": 0}}')


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_answers_tokens_are_read_as_it_passes(size: int) -> None:
    told = b"data: {}\n\n" * 3 + b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 41}}\n\ndata: [DONE]\n\n'
    tokens, without = AnswerTokens(), AnswerTokens()
    for start in range(0, len(told), size):
        tokens.take(told[start : start + size])
    assert tokens.tokens == 41
    without.take(b"data: {}\n\n" * 3 + b"data: [DONE]\n\n")
    assert without.tokens == 3


def test_who_is_represented_has_no_more_than_the_gateway_and_is_no_service() -> None:
    door = caller("door", "acme beta", "gateway infer optimizer")
    assert door.acting_for("bot", ["acme", "other"], ["infer", "library", "optimizer"]) == Principal(
        "bot", frozenset({"acme"}), frozenset({"infer"})
    )
    assert door.acting_for("root", ["*"], []).tenants == {"acme", "beta"}
    everywhere = caller("door", "*", "gateway infer")
    assert everywhere.acting_for("root", ["*"], ["infer"]).of_every_tenant
    assert everywhere.acting_for("nobody", [], ["infer"]).tenants == frozenset()


def test_a_base_model_is_meant_by_its_fingerprint_its_name_or_as_the_only_one() -> None:
    now, directory = 1_000_000, ExecutorDirectory()

    def heard(address: str, base_model: str, name: str, at_us: int = now) -> None:
        directory.report(Executor(address, base_model, 1, frozenset(), frozenset(), 0.0, at_us, None, name), at_us)

    with pytest.raises(Unavailable, match="is empty, and no executor has told of itself"):
        directory.base_model("", now)
    assert directory.base_model("anything", now) == "anything"
    heard("a:1", "f1", "small")
    assert [directory.base_model(asked, now) for asked in ("", "small", "f1", "other")] == ["f1", "f1", "f1", "other"]
    heard("b:1", "f2", "large")
    assert directory.base_model("large", now) == "f2"
    with pytest.raises(InvalidArgument, match="is empty, and executors run large, small; name one"):
        directory.base_model("", now)
    later = now + 11_000_000
    heard("b:1", "f2", "large", later)
    assert directory.base_model("", later) == "f2"
