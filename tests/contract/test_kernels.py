"""The Triton kernels compute what the plain forms say: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.backends.port import Batch, Chunk
from services.executor.backends.torch.kernels import PagedAttention, add_ranks
from services.executor.models.config import LayerAttention
from tests.model_support import DEVICE

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def _by_rank(ranks: torch.Tensor, scales: torch.Tensor, counts: torch.Tensor, resident: int) -> torch.Tensor:
    """Scales [rows, resident] of the ranks that each row lists."""
    wanted = torch.zeros(len(counts), resident, device=DEVICE)
    for row, count in enumerate(counts.tolist()):
        for rank, scale in zip(ranks[row, :count].tolist(), scales[row, :count].tolist(), strict=True):
            wanted[row, rank] += scale
    return wanted


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    inputs=st.sampled_from([16, 96, 640]),
    outputs=st.sampled_from([16, 96, 300]),
    seed=st.integers(0, 100),
)
def test_ranks(counts: list[int], inputs: int, outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    from services.executor.backends.torch.triton_kernels import fused_ranks

    rows, resident, most = len(counts), 9, 8
    x, y, a, b = random(rows, inputs), random(rows, outputs), random(resident, inputs), random(resident, outputs)
    # Wider buffers than are used, as the backend has them.
    ranks = torch.randint(0, resident, (rows, 2 * most), generator=generator, dtype=torch.int32).to(DEVICE)[:, :most]
    scales = random(rows, 2 * most)[:, :most]
    limits = torch.tensor(counts, dtype=torch.int32, device=DEVICE)
    plain = add_ranks(y, x, a, b, _by_rank(ranks, scales, limits, resident))
    fused = fused_ranks(y.clone(), x, a, b, ranks, scales, limits)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("fused", [False, True])
def test_ranks_of_another_that_overflow_stay_with_it(fused: bool) -> None:
    """What a row does not use is padding that names rank 0: that one may make infinities of any input, and still be another's."""
    from services.executor.backends.torch.triton_kernels import fused_ranks

    x, y = torch.ones(3, 16, device=DEVICE), torch.zeros(3, 8, device=DEVICE)
    a, b = torch.ones(4, 16, device=DEVICE), torch.ones(4, 8, device=DEVICE)
    a[0] = b[0] = 3e38
    ranks = torch.tensor([[0, 0], [1, 0], [0, 0]], dtype=torch.int32, device=DEVICE)
    scales = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], device=DEVICE)
    counts = torch.tensor([1, 1, 0], dtype=torch.int32, device=DEVICE)
    added = fused_ranks(y, x, a, b, ranks, scales, counts) if fused else add_ranks(y, x, a, b, _by_rank(ranks, scales, counts, 4))
    assert added[0].isinf().all()
    assert added[1].eq(16.0).all()
    assert added[2].eq(0.0).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    positions=st.lists(st.integers(0, 79), min_size=1, max_size=4),
    heads=st.sampled_from([(2, 1), (6, 2), (4, 4), (9, 3)]),
    size=st.sampled_from([16, 24, 64]),
    how=st.builds(LayerAttention, st.sampled_from([0, 1, 5, 16, 40]), st.sampled_from([0.125, 0.4]), st.sampled_from([0.0, 1.5])),
    seed=st.integers(0, 100),
)
def test_attention(positions: list[int], heads: tuple[int, int], size: int, how: LayerAttention, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    from services.executor.backends.torch.triton_kernels import FusedAttention

    rows = len(positions)
    cache = torch.randn(1, 2, 30, 16, heads[1], size, generator=generator).to(DEVICE)
    queries, keys, values = (torch.randn(rows, of, size, generator=generator).to(DEVICE) for of in (heads[0], heads[1], heads[1]))
    order = torch.randperm(30, generator=generator).tolist()
    blocks = [[order.pop() for _ in range(5)] for _ in positions]
    batch = Batch.of([Chunk([0], at, table, None, 1) for at, table in zip(positions, blocks, strict=True)])
    slots, tables, at = (torch.from_numpy(part).to(DEVICE) for part in (batch.cache_slots, batch.tables, batch.positions))
    plain = PagedAttention(cache.clone(), batch, [how]).attend(0, queries, keys, values)
    fused = FusedAttention(cache.clone(), slots, tables, at, [how]).attend(0, queries, keys, values)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
