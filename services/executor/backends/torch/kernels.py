"""Two operations of a decode step that plain torch does by copying what it reads: adapters' ranks, and the paged cache.

Each has a Triton kernel, for GPUs, and a plain form that says what it computes; a test holds them equal in Triton's interpreter. Everything
that changes from step to step is read on the device, so a captured CUDA graph stays good.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.executor.backends.torch.model import masked_attention


def add_ranks(y: Tensor, x: Tensor, a: Tensor, b: Tensor, ranks: Tensor, scales: Tensor, counts: Tensor, *, fused: bool) -> Tensor:
    """Y plus every row's ranks: sum_j scales[row, j] (a[ranks[row, j]] . x[row]) b[ranks[row, j]], for j under counts[row].

    x [rows, tokens, inputs] and y [rows, tokens, outputs]; a [ranks, inputs] and b [ranks, outputs] are one site's stacks of all resident
    ranks; `ranks` and `scales` [rows, most], scales 0 past the count. `fused` is one kernel for h = A x and one for B h, where every row
    has one token (Punica's BGMV, arXiv 2310.18547, with a row's adapters concatenated); it may write into y.
    """
    if fused and x.shape[1] == 1:
        from services.executor.backends.torch.triton_kernels import fused_ranks

        return fused_ranks(y, x, a, b, ranks, scales, counts)
    # What is past a row's count names another's ranks, and may be infinite, which a scale of 0 would make NaN of.
    behind = torch.arange(ranks.shape[1], device=ranks.device) >= counts[:, None]
    hidden = ((x @ a[ranks].transpose(1, 2)) * scales.to(x.dtype)[:, None, :]).masked_fill(behind[:, None, :], 0.0)
    return y + hidden @ b[ranks].masked_fill(behind[:, :, None], 0.0)


def paged_attention(queries: Tensor, cache: Tensor, tables: Tensor, positions: Tensor, window: int, *, fused: bool) -> Tensor:
    """Attention of queries [rows, heads, tokens, head_dim] to each row's blocks of the cache.

    cache [2 (keys, values), blocks, block tokens, kv_heads, head_dim]; `tables` [rows, width] are a row's blocks in order; `positions`
    [rows, tokens], ascending. `fused` is one kernel, where every row has one token.
    """
    if fused and queries.shape[2] == 1:
        from services.executor.backends.torch.triton_kernels import fused_attention

        return fused_attention(queries, cache, tables, positions[:, 0], window)
    at = torch.arange(tables.shape[1] * cache.shape[2], device=cache.device).expand(len(tables), -1)
    # What is behind a row's last token may be anything, NaN too, which a weight of 0 would keep.
    behind = (at > positions[:, -1:])[:, :, None, None]
    keys, values = (part[tables].flatten(1, 2).masked_fill(behind, 0.0).transpose(1, 2) for part in cache)
    return masked_attention(queries, keys, values, positions, at, window)
