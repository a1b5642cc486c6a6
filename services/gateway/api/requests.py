"""Bodies to what is asked. Every value that a service would refuse is refused here, before a decision is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from services.gateway.api.fields import CHAT, COMPLETIONS, FEEDBACK, RESPONSES, Fields
from services.gateway.serving.asked import Asked
from services.gateway.serving.routes import to_route
from smoa.errors import InvalidArgument
from smoa.limits import (
    AS_MANY_TOKENS,
    MAX_ANSWERS,
    MAX_EXAMPLE_CHARACTERS,
    MAX_ID_CHARACTERS,
    MAX_LOGIT_BIAS,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_NAME_CHARACTERS,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    MAX_TAGS,
)
from smoa.rules import check_rules
from smoa.v1 import executor_pb2, feedback_pb2

Made = TypeVar("Made", bound=BaseModel)
_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_LEAST_TOP_P: Final = 1e-6
"""The most probable token alone; 0 means in the contract that it was left out."""
_REMEDY: Final = "correct it, or leave it out"


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


Name = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
Tokens = Annotated[int, Field(ge=1, lt=2**31)]


class Smoa(BaseModel):
    """What is ours in a body."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
    strategy: str | None = None
    top_k: Annotated[int, Field(ge=1, le=16)] | None = None
    tags: Annotated[list[Name], Field(max_length=MAX_TAGS)] | None = None
    task: Name | None = None
    session: Name | None = None
    new_topic: bool | None = None
    user: Name | None = None
    own_only: bool | None = None
    explain: bool | None = None
    tenant: Annotated[str, Field(max_length=63)] | None = None
    base_model: Name | None = None


class StreamOptions(_Body):
    """How a stream ends."""

    include_usage: bool | None = None


class Sampling(_Body):
    """What the three kinds of request share."""

    model: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_LOGIT_BIASES)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    smoa: Smoa | None = None


class Chat(Sampling):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class Completion(Sampling):
    """`POST /v1/completions`."""

    prompt: str | list[Any]
    max_tokens: Tokens | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class Response(Sampling):
    """`POST /v1/responses`."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None


class Feedback(_Body):
    """`POST /v1/feedback`."""

    id: Annotated[str, Field(min_length=1, max_length=2 * MAX_ID_CHARACTERS)]
    success: bool | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    source: Annotated[str, Field(max_length=64)] | None = None
    revision: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    withdrawn: bool = False
    input: Annotated[str, Field(max_length=MAX_EXAMPLE_CHARACTERS)] | None = None
    output: Annotated[str, Field(max_length=MAX_EXAMPLE_CHARACTERS)] | None = None
    corrected_output: Annotated[str, Field(max_length=MAX_EXAMPLE_CHARACTERS)] | None = None
    right_adapter_id: Annotated[str, Field(max_length=MAX_ID_CHARACTERS)] | None = None
    tenant: Annotated[str, Field(max_length=63)] | None = None


def parsed(data: bytes, kind: type[Made], fields: Fields) -> tuple[Made, tuple[str, ...]]:
    """A body, and what its sender should know of it.

    Raises:
        InvalidArgument: it is no JSON object, or a field is not served or has a bad value.
    """
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidArgument("body", f"is not JSON ({error})", "send one JSON object in UTF-8") from error
    if not isinstance(body, dict):
        raise InvalidArgument("body", "is no JSON object", "send one")
    warnings = fields.check(body)
    try:
        return kind.model_validate({name: value for name, value in body.items() if value is not None}), warnings
    except ValidationError as error:
        raise said_of(error) from error


def said_of(error: ValidationError, within: str = "") -> InvalidArgument:
    """The first thing that is wrong, in one sentence; `within` a field."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = within
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif not part[:1].isupper() and "[" not in part and part not in ("str", "int", "float", "bool"):  # else a branch of a union
            where += f".{part[:80]}" if where else part[:80]
    if first["type"] == "missing":
        return InvalidArgument(where, "is missing", "send it")
    return InvalidArgument(where or "body", first["msg"][:1].lower() + first["msg"][1:200], _REMEDY)


