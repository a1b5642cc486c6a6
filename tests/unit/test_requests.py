"""What a request may ask for, and what it comes to."""

from __future__ import annotations

from typing import Any

import pytest

from services.executor.engine.sampling import Sampling
from services.executor.requests import to_generations
from smoa.errors import InvalidArgument
from smoa.v1 import executor_pb2

VOCABULARY = 200


def _request(**fields: Any) -> executor_pb2.GenerateRequest:
    return executor_pb2.GenerateRequest(prompt="a", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": -1}, "top_k: -1 is outside 0..2147483647; leave it out for all tokens"),
        ({"min_p": 1.5}, "min_p: 1.5 is outside 0..1; leave it out for none"),
        ({"repetition_penalty": -1.0}, "repetition_penalty: -1 is outside 0.01..10; leave it out for none"),
        ({"repetition_penalty": 11.0}, "repetition_penalty: 11 is outside 0.01..10; leave it out for none"),
        ({"presence_penalty": 2.5}, "presence_penalty: 2.5 is outside -2..2; leave it out for none"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty: nan is outside -2..2; leave it out for none"),
        ({"logit_bias": {200: 1.0}}, "logit_bias: names token 200; the base model has 0..199"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias: names token -1; the base model has 0..199"),
        ({"logit_bias": {7: 101.0}}, "logit_bias: 101 of token 7 is outside -100..100; -100 keeps a token away, 100 brings it"),
        ({"logit_bias": {7: float("nan")}}, "logit_bias: nan of token 7 is outside -100..100; -100 keeps a token away, 100 brings it"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias: holds 1,025 tokens; send at most 1,024"),
        ({"logprobs": 21}, "logprobs: 21 is outside 0..20; ask for fewer alternatives"),
        ({"n": 9}, "n: 9 is outside 0..8; ask for fewer answers"),
        ({"temperature": float("inf")}, "temperature: inf is outside 0..10; use 0 for greedy"),
    ],
)
def test_options_out_of_bounds(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        to_generations(_request(**fields), VOCABULARY)
    assert str(caught.value) == message


def test_what_is_left_out_is_greedy_and_has_a_random_seed() -> None:
    (first,), (second,) = to_generations(_request(), VOCABULARY), to_generations(_request(), VOCABULARY)
    assert first.sampling != second.sampling
    assert first.sampling == Sampling(seed=first.sampling.seed)
    assert first.sampling.greedy
    assert not first.sampling.changes_logits


def test_the_least_penalty_is_taken_as_float32_has_it() -> None:
    assert to_generations(_request(repetition_penalty=0.01), VOCABULARY)[0].sampling.repetition_penalty == pytest.approx(0.01)


@pytest.mark.parametrize("role", ["", "tool"])
def test_roles_that_no_turn_has_are_refused(role: str) -> None:
    turns = [executor_pb2.Message(role=role, content="hi"), executor_pb2.Message(role="user", content="x")]
    with pytest.raises(InvalidArgument, match=f"^messages: have the role '{role}'; use system, user, assistant$"):
        to_generations(executor_pb2.GenerateRequest(messages=turns), VOCABULARY)


def test_every_option_arrives() -> None:
    options: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 9,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "presence_penalty": -2.0,
        "frequency_penalty": 2.0,
        "logit_bias": {0: -100.0, 199: 100.0},
        "logprobs": 0,
        "ignore_eos": True,
        "seed": 0,
    }
    (generation,) = to_generations(_request(**options), VOCABULARY)
    assert generation.sampling == Sampling(**options)


def test_answers_differ_in_their_seeds_only() -> None:
    generations = to_generations(_request(n=3, seed=2**64 - 2), VOCABULARY)
    assert [one.sampling.seed for one in generations] == [2**64 - 2, 2**64 - 1, 0]
    assert len({(one.messages, one.max_tokens, one.stop) for one in generations}) == 1
