"""Requests as the engine takes them: every bound that the contract states is checked here, those in tokens by the engine."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from services.executor.adapters.leases import AdapterRef
from services.executor.engine.pipeline import Generation, Stage
from services.executor.engine.sampling import Sampling
from services.executor.models.prompt import Message, checked_messages, user_turn
from smoa.errors import InvalidArgument
from smoa.identifiers import checked_tenant
from smoa.limits import (
    MAX_ANSWERS,
    MAX_ID_CHARACTERS,
    MAX_LOGIT_BIAS,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_STAGE_ADAPTERS,
    MAX_STAGES,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    MAX_WEIGHT,
)
from smoa.v1 import common_pb2 as common
from smoa.v1 import executor_pb2

_RANGES: Final[tuple[tuple[str, float, float, str], ...]] = (
    ("temperature", 0, 10, "use 0 for greedy"),
    ("top_p", 0, 1, "leave it out for 1"),
    ("top_k", 0, 2**31 - 1, "leave it out for all tokens"),
    ("min_p", 0, 1, "leave it out for none"),
    ("repetition_penalty", 0.01, 10, "leave it out for none"),
    ("presence_penalty", -2, 2, "leave it out for none"),
    ("frequency_penalty", -2, 2, "leave it out for none"),
    ("logprobs", 0, MAX_LOGPROBS, "ask for fewer alternatives"),
    ("n", 0, MAX_ANSWERS, "ask for fewer answers"),
)
"""(field, least, most, remedy); 0 is always good, as it is what a field is that was left out."""


def to_generations(request: executor_pb2.GenerateRequest, vocabulary: int) -> list[Generation]:
    """One for each answer that is asked for, alike but for their seeds.

    Raises:
        InvalidArgument: a value that the contract does not allow.
    """
    messages = to_messages(request)
    stops: Sequence[str] = request.stop
    if len(stops) > MAX_STOPS or any(not stop or len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise InvalidArgument(
            "stop", "holds an empty text, a long one, or too many", f"send at most {MAX_STOPS} of 1 to {MAX_STOP_CHARACTERS} characters"
        )
    if len(request.decision_id) > MAX_ID_CHARACTERS:  # it comes back in every adapter's usage event
        raise InvalidArgument("decision_id", f"has {len(request.decision_id):,} characters", "send the id that Route returned")
    stages = _to_stages(request)
    sampling = _to_sampling(request, vocabulary)
    generation = Generation(
        tenant=checked_tenant(request.tenant),
        messages=messages,
        adapters=stages[-1].adapters,
        max_tokens=stages[-1].max_tokens,
        before=tuple(stages[:-1]),
        stop=tuple(stops),
    )
    seeds = [(sampling.seed + index) % 2**64 for index in range(request.n or 1)]
    return [replace(generation, sampling=replace(sampling, seed=seed)) for seed in seeds]


def check_text(field: str, text: str) -> None:
    """Raise for an empty text; how long one may be is counted in tokens.

    Raises:
        InvalidArgument: it is empty.
    """
    if not text:
        raise InvalidArgument(field, "is empty", "send a text")


def to_messages(request: executor_pb2.GenerateRequest | executor_pb2.ScoreRequest) -> tuple[Message, ...]:
    """A request's conversation: its `messages`, or its `prompt` as a user's turn.

    Raises:
        InvalidArgument: neither is there, or both are, or turns that no model takes.
    """
    if not request.messages:
        if not request.prompt:
            raise InvalidArgument("prompt", "is empty, and there are no messages", "send one of the two")
        return user_turn(request.prompt)
    if request.prompt:
        raise InvalidArgument("messages", "come with a prompt beside them", "send one of the two: a prompt is one user turn")
    if len(request.messages) > MAX_MESSAGES:
        raise InvalidArgument("messages", f"holds {len(request.messages)}", f"send at most {MAX_MESSAGES}")
    return checked_messages([Message(turn.role, turn.content) for turn in request.messages])


def to_refs(adapters: Iterable[common.WeightedAdapter]) -> tuple[AdapterRef, ...]:
    """A mixture's adapters.

    Raises:
        InvalidArgument: too many, one of them twice, or a weight out of bounds.
    """
    refs = tuple(AdapterRef(one.adapter_id, one.version, one.digest, one.weight) for one in adapters)
    if len(refs) > MAX_STAGE_ADAPTERS:
        raise InvalidArgument("adapters", f"holds {len(refs)}", f"send at most {MAX_STAGE_ADAPTERS}")
    if len({ref.adapter_id for ref in refs}) < len(refs):
        raise InvalidArgument("adapters", "names an adapter twice", "add up its weights")
    for ref in refs:
        if not math.isfinite(ref.weight) or abs(ref.weight) > MAX_WEIGHT:
            raise InvalidArgument(
                "adapters.weight", f"{ref.weight:g} is outside -{MAX_WEIGHT:g}..{MAX_WEIGHT:g}", "a decision's weights add up to 1"
            )
    return refs


def _to_stages(request: executor_pb2.GenerateRequest) -> list[Stage]:
    if request.stages and request.adapters:
        raise InvalidArgument("stages", "come with adapters beside them", "send one of the two; a decision on a composition has stages")
    if len(request.stages) > MAX_STAGES:
        raise InvalidArgument("stages", f"holds {len(request.stages)}", f"send at most {MAX_STAGES}")
    max_tokens = request.max_tokens or 64
    stages = [Stage(to_refs(one.adapters), one.max_tokens or max_tokens) for one in request.stages]
    return stages or [Stage(to_refs(request.adapters), max_tokens)]


def _to_sampling(request: executor_pb2.GenerateRequest, vocabulary: int) -> Sampling:
    for field, least, most, remedy in _RANGES:
        value = getattr(request, field)
        if value and not np.float32(least) <= value <= most:  # nor is NaN; the contract's numbers are float32
            raise InvalidArgument(field, f"{value:g} is outside {least}..{most}", remedy)
    if len(request.logit_bias) > MAX_LOGIT_BIASES:
        raise InvalidArgument("logit_bias", f"holds {len(request.logit_bias):,} tokens", f"send at most {MAX_LOGIT_BIASES:,}")
    for token, bias in request.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise InvalidArgument("logit_bias", f"names token {token}", f"the base model has 0..{vocabulary - 1}")
        if not abs(bias) <= MAX_LOGIT_BIAS:
            raise InvalidArgument("logit_bias", f"{bias:g} of token {token} is outside -100..100", "-100 keeps a token away, 100 brings it")
    return Sampling(
        temperature=request.temperature,
        top_p=request.top_p or 1.0,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty or 1.0,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=dict(request.logit_bias),
        logprobs=request.logprobs if request.HasField("logprobs") else None,
        ignore_eos=request.ignore_eos,
        seed=request.seed if request.HasField("seed") else secrets.randbits(32),
    )
