"""The Triton kernels compute what the plain forms say: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.backends.port import Batch, Chunk
from services.executor.backends.torch.kernels import PagedAttention, add_ranks
from services.executor.backends.torch.model import PLAIN, Llama
from services.executor.models.base_model import BASES_RANK, INPUTS
from services.executor.models.config import LayerAttention, ModelConfig
from services.executor.models.linear import Linear
from services.executor.models.rope import Rope
from services.executor.models.weights import load_weights, stored_tensors
from tests.model_support import DEVICE, make_model

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def _by_rank(ranks: torch.Tensor, scales: torch.Tensor, counts: torch.Tensor, resident: int) -> torch.Tensor:
    """Scales [rows, resident] of the ranks that each row lists."""
    wanted = torch.zeros(len(counts), resident, device=DEVICE)
    for row, count in enumerate(counts.tolist()):
        for rank, scale in zip(ranks[row, :count].tolist(), scales[row, :count].tolist(), strict=True):
            wanted[row, rank] += scale
    return wanted


def _random(seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator).to(DEVICE)


@pytest.fixture(scope="module", params=INPUTS, ids="+".join)
def linear(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Linear:
    """Of a small model: modules of different sizes that read one input, or one alone."""
    folder = make_model(tmp_path_factory.mktemp("model"))
    weights = {name: tensor.float().to(DEVICE) for name, tensor in load_weights(folder).items()}
    return Linear(weights, ModelConfig.from_folder(folder), 0, request.param)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(counts=st.lists(st.integers(0, 7), min_size=1, max_size=4), used=st.integers(1, 7), seed=st.integers(0, 100))
def test_pairs(linear: Linear, counts: list[int], used: int, seed: int) -> None:
    from services.executor.backends.torch.triton_kernels import add_pairs

    random, rows, resident, most = _random(seed), len(counts), 9, 8
    modules = {module for place, module in enumerate(linear.modules) if used >> place & 1}
    inputs = linear.weight.shape[1]
    x, a, b = random(rows, inputs), random(resident, len(linear.modules), inputs), random(resident, linear.outputs)
    # Wider buffers than are used, as the backend has them.
    ranks = torch.randint(0, resident, (rows, 2 * most), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    ranks, scales = ranks.to(DEVICE)[:, :most], random(rows, 2 * most)[:, :most]
    limits = torch.tensor(counts, dtype=torch.int32, device=DEVICE)
    wanted, y = [*linear.parts(linear(x))], linear(x, bases=bool(seed % 2))
    for place, (module, of_module) in enumerate(zip(linear.modules, torch.split(b, linear.sizes, 1), strict=True)):
        if module in modules:
            wanted[place] = add_ranks(wanted[place], x, a[:, place], of_module, _by_rank(ranks, scales, limits, resident))
    add_pairs(y, linear, x, a, b, ranks, scales, limits, modules)
    torch.testing.assert_close([*linear.parts(y)], wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(rows=st.integers(1, 4), used=st.integers(1, 7), seed=st.integers(0, 100))
def test_cores(linear: Linear, rows: int, used: int, seed: int) -> None:
    from services.executor.backends.torch.triton_kernels import add_cores

    random, count = _random(seed), len(linear.modules)
    modules = {module for place, module in enumerate(linear.modules) if used >> place & 1}
    x, lefts = random(rows, linear.weight.shape[1]), random(linear.outputs, BASES_RANK)
    cores, rights = random(count, rows + 2, BASES_RANK, BASES_RANK), random(count, linear.weight.shape[1], BASES_RANK)
    linear.set_bases([*rights])
    wanted, y = [*linear.parts(linear(x))], linear(x, bases=True)
    for place, (module, left) in enumerate(zip(linear.modules, torch.split(lefts, linear.sizes), strict=True)):
        if module in modules:
            wanted[place] = wanted[place] + torch.einsum("ri,rij,oj->ro", x @ rights[place], cores[place, :rows], left)
    add_cores(y, linear, lefts, cores, modules)
    torch.testing.assert_close([*linear.parts(y)], wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("fused", [False, True])
def test_ranks_of_another_that_overflow_stay_with_it(linear: Linear, fused: bool) -> None:
    """What a row does not use is padding that names rank 0: that one may make infinities of any input, and still be another's."""
    from services.executor.backends.torch.triton_kernels import add_pairs

    inputs, count = linear.weight.shape[1], len(linear.modules)
    x, y = torch.ones(3, inputs, device=DEVICE), torch.zeros(3, linear.outputs, device=DEVICE)
    a, b = torch.ones(4, count, inputs, device=DEVICE), torch.ones(4, linear.outputs, device=DEVICE)
    a[0] = b[0] = 3e38
    ranks = torch.tensor([[0, 0], [1, 0], [0, 0]], dtype=torch.int32, device=DEVICE)
    scales = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], device=DEVICE)
    counts = torch.tensor([1, 1, 0], dtype=torch.int32, device=DEVICE)
    if fused:
        add_pairs(y, linear, x, a, b, ranks, scales, counts, linear.modules)
    else:
        y = add_ranks(y, x, a[:, 0], b, _by_rank(ranks, scales, counts, 4))
    assert y[0].isinf().all()
    assert y[1].eq(float(inputs)).all()
    assert y[2].eq(0.0).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 4),
    columns=st.sampled_from([16, 96, 300]),
    post=st.booleans(),
    scale=st.sampled_from([1.0, 0.22]),
    activation=st.sampled_from(["silu", "gelu_pytorch_tanh"]),
    seed=st.integers(0, 100),
)
def test_between(rows: int, columns: int, post: bool, scale: float, activation: str, seed: int) -> None:
    """What is computed between the linear modules, of rows of something wider."""
    from services.executor.backends.torch.triton_kernels import FUSED

    random = _random(seed)
    stream, y, norm = random(rows, columns), random(rows, columns + 5)[:, :columns], random(columns)
    of_post = random(columns) if post else None
    fused, plain = (one.added(stream, y, of_post, scale, norm, 1e-5) for one in (FUSED, PLAIN))
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    gate, up = torch.split(random(rows, 2 * columns), columns, 1)
    fused_gate, plain_gate = (one.gated(gate, up, activation) for one in (FUSED, PLAIN))
    torch.testing.assert_close(fused_gate, plain_gate, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def attention_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Llama]:
    """Makes models of one layer, of nothing but what their attention is."""
    config = ModelConfig.from_folder(make_model(tmp_path_factory.mktemp("model"), fields={"num_hidden_layers": 1}))

    def made(heads: tuple[int, int], size: int, rotated: str, normed: bool, how: LayerAttention) -> Llama:
        dimensions = {"none": 0, "half": size // 2, "all": size}[rotated]
        rope = Rope(tuple(10.0 ** -(place / 2) for place in range(dimensions // 2))) if dimensions else None
        family = replace(config.family, query_key_norms=normed)
        shape = replace(
            config, family=family, heads=heads[0], kv_heads=heads[1], head_dim=size, attention=(how,), ropes=(rope,), norm_eps=1e-5
        )
        random = _random(size)
        return Llama(shape, {name: random(*stored.shape) for name, stored in stored_tensors(shape).items()}, "")

    return made


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    positions=st.lists(st.integers(0, 79), min_size=1, max_size=4),
    heads=st.sampled_from([(2, 1), (6, 2), (4, 4), (9, 3)]),
    size=st.sampled_from([16, 24, 64]),
    rotated=st.sampled_from(["none", "half", "all"]),
    normed=st.booleans(),
    how=st.builds(LayerAttention, st.sampled_from([0, 1, 5, 16, 40]), st.sampled_from([0.125, 0.4]), st.sampled_from([0.0, 1.5])),
    seed=st.integers(0, 100),
)
def test_attention(
    attention_model: Callable[..., Llama],
    positions: list[int],
    heads: tuple[int, int],
    size: int,
    rotated: str,
    normed: bool,
    how: LayerAttention,
    seed: int,
) -> None:
    """From what the linear modules give to what the rows read, and what the cache holds afterwards."""
    from services.executor.backends.torch.triton_kernels import FusedAttention

    random, rows = _random(seed), len(positions)
    model = attention_model(heads, size, rotated, normed, how)
    cache = random(1, 2, 30, 16, heads[1], size)
    projected = random(rows, (heads[0] + 2 * heads[1]) * size + 5)  # with something behind
    queries, keys, values = torch.split(projected[:, :-5], [of * size for of in (heads[0], heads[1], heads[1])], 1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed)).tolist()
    blocks = [[order.pop() for _ in range(5)] for _ in positions]
    batch = Batch.of([Chunk([0], at, table, None, 1) for at, table in zip(positions, blocks, strict=True)])
    slots, tables, at = (torch.from_numpy(part).to(DEVICE) for part in (batch.cache_slots, batch.tables, batch.positions))
    caches = [cache.clone(), cache.clone()]
    plain = PagedAttention(model, caches[0], batch).attend(0, queries, keys, values)
    fused = FusedAttention(model, caches[1], slots, tables, at).attend(0, queries, keys, values)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(caches[1], caches[0], rtol=1e-4, atol=1e-5)


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """What the interpreter takes, a compiler may refuse."""
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "SMOA_CACHE": str(tmp_path / "cache"),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
    }
    ran = subprocess.run([sys.executable, "-m", "tests.compile_kernels", str(tmp_path)], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) == {"add_and_norm", "attend", "expand_cores", "expand_pairs", "gate", "shrink"}
