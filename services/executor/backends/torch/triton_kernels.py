"""The Triton kernels behind `kernels`, with the launches that fit them. Imported only where they run: it brings Triton along."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from services.executor.backends.torch.model import Between, Llama
from services.executor.models.linear import Linear


@triton.jit
def add_and_norm(stream, y, post, norm, total, out, columns, stride, scale, eps, POST: tl.constexpr, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    mask = at < columns
    added = tl.load(y + row * stride + at, mask=mask, other=0.0).to(tl.float32)
    if POST:
        factor = tl.rsqrt(tl.sum(added * added) / columns + eps)
        added = added * factor * tl.load(post + at, mask=mask, other=0.0).to(tl.float32)
    both = tl.load(stream + row * columns + at, mask=mask, other=0.0).to(tl.float32) + added * scale
    both = both.to(total.dtype.element_ty)
    tl.store(total + row * columns + at, both, mask=mask)
    both = both.to(tl.float32)
    both = both * tl.rsqrt(tl.sum(both * both) / columns + eps) * tl.load(norm + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * columns + at, both.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gate(gates, ups, out, columns, gate_stride, up_stride, SILU: tl.constexpr, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < columns
    x = tl.load(gates + row * gate_stride + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(ups + row * up_stride + at, mask=mask, other=0.0).to(tl.float32)
    # GELU by tanh is x sigmoid(2 z) with z = sqrt(2 / pi) (x + 0.044715 x^3).
    z = x if SILU else 1.5957691216057308 * (x + 0.044715 * x * x * x)
    tl.store(out + row * columns + at, (x / (1 + tl.exp(-z)) * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def shrink(x, a, ranks, scales, counts, hidden, inputs, modules, most, stride, used, BLOCK: tl.constexpr):
    row, j, module = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if ((used >> module) & 1) == 1 and j < tl.load(counts + row):
        rank = tl.load(ranks + row * stride + j).to(tl.int64)
        total = 0.0
        for start in range(0, inputs, BLOCK):
            at = start + tl.arange(0, BLOCK)
            mask = at < inputs
            left = tl.load(x + row * inputs + at, mask=mask, other=0.0).to(tl.float32)
            total += tl.sum(left * tl.load(a + (rank * modules + module) * inputs + at, mask=mask, other=0.0).to(tl.float32))
        tl.store(hidden + (row * modules + module) * most + j, total * tl.load(scales + row * stride + j))


@triton.jit
def expand_pairs(hidden, b, ranks, counts, y, outputs, modules, most, stride, y_stride, first_end, second_end, used, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    module = (at >= first_end).to(tl.int32) + (at >= second_end).to(tl.int32)
    mask = (at < outputs) & (((used >> module) & 1) == 1)
    count = tl.load(counts + row)
    if count > 0:
        total = tl.load(y + row * y_stride + at, mask=mask, other=0.0).to(tl.float32)
        for j in range(count):
            rank = tl.load(ranks + row * stride + j).to(tl.int64)
            read = tl.load(hidden + (row * modules + module) * most + j, mask=mask, other=0.0)
            total += read * tl.load(b + rank * outputs + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(y + row * y_stride + at, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def expand_cores(
    cores,
    lefts,
    y,
    outputs,
    y_stride,
    core_stride,
    first_end,
    second_end,
    used,
    MODULES: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, r = tl.program_id(0), tl.arange(0, RANK)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    module = (at >= first_end).to(tl.int32) + (at >= second_end).to(tl.int32)
    mask = (at < outputs) & (((used >> module) & 1) == 1)
    total = tl.load(y + row * y_stride + at, mask=mask, other=0.0).to(tl.float32)
    left = tl.load(lefts + at[:, None] * RANK + r[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
    for one in tl.static_range(MODULES):
        # What the product read by this module's basis is behind the outputs.
        read = tl.load(y + row * y_stride + outputs + one * RANK + r).to(tl.float32)
        core = tl.load(cores + one * core_stride + (row * RANK + r[:, None]) * RANK + r[None, :]).to(tl.float32)
        mixed = tl.sum(read[:, None] * core, 0)
        total += tl.where(module == one, tl.sum(left * mixed[None, :], 1), 0.0)
    tl.store(y + row * y_stride + at, total.to(y.dtype.element_ty), mask=mask)


@triton.jit
def turned(
    source,
    norm,
    cosines,
    sines,
    position,
    heads,
    size,
    eps,
    NORMED: tl.constexpr,
    ROTARY: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
):
    # Heads that lie one after the other, normed and rotated: each of a head's first ROTARY dimensions has its partner half of them away.
    head, d = tl.arange(0, HEADS)[:, None], tl.arange(0, SIZE)[None, :]
    inside, rotates = (head < heads) & (d < size), (head < heads) & (d < ROTARY)
    partner = tl.where(d < ROTARY // 2, d + ROTARY // 2, d - ROTARY // 2)
    x = tl.load(source + head * size + d, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(source + head * size + partner, mask=rotates, other=0.0).to(tl.float32)
    if NORMED:
        factor = tl.rsqrt(tl.sum(x * x, 1) / size + eps)[:, None]
        x = x * factor * tl.load(norm + d, mask=d < size, other=0.0).to(tl.float32)
        other = other * factor * tl.load(norm + partner, mask=d < ROTARY, other=0.0).to(tl.float32)
    if ROTARY > 0:
        cosine = tl.load(cosines + position * ROTARY + d, mask=d < ROTARY, other=1.0).to(tl.float32)
        sine = tl.load(sines + position * ROTARY + d, mask=d < ROTARY, other=0.0).to(tl.float32)
        x = x * cosine + tl.where(d < ROTARY // 2, -other, other) * sine
    return x


@triton.jit
def attend(
    queries,
    keys,
    values,
    query_norm,
    key_norm,
    cosines,
    sines,
    positions,
    slots,
    tables,
    key_cache,
    value_cache,
    out,
    query_stride,
    key_stride,
    value_stride,
    width,
    kv_heads,
    group,
    size,
    eps,
    scale,
    NORMED: tl.constexpr,
    ROTARY: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
):
    # One row and key/value head: its new key and value go to the cache, and its queries read them and the blocks before, in order, with a
    # running softmax (arXiv 2205.14135).
    row, head = tl.program_id(0), tl.program_id(1)
    position, slot = tl.load(positions + row).to(tl.int64), tl.load(slots + row).to(tl.int64)
    g, d, t = tl.arange(0, GROUP), tl.arange(0, SIZE), tl.arange(0, TOKENS)
    first_query = queries + row * query_stride + head * group * size
    query = turned(first_query, query_norm, cosines, sines, position, group, size, eps, NORMED, ROTARY, GROUP, SIZE) * scale
    first_key = keys + row * key_stride + head * size
    new = turned(first_key, key_norm, cosines, sines, position, 1, size, eps, NORMED, ROTARY, 1, SIZE)
    new_key = tl.sum(new, 0).to(key_cache.dtype.element_ty)
    new_value = tl.load(values + row * value_stride + head * size + d, mask=d < size, other=0.0)
    place = (slot * kv_heads + head) * size + d
    tl.store(key_cache + place, new_key, mask=d < size)
    tl.store(value_cache + place, new_value, mask=d < size)

    top = capped(tl.sum(query * new_key[None, :].to(tl.float32), 1), SOFT_CAP)
    total = tl.full((GROUP,), 1.0, tl.float32)
    read = tl.zeros((GROUP, SIZE), tl.float32) + new_value[None, :].to(tl.float32)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0) // TOKENS
    for index in range(first, (position + TOKENS - 1) // TOKENS):
        block = tl.load(tables + row * width + index).to(tl.int64)
        at = index * TOKENS + t
        seen = at < position
        if WINDOW > 0:
            seen = seen & (at > position - WINDOW)
        inside = ((block * TOKENS + t[:, None]) * kv_heads + head) * size + d[None, :]
        # What is behind the row may be anything, NaN too, which a weight of 0 would keep.
        known = seen[:, None] & (d[None, :] < size)
        key = tl.load(key_cache + inside, mask=known, other=0.0).to(tl.float32)
        score = capped(tl.sum(query[:, None, :] * key[None, :, :], 2), SOFT_CAP)
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        keep = tl.exp(top - higher)
        value = tl.load(value_cache + inside, mask=known, other=0.0).to(tl.float32)
        read = read * keep[:, None] + tl.sum(weight[:, :, None] * value[None, :, :], 1)
        total = total * keep + tl.sum(weight, 1)
        top = higher
    place_out = ((row * kv_heads + head) * group + g[:, None]) * size + d[None, :]
    tl.store(out + place_out, (read / total[:, None]).to(out.dtype.element_ty), mask=(g[:, None] < group) & (d[None, :] < size))


@triton.jit
def capped(score, SOFT_CAP: tl.constexpr):
    if SOFT_CAP > 0:  # by tanh, which Triton has not
        score = SOFT_CAP - 2 * SOFT_CAP / (tl.exp(score * (2 / SOFT_CAP)) + 1)
    return score


def _added(stream: Tensor, y: Tensor, post: Tensor | None, scale: float, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    tokens, columns = stream.shape
    total, out = torch.empty_like(stream), torch.empty_like(stream)
    block = triton.next_power_of_2(columns)
    add_and_norm[(tokens,)](
        stream, y, norm if post is None else post, norm, total, out, columns, y.stride(0), scale, eps, POST=post is not None, BLOCK=block
    )
    return total, out


def _gated(gates: Tensor, ups: Tensor, activation: str) -> Tensor:
    tokens, columns = gates.shape
    out = torch.empty(tokens, columns, dtype=gates.dtype, device=gates.device)
    grid = (tokens, -(-columns // 1024))
    gate[grid](gates, ups, out, columns, gates.stride(0), ups.stride(0), SILU=activation == "silu", BLOCK=1024)
    return out


FUSED = Between(_added, _gated)
"""One kernel each."""


def add_pairs(
    y: Tensor,
    linear: Linear,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    ranks: Tensor,
    scales: Tensor,
    counts: Tensor,
    used: Collection[str],
) -> None:
    """To row i of y [rows, outputs ...] add sum_j scales[i, j] (a[ranks[i, j]] . x[i]) b[ranks[i, j]], j < counts[i], of used modules.

    `ranks` and `scales` are [rows, most], a [ranks, modules, inputs], b [ranks, outputs]. One kernel for h = A x and one for B h (Punica's
    BGMV, arXiv 2310.18547, with a row's adapters concatenated), for all modules that read x.
    """
    rows, most = ranks.shape
    modules, outputs, bits = len(linear.modules), linear.outputs, _bits(linear, used)
    hidden = torch.empty(rows, modules, most, dtype=torch.float32, device=x.device)
    stride = ranks.stride(0)
    shrink[(rows, most, modules)](x, a, ranks, scales, counts, hidden, x.shape[-1], modules, most, stride, bits, BLOCK=512)
    expand_pairs[(rows, -(-outputs // 256))](
        hidden, b, ranks, counts, y, outputs, modules, most, stride, y.stride(0), *_ends(linear), bits, BLOCK=256
    )


def add_cores(y: Tensor, linear: Linear, lefts: Tensor, cores: Tensor, used: Collection[str]) -> None:
    """To y [rows, outputs, and what the bases read] add left (core^T read) of each used module, row by row.

    `lefts` are [outputs, BASES_RANK], cores [modules, rows or more, BASES_RANK, BASES_RANK].
    """
    rank = lefts.shape[-1]
    expand_cores[(len(y), -(-linear.outputs // 128))](
        cores,
        lefts,
        y,
        linear.outputs,
        y.stride(0),
        cores.stride(0),
        *_ends(linear),
        _bits(linear, used),
        MODULES=len(linear.modules),
        RANK=rank,
        BLOCK=128,
    )


def _bits(linear: Linear, used: Collection[str]) -> int:
    return sum(1 << place for place, module in enumerate(linear.modules) if module in used)


def _ends(linear: Linear) -> tuple[int, int]:
    """Where the outputs of the first and of the second module end."""
    first, second = (*accumulate(linear.sizes), linear.outputs)[:2]
    return first, second


@dataclass(frozen=True)
class FusedAttention:
    """`model.Attention` of one token a row to the row's blocks of the cache, as one kernel."""

    model: Llama
    cache: Tensor
    """[layers, 2 (keys, values), blocks, block tokens, kv_heads, head_dim]."""
    slots: Tensor
    """[rows] where the new keys and values go."""
    tables: Tensor
    """[rows, width] each row's blocks, in order."""
    positions: Tensor
    """[rows]."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `model.Attention`."""
        config, norms = self.model.config, self.model.layers[layer].norms
        how, rope = config.attention[layer], config.ropes[layer]
        cosines, sines = (self.cache, self.cache) if rope is None else self.model.angles[rope]  # not read where there is none
        key_cache, value_cache = self.cache[layer]
        group = config.heads // config.kv_heads
        out = torch.empty(len(queries), config.heads * config.head_dim, dtype=queries.dtype, device=queries.device)
        attend[(len(queries), config.kv_heads)](
            queries,
            keys,
            values,
            norms.get("query", queries),
            norms.get("key", queries),
            cosines,
            sines,
            self.positions,
            self.slots,
            self.tables,
            key_cache,
            value_cache,
            out,
            queries.stride(0),
            keys.stride(0),
            values.stride(0),
            self.tables.stride(0),
            config.kv_heads,
            group,
            config.head_dim,
            config.norm_eps,
            how.scale,
            NORMED="query" in norms,
            ROTARY=0 if rope is None else cosines.shape[-1],
            WINDOW=how.window,
            SOFT_CAP=how.soft_cap,
            TOKENS=self.cache.shape[3],
            GROUP=triton.next_power_of_2(group),
            SIZE=triton.next_power_of_2(config.head_dim),
        )
        return out
