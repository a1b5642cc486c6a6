"""Runs one step of the batch on a backend, and knows no queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.executor.backend import Backend, Chunk


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to pick a token. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Work:
    """The next tokens of one sequence, and what is wanted of them."""

    chunk: Chunk
    sampler: Sampler | None = None
    """Picks the token after the last one; None when the prompt goes on."""
    targets: Sequence[int] = ()
    """The tokens that follow the chunk's last `len(targets)`: their log-probabilities are wanted."""


@dataclass(frozen=True)
class Result:
    """What came of a `Work`."""

    token: int | None
    logprobs: list[float]


class Sampler:
    """Picks one sequence's tokens; the same seed picks the same."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def pick(self, logits: Tensor, greedy: int) -> int:
        """A token of logits [vocabulary], whose arg max is known.

        Nucleus sampling (arXiv 1904.09751): the smallest set of tokens with probability over top_p, renormalised.
        """
        if self._sampling.temperature == 0:
            return greedy
        probabilities, order = (logits.cpu() / self._sampling.temperature).softmax(-1).sort(descending=True)
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities.masked_fill(before >= self._sampling.top_p, 0.0)
        return int(order[torch.multinomial(probabilities, 1, generator=self._generator)])


@torch.inference_mode()
def run_step(backend: Backend, works: Sequence[Work]) -> list[Result]:
    """One forward pass over all works, in their order."""
    logits, greedy = backend.forward([work.chunk for work in works])
    results: list[Result] = []
    at = 0
    for work in works:
        mine, at = slice(at, at + work.chunk.outputs), at + work.chunk.outputs
        token = work.sampler.pick(logits[mine][-1], greedy[mine][-1]) if work.sampler else None
        logprobs: list[float] = []
        if work.targets:
            targets = torch.tensor(work.targets, device=logits.device)[:, None]
            logprobs = logits[mine][: len(work.targets)].log_softmax(-1).gather(1, targets)[:, 0].tolist()
        results.append(Result(token, logprobs))
    return results
