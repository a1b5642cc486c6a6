"""The plain forms of what `triton_kernels` does: adapters' ranks, and attention to the paged cache.

They say what is computed, and a test holds the kernels equal to them in Triton's interpreter; batches with prompts, and CPUs, run on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.executor.backends.port import BLOCK_TOKENS, Batch, MixtureT
from services.executor.backends.torch.model import Llama, PlainAttention, masked_attention, seen_from


def add_ranks(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scales: Tensor) -> Tensor:
    """Y [tokens, outputs] plus sum_r scales[token, r] (a[r] . x[token]) b[r], for ranks a [ranks, inputs] and b [ranks, outputs].

    A scale of 0 says that the rank is another's: what that makes of this token's x, infinite or not, does not count.
    """
    return y + (x @ a.T * scales).masked_fill(scales == 0, 0.0) @ b


@dataclass(frozen=True)
class _Group:
    """Sequences whose new tokens are about as many: one padded product."""

    tokens: Tensor
    """[sequences, most tokens] place in the batch; past a sequence's last, its first again."""
    real: Tensor
    """[sequences, most tokens] whether there is such a token."""
    slots: Tensor
    """[sequences, keys] in the cache."""
    behind: Tensor
    """[sequences, keys, 1, 1] not of this sequence: may be anything, NaN too, which a weight of 0 would keep."""
    seen: dict[int, Tensor]
    """Window -> [sequences, most tokens, keys]."""


class PagedAttention(PlainAttention):
    """Of a batch's tokens to their sequences' blocks: new keys and values go to their slots first."""

    def __init__(self, model: Llama, cache: Tensor, batch: Batch[MixtureT]) -> None:
        """`cache` is [layers, 2 (keys, values), blocks, BLOCK_TOKENS, kv_heads, head_dim]."""
        super().__init__(model, torch.from_numpy(batch.positions).long().to(cache.device))
        self._cache, self._layers = cache.flatten(2, 3), model.config.attention
        self._slots = torch.from_numpy(batch.cache_slots).long().to(cache.device)
        counts = np.diff(batch.bounds)
        # Prompts would pad every row that decodes to their length.
        members = [np.flatnonzero(counts == 1), np.flatnonzero(counts > 1)]
        self._groups = [self._group(batch, some, cache.device) for some in members if len(some)]

    def _group(self, batch: Batch[MixtureT], some: np.ndarray, device: torch.device) -> _Group:
        first, counts = batch.bounds[some], batch.bounds[some + 1] - batch.bounds[some]
        offset = np.arange(counts.max())[None]
        real = offset < counts[:, None]
        tokens = first[:, None] + np.where(real, offset, 0)
        last = batch.positions[first + counts - 1]
        blocks = batch.tables[some, : last.max() // BLOCK_TOKENS + 1].astype(np.int64)
        slots = (blocks[:, :, None] * BLOCK_TOKENS + np.arange(BLOCK_TOKENS)).reshape(len(some), -1)
        at = torch.arange(slots.shape[1], device=device)[None]
        positions = torch.from_numpy(batch.positions[tokens]).to(device)
        return _Group(
            tokens=torch.from_numpy(tokens).to(device),
            real=torch.from_numpy(real).to(device),
            slots=torch.from_numpy(slots).to(device),
            behind=(at > torch.from_numpy(last)[:, None].to(device))[:, :, None, None],
            seen={window: seen_from(positions, at, window) for window in {how.window for how in self._layers}},
        )

    def _read(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cache = self._cache[layer]
        cache[0].index_copy_(0, self._slots, keys)
        cache[1].index_copy_(0, self._slots, values)
        out = torch.empty_like(queries)
        for group in self._groups:
            k, v = (part[group.slots].masked_fill(group.behind, 0.0) for part in cache)
            read = masked_attention(queries[group.tokens], k, v, group.seen[self._layers[layer].window], self._layers[layer])
            out[group.tokens[group.real]] = read[group.real]
        return out
