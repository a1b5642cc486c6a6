"""Runs one step of the batch on a backend, and knows no queues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from services.executor.backends.port import Backend, Batch, Chunk, MixtureT
from smoa.errors import FailedPrecondition, SmoaError

COLDEST = 1e-5
"""A temperature under this is greedy: dividing by it would leave float32."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to pick a token. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Work(Generic[MixtureT]):
    """The next tokens of one sequence, and what is wanted of them."""

    chunk: Chunk[MixtureT]
    sampler: Sampler | None = None
    """Picks the token after the last one; None when the prompt goes on."""
    targets: Sequence[int] = ()
    """The tokens that follow the chunk's last `len(targets)`: their log-probabilities are wanted."""


@dataclass(frozen=True)
class Result:
    """What came of a `Work`; an error is its own, and no other's."""

    token: int | None
    logprobs: list[float]
    error: SmoaError | None = None


class Sampler:
    """Picks one sequence's tokens; the same seed picks the same."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def pick(self, logits: Tensor, greedy: int, top: float) -> int:
        """A token of logits [vocabulary], whose arg max and highest value are known.

        Nucleus sampling (arXiv 1904.09751): the smallest set of tokens with probability over top_p, renormalised.

        Raises:
            FailedPrecondition: the logits are not finite: the adapters' weights are too large for the dtype.
        """
        if not math.isfinite(top):
            raise _not_finite()
        if self._sampling.temperature < COLDEST:
            return greedy
        scaled = (logits - top).cpu() / self._sampling.temperature
        probabilities, order = scaled.softmax(-1).sort(descending=True)
        if not math.isfinite(probabilities[0]):
            raise _not_finite()
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities.masked_fill(before >= self._sampling.top_p, 0.0)
        return int(order[torch.multinomial(probabilities, 1, generator=self._generator)])


@torch.inference_mode()
def run_step(backend: Backend[MixtureT], works: Sequence[Work[MixtureT]]) -> list[Result]:
    """One forward pass over all works, in their order."""
    logits, greedy = backend.forward(Batch.of([work.chunk for work in works]))
    tops = logits.gather(1, torch.tensor(greedy, dtype=torch.long, device=logits.device)[:, None])[:, 0].tolist()
    results: list[Result] = []
    at = 0
    for work in works:
        mine, at = slice(at, at + work.chunk.outputs), at + work.chunk.outputs
        try:
            results.append(_result(work, logits[mine], greedy[mine], tops[mine]))
        except SmoaError as error:
            results.append(Result(None, [], error))
    return results


def _result(work: Work[MixtureT], logits: Tensor, greedy: list[int], tops: list[float]) -> Result:
    token = work.sampler.pick(logits[-1], greedy[-1], tops[-1]) if work.sampler else None
    logprobs: list[float] = []
    if work.targets:
        targets = torch.tensor(work.targets, device=logits.device)[:, None]
        logprobs = logits[: len(work.targets)].log_softmax(-1).gather(1, targets)[:, 0].tolist()
        if not all(map(math.isfinite, logprobs)):
            raise _not_finite()
    return Result(token, logprobs)


def _not_finite() -> FailedPrecondition:
    return FailedPrecondition("adapters: make the model's output infinite or NaN; lower their weights, or retrain them")
