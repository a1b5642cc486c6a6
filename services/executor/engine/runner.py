"""Runs one step of the batch on a backend, and knows no queues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic

import torch
from torch import Tensor

from services.executor.backends.port import Backend, Batch, Chunk, MixtureT
from services.executor.engine.sampling import Pick, Sampler, TokenLogprob, TokenPicker, not_finite
from smoa.errors import FailedPrecondition, SmoaError


@dataclass(frozen=True)
class Work(Generic[MixtureT]):
    """The next tokens of one sequence, and what is wanted of them."""

    chunk: Chunk[MixtureT]
    sampler: Sampler | None = None
    """Says how to pick the token after the last one; None when the prompt goes on."""
    targets: Sequence[int] = ()
    """The tokens that follow the chunk's last `len(targets)`: their log-probabilities are wanted."""


@dataclass(frozen=True)
class Result:
    """What came of a `Work`; an error is its own, and no other's."""

    token: int | None
    """The one that the sampler picked."""
    logprobs: list[float]
    """Of the targets."""
    error: SmoaError | None = None
    token_logprob: TokenLogprob | None = None
    """Of the token, if its sampling asks for it."""


@torch.inference_mode()
def run_step(backend: Backend[MixtureT], picker: TokenPicker, works: Sequence[Work[MixtureT]]) -> list[Result]:
    """One forward pass over all works, in their order, and the tokens of those that have a sampler."""
    logits, greedy = backend.forward(Batch.of([work.chunk for work in works]))
    ends = list(accumulate(work.chunk.outputs for work in works))
    picking = [(end - 1, work.sampler) for end, work in zip(ends, works, strict=True) if work.sampler]
    picks = iter(picker.pick(logits, greedy, [row for row, _ in picking], [sampler for _, sampler in picking]))
    return [
        _result(work, logits[end - work.chunk.outputs : end], next(picks) if work.sampler else None)
        for work, end in zip(works, ends, strict=True)
    ]


def _result(work: Work[MixtureT], logits: Tensor, pick: Pick | FailedPrecondition | None) -> Result:
    if isinstance(pick, FailedPrecondition):
        return Result(None, [], pick)
    logprobs: list[float] = []
    if work.targets:
        targets = torch.tensor(work.targets, device=logits.device)[:, None]
        logprobs = logits[: len(work.targets)].log_softmax(-1).gather(1, targets)[:, 0].tolist()
        if not all(map(math.isfinite, logprobs)):
            return Result(None, [], not_finite())
    return Result(pick.token, logprobs, None, pick.logprob) if pick else Result(None, logprobs)
