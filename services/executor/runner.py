"""Runs prefill and decode steps on the model, and knows no queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from services.executor.mixture import Bases, BatchMixture, Mixture
from services.executor.model import Llama


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to pick a token. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(eq=False)
class Row:
    """One sequence on the device: its row of the cache, its length there, its last token."""

    index: int
    mixture: Mixture
    sampling: Sampling
    length: int = 0
    last_token: int = 0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.sampling.seed)


class _Prefill:
    """Keys and values of a prompt: stored in their row, attended to causally."""

    def __init__(self, cache: tuple[Tensor, Tensor], row: int) -> None:
        self._keys, self._values, self._row = *cache, row

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `model.KeyValues`."""
        self._keys[layer, self._row, :, : keys.shape[2]] = keys[0]
        self._values[layer, self._row, :, : keys.shape[2]] = values[0]
        return keys, values, None


class _Decode:
    """One new token a row over all of the row's earlier ones."""

    def __init__(self, cache: tuple[Tensor, Tensor], rows: Tensor, positions: Tensor) -> None:
        self._keys, self._values, self._rows, self._positions = *cache, rows, positions
        self._length = int(positions.max()) + 1
        self._mask = (torch.arange(self._length, device=rows.device) <= positions[:, None])[:, None, None, :]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `model.KeyValues`."""
        self._keys[layer][self._rows, :, self._positions] = keys[:, :, 0]
        self._values[layer][self._rows, :, self._positions] = values[:, :, 0]
        return (
            self._keys[layer, :, :, : self._length].index_select(0, self._rows),
            self._values[layer, :, :, : self._length].index_select(0, self._rows),
            self._mask,
        )


class Runner:
    """Owns the key/value cache [layers, rows, kv_heads, context, head_dim], fixed at start."""

    def __init__(self, model: Llama, bases: Bases, rows: int, context: int) -> None:
        self.model, self.context = model, min(context, model.config.context)
        self._bases = {
            path: (left.to(model.device, model.dtype), right.to(model.device, model.dtype)) for path, (left, right) in bases.items()
        }
        config = model.config
        shape = (config.layers, rows, config.kv_heads, self.context, config.head_dim)
        self._cache = (
            torch.zeros(shape, dtype=model.dtype, device=model.device),
            torch.zeros(shape, dtype=model.dtype, device=model.device),
        )
        self._batch: tuple[tuple[Row, ...], BatchMixture | None] = ((), None)

    @torch.inference_mode()
    def prefill(self, row: Row, prompt: Sequence[int]) -> int:
        """Read a prompt into a row; returns the first new token."""
        tokens = torch.tensor([list(prompt)], device=self.model.device)
        positions = torch.arange(len(prompt), device=self.model.device)[None]
        hidden = self.model.hidden(tokens, positions, self._delta([row]), _Prefill(self._cache, row.index))
        row.length = len(prompt)
        return self._pick([row], self.model.logits(hidden[:, -1]))[0]

    @torch.inference_mode()
    def decode(self, rows: Sequence[Row]) -> list[int]:
        """One step of every row: feeds each its last token, returns each its next."""
        if self._batch[0] != tuple(rows):
            self._batch = (tuple(rows), self._delta(rows))
        device = self.model.device
        tokens = torch.tensor([[row.last_token] for row in rows], device=device)
        positions = torch.tensor([row.length for row in rows], device=device)
        key_values = _Decode(self._cache, torch.tensor([row.index for row in rows], device=device), positions)
        hidden = self.model.hidden(tokens, positions[:, None], self._batch[1], key_values)
        for row in rows:
            row.length += 1
        return self._pick(rows, self.model.logits(hidden[:, -1]))

    @torch.inference_mode()
    def score(self, mixture: Mixture, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Log-probability of each completion token given all before it (natural logarithm)."""
        ids = torch.tensor([[*prompt, *completion]], device=self.model.device)
        positions = torch.arange(ids.shape[1], device=self.model.device)[None]
        delta = BatchMixture([mixture], self._bases) if mixture.cores or mixture.pairs else None
        hidden = self.model.hidden(ids, positions, delta)[0, len(prompt) - 1 : -1]
        logprobs = self.model.logits(hidden).log_softmax(-1)
        return [float(value) for value in logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]]

    def _delta(self, rows: Sequence[Row]) -> BatchMixture | None:
        mixtures = [row.mixture for row in rows]
        return BatchMixture(mixtures, self._bases) if any(m.cores or m.pairs for m in mixtures) else None

    def _pick(self, rows: Sequence[Row], logits: Tensor) -> list[int]:
        greedy = logits.argmax(-1).tolist()
        picked = [sample(logits[i], row) if row.sampling.temperature > 0 else greedy[i] for i, row in enumerate(rows)]
        for row, token in zip(rows, picked, strict=True):
            row.last_token = token
        return picked


def sample(logits: Tensor, row: Row) -> int:
    """Nucleus sampling (arXiv 1904.09751): the smallest set of tokens with probability over top_p, renormalised."""
    probabilities, order = (logits.cpu() / row.sampling.temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities
    probabilities = probabilities.masked_fill(before >= row.sampling.top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=row.generator)])
