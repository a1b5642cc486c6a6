"""What is fuzzed: each takes bytes, and raises what is a fault."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from safetensors.numpy import save

from services.gateway.api import requests
from services.gateway.api.requests import Defaults
from services.gateway.envoy.bodies import read_request
from services.gateway.serving.decisions import unpacked
from services.optimizer.stream.changelog import kept_of
from services.optimizer.stream.counting import CountPartition, check_value
from services.optimizer.stream.joining import JoinPartition, entries_of
from services.router.learning.ranker import Ranker
from smoa.access.access import Admitted
from smoa.access.callers import read_callers
from smoa.access.principal import Principal
from smoa.access.rights import rights_of
from smoa.access.tokens import SigningKeys, Tokens
from smoa.adapter import decode
from smoa.errors import InvalidArgument, PermissionDenied, Unauthenticated
from smoa.events import DECISIONS, OUTCOMES, TYPES, Received, unpack
from smoa.events import decode as decode_event
from smoa.peft import import_folder
from smoa.signatures import read_publishers
from smoa.strict_json import parse_json
from smoa.v1 import executor_pb2, feedback_pb2, registry_pb2, router_pb2
from smoa.v1.events_pb2 import Example
from smoa.v1.state_pb2 import AdapterCounts, ExampleSet, JoinEntry, JoinSegment

MOST_SAID: Final = 2_000
"""Characters of the longest refusal: it becomes a status, or part of a dead letter."""
_TOPICS: Final = sorted(TYPES)
_METHODS: Final = [
    (f"/{service.full_name}/{method.name}", GetMessageClass(method.input_type))
    for module in (router_pb2, registry_pb2, feedback_pb2, executor_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
_SOMEBODY: Final = Principal("somebody", frozenset({"acme"}), frozenset({"infer", "library"}))
_TOKENS: Final = Tokens(SigningKeys("keys.json"), "issuer", "smoa", "tenants", "roles")
_FOLDER: Final = Path(tempfile.mkdtemp(prefix="smoa-fuzz-"))


def _refusing(parse: Callable[[bytes], object], *fields: str) -> Callable[[bytes], None]:
    """`parse`, which may refuse, naming one of the fields."""

    def target(data: bytes) -> None:
        try:
            parse(data)
        except InvalidArgument as error:
            assert not fields or error.field.split(".")[0].split("[")[0] in fields, error  # noqa: PT017
            assert len(str(error)) < MOST_SAID  # noqa: PT017

    return target


def _event(data: bytes) -> None:
    """A topic, headers, and a message."""
    topic, named, value = _TOPICS[data[0] % len(_TOPICS)] if data else _TOPICS[0], data[1:20], data[20:]
    headers: list[tuple[str, bytes | None]] = [("smoa-sequence", named[:4])] if named[:1] > b"\x80" else []
    headers += [("smoa-type", b"smoa.v1.EventBatch")] if named[4:5] > b"\x80" else []
    for one in unpack(topic, 0, 0, b"key", value, headers):
        decode_event(one.topic, one.value)


def _counted(data: bytes) -> None:
    """Events of a worker's topics, one after the other: nothing may be found by a bug."""
    received, rest = list[Received](), data
    while len(rest) > 3 and len(received) < 8:
        topic, size = _TOPICS[rest[0] % len(_TOPICS)], rest[1]
        key, value, rest = rest[3 : 3 + rest[2] % 32], rest[3 + rest[2] % 32 : 3 + rest[2] % 32 + size], rest[3 + rest[2] % 32 + size :]
        received.append(Received(topic, 0, len(received), 0, key, value, "p", len(received)))
    joined = JoinPartition[str](0, 1, []).plan([one for one in received if one.topic in (DECISIONS, OUTCOMES)], 1)
    others = [one for one in received if one.topic in ("smoa.usage.v1", "smoa.adapter-outcomes.v1", "smoa.examples.v1")]
    for _, error in (*joined.refused, *CountPartition(1.0, {}).plan(others, 1).refused):
        assert error.field != "event", error


def _changelog(data: bytes) -> None:
    """A record of each changelog: what can be read of it may be anything, and a worker goes on from it."""
    key, value = data[1 : 1 + (data[0] if data else 0)], data[1 + (data[0] if data else 0) :]
    with suppress(ValueError, DecodeError):
        kept = kept_of(key, value)
        entries_of(kept.value)
        part = JoinPartition[str](0, 1, [("a", kept.value)])
        part.plan([], 1)
    with suppress(ValueError, DecodeError):
        kept = kept_of(key, value)
        check_value(name := kept.name.decode(), kept.value)
        counts = CountPartition(1.0, {name: kept.value}, 2**20, 60.0)
        counts.examples.faded(1)
        if name in counts:
            counts.get(name)


