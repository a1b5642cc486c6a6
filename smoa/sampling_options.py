"""How an answer is picked, as the client's methods take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict


class SamplingOptions(TypedDict, total=False):
    """Fields of `GenerateRequest` (proto/smoa/v1/executor.proto says what each means); what is left out is greedy, one answer."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    logprobs: int
    n: int
    ignore_eos: bool
    stop: Sequence[str]
    seed: int
    stream_usage: bool
