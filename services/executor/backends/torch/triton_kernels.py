"""The Triton kernels behind `kernels`, with the launches that fit them. Imported only where they run: it brings Triton along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.executor.models.config import LayerAttention


@triton.jit
def shrink(x, a, ranks, scales, counts, hidden, inputs, most, stride, BLOCK: tl.constexpr):
    row, j = tl.program_id(0), tl.program_id(1)
    if j < tl.load(counts + row):
        rank = tl.load(ranks + row * stride + j).to(tl.int64)
        total = 0.0
        for start in range(0, inputs, BLOCK):
            at = start + tl.arange(0, BLOCK)
            mask = at < inputs
            left = tl.load(x + row * inputs + at, mask=mask, other=0.0).to(tl.float32)
            total += tl.sum(left * tl.load(a + rank * inputs + at, mask=mask, other=0.0).to(tl.float32))
        tl.store(hidden + row * most + j, total * tl.load(scales + row * stride + j))


@triton.jit
def expand(hidden, b, ranks, counts, y, outputs, most, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < outputs
    count = tl.load(counts + row)
    if count > 0:
        total = tl.load(y + row * outputs + at, mask=mask, other=0.0).to(tl.float32)
        for j in range(count):
            rank = tl.load(ranks + row * stride + j).to(tl.int64)
            total += tl.load(hidden + row * most + j) * tl.load(b + rank * outputs + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(y + row * outputs + at, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def attend(
    queries,
    keys,
    values,
    tables,
    positions,
    out,
    width,
    kv_heads,
    group,
    size,
    scale,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
):
    # One row and key/value head: its blocks in order, with a running softmax (arXiv 2205.14135).
    row, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + row)
    g, d, t = tl.arange(0, GROUP), tl.arange(0, SIZE), tl.arange(0, TOKENS)
    place = ((row * kv_heads + head) * group + g[:, None]) * size + d[None, :]
    wanted = (g[:, None] < group) & (d[None, :] < size)
    query = tl.load(queries + place, mask=wanted, other=0.0).to(tl.float32) * scale
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0) // TOKENS
    top = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    read = tl.zeros((GROUP, SIZE), tl.float32)
    for index in range(first, position // TOKENS + 1):
        block = tl.load(tables + row * width + index).to(tl.int64)
        at = index * TOKENS + t
        inside = ((block * TOKENS + t[:, None]) * kv_heads + head) * size + d[None, :]
        key = tl.load(keys + inside, mask=d[None, :] < size, other=0.0).to(tl.float32)
        score = tl.sum(query[:, None, :] * key[None, :, :], 2)
        if SOFT_CAP > 0:  # by tanh, which Triton has not
            score = SOFT_CAP - 2 * SOFT_CAP / (tl.exp(score * (2 / SOFT_CAP)) + 1)
        seen = at <= position
        if WINDOW > 0:
            seen = seen & (at > position - WINDOW)
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        # A block that the window hides as a whole leaves everything at -inf: nothing is kept of it, and nothing divided.
        known = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(score - known[:, None])
        keep = tl.exp(top - known)
        # What is behind the row may be anything, NaN too, which a weight of 0 would keep.
        value = tl.load(values + inside, mask=seen[:, None] & (d[None, :] < size), other=0.0).to(tl.float32)
        read = read * keep[:, None] + tl.sum(weight[:, :, None] * value[None, :, :], 1)
        total = total * keep + tl.sum(weight, 1)
        top = higher
    tl.store(out + place, (read / total[:, None]).to(out.dtype.element_ty), mask=wanted)


def fused_ranks(y: Tensor, x: Tensor, a: Tensor, b: Tensor, ranks: Tensor, scales: Tensor, counts: Tensor) -> Tensor:
    """Y [rows, outputs] plus sum_j scales[row, j] (a[ranks[row, j]] . x[row]) b[ranks[row, j]], for j under counts[row].

    `ranks` and `scales` [rows, most]. One kernel for h = A x and one for B h (Punica's BGMV, arXiv 2310.18547, with a row's adapters
    concatenated); it may write into y.
    """
    rows, most = ranks.shape
    x, y = x.contiguous(), y.contiguous()
    hidden = torch.empty(rows, most, dtype=torch.float32, device=x.device)
    shrink[(rows, most)](x, a, ranks, scales, counts, hidden, x.shape[-1], most, ranks.stride(0), BLOCK=512)
    expand[(rows, -(-y.shape[-1] // 256))](hidden, b, ranks, counts, y, y.shape[-1], most, ranks.stride(0), BLOCK=256)
    return y


@dataclass(frozen=True)
class FusedAttention:
    """`model.Attention` of one token a row to the row's blocks of the cache, as one kernel."""

    cache: Tensor
    """[layers, 2 (keys, values), blocks, block tokens, kv_heads, head_dim]."""
    slots: Tensor
    """[rows] where the new keys and values go."""
    tables: Tensor
    """[rows, width] each row's blocks, in order."""
    positions: Tensor
    """[rows]."""
    layers: Sequence[LayerAttention]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `model.Attention`."""
        cache, how = self.cache[layer], self.layers[layer]
        for part, new in zip(cache, (keys, values), strict=True):
            part.flatten(0, 1)[self.slots] = new
        rows, heads, size = queries.shape
        _, _, tokens, kv_heads, _ = cache.shape
        queries = queries.contiguous()
        out = torch.empty_like(queries)
        group = heads // kv_heads
        attend[(rows, kv_heads)](
            queries,
            cache[0],
            cache[1],
            self.tables,
            self.positions,
            out,
            self.tables.stride(0),
            kv_heads,
            group,
            size,
            how.scale,
            WINDOW=how.window,
            SOFT_CAP=how.soft_cap,
            TOKENS=tokens,
            GROUP=triton.next_power_of_2(group),
            SIZE=triton.next_power_of_2(size),
        )
        return out