class Defaults(BaseModel):
    """Of what a request leaves open."""

    model_config = ConfigDict(frozen=True)
    max_tokens: int = 0
    temperature: float = 0.0


def chat(data: bytes, defaults: Defaults) -> Asked:
    """A chat completion's request.

    Raises:
        InvalidArgument: see `parsed`.
    """
    body, warnings = parsed(data, Chat, CHAT)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidArgument("top_logprobs", "is given without logprobs", "set logprobs to true")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    turns = _turns("messages", body.messages)
    return _asked(body, turns, body.max_completion_tokens or body.max_tokens, logprobs, warnings, defaults)


def completion(data: bytes, defaults: Defaults) -> Asked:
    """A completion's request.

    Raises:
        InvalidArgument: see `parsed`.
    """
    body, warnings = parsed(data, Completion, COMPLETIONS)
    prompt = body.prompt
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise InvalidArgument("prompt", "is several, or tokens", "send one text")
        prompt = prompt[0]
    turns = [executor_pb2.Message(role="user", content=_text("prompt", prompt))]
    return _asked(body, turns, body.max_tokens, body.logprobs, warnings, defaults)


def response(data: bytes, defaults: Defaults) -> Asked:
    """A response's request.

    Raises:
        InvalidArgument: see `parsed`.
    """
    body, warnings = parsed(data, Response, RESPONSES)
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for number, item in enumerate(items):
        if item.get("type", "message") != "message":
            raise InvalidArgument(f"input[{number}].type", f"{str(item['type'])[:40]!r} is not served", "send messages with texts")
    turns = _turns("input", items)
    if body.instructions:
        turns.insert(0, executor_pb2.Message(role="system", content=body.instructions))
    asked = _asked(body, turns, body.max_output_tokens, None, warnings, defaults)
    return replace(asked, instructions=body.instructions or "")


def feedback(data: bytes) -> feedback_pb2.Outcome:
    """A verdict on an answer.

    Raises:
        InvalidArgument: see `parsed`; or of an answer that no decision was made for.
    """
    body, _ = parsed(data, Feedback, FEEDBACK)
    decision_id = decision_of(body.id)
    if body.success is None and not body.withdrawn:
        raise InvalidArgument("success", "is missing", "say true or false; or `withdrawn`, to take back what was said")
    return feedback_pb2.Outcome(
        decision_id=decision_id,
        tenant=body.tenant or "",
        success=body.success or False,
        score=body.score,
        source=body.source or "",
        revision=body.revision or 0,
        withdrawn=body.withdrawn,
        input=body.input or "",
        output=body.output or "",
        corrected_output=body.corrected_output or "",
        right_adapter_id=body.right_adapter_id or "",
    )


PREFIXES: Final = {"chat": "chatcmpl-", "completion": "cmpl-", "response": "resp_"}
"""Of answers' ids, before their decision's."""
UNDECIDED: Final = "base-"
"""After it, in ids of answers that the base model gave without a decision."""


def decision_of(answer_id: str) -> str:
    """The decision's id in an answer's; itself, if it is one.

    Raises:
        InvalidArgument: the answer is the base model's, or that is no id.
    """
    rest = next((answer_id.removeprefix(prefix) for prefix in PREFIXES.values() if answer_id.startswith(prefix)), answer_id)
    if rest.startswith(UNDECIDED):
        raise InvalidArgument("id", "is of an answer that no adapter had a part in", "report on answers to `smoa-auto`, or of adapters")
    if not rest.isalnum() or len(rest) > MAX_ID_CHARACTERS:
        raise InvalidArgument("id", "is neither an answer's nor a decision's", "send the `id` of an answer, or its `smoa.decision_id`")
    return rest