def _request(data: bytes) -> None:
    """Of any method: parsed, and held to its rules and to somebody's rights."""
    method, message = _METHODS[data[0] % len(_METHODS)] if data else _METHODS[0]
    made: Any = message()
    try:
        made.ParseFromString(data[1:])
        Admitted(_SOMEBODY, rights_of(method)).check(made)
    except (DecodeError, PermissionDenied):
        pass


def _peft(data: bytes) -> None:
    (_FOLDER / "adapter_config.json").write_bytes(data)
    if not (_FOLDER / "adapter_model.safetensors").exists():
        (_FOLDER / "adapter_model.safetensors").write_bytes(save({}))
    import_folder(_FOLDER, "base")


def _claims(text: str) -> None:
    """Of a token that was signed by its issuer."""
    try:
        claims = parse_json(text)
    except ValueError:
        return
    if isinstance(claims, dict):
        with suppress(Unauthenticated):
            _TOKENS._said({"sub": "x", **claims})


_BODIES: Final = (
    lambda data: requests.chat(data, Defaults()),
    lambda data: requests.completion(data, Defaults()),
    lambda data: requests.response(data, Defaults()),
    requests.feedback,
    read_request,
    lambda data: unpacked(data.decode("latin-1")),
)


def _body(data: bytes) -> None:
    """Of an HTTP request to the gateway, or past it; the first byte says of which kind."""
    if data:
        _BODIES[data[0] % len(_BODIES)](data[1:])


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode(errors="replace"))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "adapter": _refusing(decode, "file", "manifest"),
    "events": _refusing(_event),
    "counted": _counted,
    "changelog": _changelog,
    "requests": _refusing(_request),
    "ranker": _refusing(Ranker.from_bytes, "ranker"),
    "callers": _refusing(_text(read_callers), "callers"),
    "publishers": _refusing(_text(read_publishers), "publishers"),
    "claims": _refusing(_text(_claims)),
    "bodies": _refusing(_body),
    "peft": _refusing(_peft),
}


def seeds(name: str) -> list[bytes]:
    """Good inputs, to begin with."""
    from services.router.learning.ranker import builtin
    from tests.integration.router_support import adapter_file

    if name == "adapter":
        return [adapter_file(adapter_id="01J9ZC3B5T8QH7M2K4N6P0R1SV")]
    if name == "ranker":
        return [builtin().to_bytes()]
    if name == "callers":
        entry = {"name": "a", "tenants": ["acme"], "roles": ["infer"], "key_sha256": "0" * 64}
        return [json.dumps({"callers": [entry]}).encode()]
    if name == "changelog":
        kept = JoinSegment(entries=[JoinEntry(decision_id="d", tenant="acme").SerializeToString()]).SerializeToString()
        sets = ExampleSet(examples=[Example(key="a/b", decision_id="d").SerializeToString()]).SerializeToString()
        counts = AdapterCounts().SerializeToString()
        named = ((b"1@1.2.3", kept), (b"examples/a/b@1.2.3", sets), (b"01J9ZC3B5T8QH7M2K4N6P0R1SV@1.2.3", counts), (b"epoch/@1.2.3", b""))
        return [bytes([len(key)]) + key + value for key, value in named]
    if name == "publishers":
        return [json.dumps({"publishers": [{"tenants": ["acme"], "public_key": "A" * 43 + "="}]}).encode()]
    if name == "claims":
        return [json.dumps({"tenants": ["acme"], "roles": ["infer", "other"]}).encode(), b'{"tenants": [{}], "roles": [{}, [1]]}']
    if name == "bodies":
        ours = {"session": "s", "tags": ["t"], "strategy": "hybrid"}
        said = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
        sampling = {"model": "smoa-auto", "n": 2, "stop": ["x"], "logit_bias": {"1": 2}, "stream": True, "smoa": ours}
        made = [
            {**sampling, "messages": [said], "logprobs": True, "top_logprobs": 2},
            {**sampling, "prompt": "hi"},
            {"model": "smoa-auto", "input": [said], "instructions": "be short"},
            {"id": "chatcmpl-01J9ZC3B5T8QH7M2K4N6P0R1SV", "success": True, "score": 0.5},
            {**sampling, "messages": [said]},
        ]
        return [bytes([kind]) + json.dumps(one).encode() for kind, one in enumerate(made)] + [b"\x05CgNhYmM="]
    if name == "peft":
        return [json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}).encode()]
    if name == "requests":
        asked = router_pb2.RouteRequest(tenant="acme", base_model="b", query="q", tags=["t"]).SerializeToString()
        return [bytes([number]) + asked for number in range(len(_METHODS))]
    decision = router_pb2.Decision(decision_id="d", tenant="acme").SerializeToString()
    return [bytes([number]) + bytes(19) + decision for number in range(len(_TOPICS))]