def _turns(field: str, messages: Sequence[Mapping[str, Any]]) -> list[executor_pb2.Message]:
    if not messages:
        raise InvalidArgument(field, "is empty", "send a conversation whose last turn is the user's")
    if len(messages) > MAX_MESSAGES:
        raise InvalidArgument(field, f"holds {len(messages):,}", f"send at most {MAX_MESSAGES:,}")
    turns = []
    for number, one in enumerate(messages):
        where, role = f"{field}[{number}]", one.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            shown = "is missing" if role is None else f"{str(role)[:40]!r} is not served"
            raise InvalidArgument(f"{where}.role", shown, f"use one of {', '.join(_ROLES)}")
        for name in ("tool_calls", "function_call", "audio"):
            if one.get(name):
                raise InvalidArgument(f"{where}.{name}", "is not served", "say in a text what was done")
        turns.append(executor_pb2.Message(role=_ROLES[role], content=_text(f"{where}.content", one.get("content"))))
    if turns[-1].role != "user":
        raise InvalidArgument(f"{field}[{len(turns) - 1}].role", "is not the user's", "end with what the user says")
    return turns


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        text = content
    elif isinstance(content, list) and all(isinstance(part, dict) for part in content):
        for number, part in enumerate(content):
            if part.get("type") not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
                kind = str(part.get("type"))[:40]
                raise InvalidArgument(f"{where}[{number}]", f"{kind!r} is not served", "send parts of type text")
        text = "".join(part["text"] for part in content)
    else:
        raise InvalidArgument(where, "is no text", "send a text, or a list of parts of type text")
    if not text.strip():
        raise InvalidArgument(where, "is empty", "send a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(where, "holds half a surrogate pair", "send whole characters") from error
    return text


def _asked(
    body: Sampling,
    turns: Sequence[executor_pb2.Message],
    max_tokens: int | None,
    logprobs: int | None,
    warnings: tuple[str, ...],
    defaults: Defaults,
) -> Asked:
    ours = body.smoa or Smoa()
    generate = executor_pb2.GenerateRequest(
        messages=turns,
        max_tokens=max_tokens or defaults.max_tokens or AS_MANY_TOKENS,
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=0 if body.top_p is None else max(body.top_p, _LEAST_TOP_P),
        stop=_stops(body.stop),
        seed=None if body.seed is None else body.seed % 2**64,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0,
        repetition_penalty=body.repetition_penalty or 0,
        presence_penalty=body.presence_penalty or 0,
        frequency_penalty=body.frequency_penalty or 0,
        logit_bias=_biases(body.logit_bias or {}),
        logprobs=logprobs,
        n=body.n or 1,
        ignore_eos=body.ignore_eos or False,
    )
    route = to_route(ours.model_dump(), turns, body.safety_identifier or body.user or "")
    check_rules(generate)
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return Asked(model=body.model, route=route, generate=generate, stream=bool(body.stream), usage_in_stream=usage, warnings=warnings)


def _stops(given: str | list[str] | None) -> list[str]:
    stops = [given] if isinstance(given, str) else list(given or ())
    if len(stops) > MAX_STOPS or any(not one or len(one) > MAX_STOP_CHARACTERS for one in stops):
        problem = "holds an empty text, a long one, or too many"
        raise InvalidArgument("stop", problem, f"send at most {MAX_STOPS} of 1 to {MAX_STOP_CHARACTERS} characters")
    return stops


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    biases = {}
    for token, bias in given.items():
        if not token.isdecimal() or not token.isascii() or len(token) > 10 or int(token) >= 2**31:
            raise InvalidArgument("logit_bias", f"{token[:40]!r} is no token's id", "name tokens of the base model by their numbers")
        if abs(bias) > MAX_LOGIT_BIAS:
            raise InvalidArgument("logit_bias", f"{bias:g} of token {token} is outside -100..100", "-100 keeps a token away, 100 brings it")
        biases[int(token)] = bias
    return biases


Parse = Callable[[bytes, Defaults], Asked]
