"""The randomised bases are the exact ones, whatever the spectrum, and are looked for when they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.executor.models import lora_xs_bases
from services.executor.models.base_model import DEFAULT_BASE_MODEL, fingerprint, resolve
from services.executor.models.config import ModelConfig
from services.executor.models.lora_xs_bases import LoraXsBases, leading_vectors
from services.executor.models.weights import linear_weights
from tests.model_support import isolated_cache, make_model


def exact(weight: Tensor, rank: int = 16) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    right = right[:rank].T
    signs = right.gather(0, right.abs().argmax(0)[None]).sign()
    return left[:, :rank] * values[:rank] * signs, right * signs


def off(found: tuple[Tensor, Tensor], weight: Tensor) -> float:
    """How far the worst singular vector is from its own, in radians."""
    wanted = exact(weight)
    return max(float(((a.double() - b).norm(dim=0) / b.norm(dim=0)).max()) for a, b in zip(found, wanted, strict=True))


def with_values(values: np.ndarray, outputs: int, inputs: int, seed: int) -> Tensor:
    """A random weight with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(values), dtype=torch.float64, generator=generator)).Q for size in (outputs, inputs)
    )
    weight: Tensor = (left * torch.from_numpy(values)) @ right.T
    return weight


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([(500, 900), (900, 500), (520, 520), (64, 96), (96, 20), (10, 30)]),
    gap=st.sampled_from([1e-1, 1e-2, 1e-3, 2e-4]),
    decay=st.sampled_from([0.0, 0.5, 2.0]),
    seed=st.integers(0, 3),
)
def test_vectors_of_close_singular_values_are_told_apart(shape: tuple[int, int], gap: float, decay: float, seed: int) -> None:
    count = min(shape)
    values = np.cumprod(np.full(count, 1 - gap)) * np.arange(1, count + 1) ** -decay
    weight = with_values(values, *shape, seed)
    assert off(leading_vectors(weight, 16), weight.float()) < 1e-3


@pytest.mark.parametrize("weight", [torch.zeros(600, 700), torch.eye(600), torch.ones(600, 700)], ids=["zero", "identity", "rank one"])
def test_weights_without_singular_vectors_of_their_own_end_too(weight: Tensor) -> None:
    scaled_left, right = leading_vectors(weight, 16)
    kept = right.norm(dim=0) > 0.5
    assert torch.allclose(right[:, kept].T @ right[:, kept], torch.eye(int(kept.sum())), atol=1e-5)
    assert not right[:, ~kept].any()
    assert (weight @ right - scaled_left).abs().max() <= 1e-5 * weight.norm()
    assert int(kept.sum()) == min(16, int(torch.linalg.matrix_rank(weight)))


def test_the_bases_of_the_base_model_are_the_exact_ones() -> None:
    """Adapters of the example library were trained on bases by full decompositions."""
    config = ModelConfig.from_folder(resolve(DEFAULT_BASE_MODEL))
    generator = torch.Generator().manual_seed(0)
    modules = list(linear_weights(config))[::30]
    assert len({weight.shape for _, weight in modules}) > 1
    for name, weight in modules:
        found = leading_vectors(weight, 16)
        assert off(found, weight) < 1e-4, name
        core = torch.randn(16, 16, generator=generator, dtype=torch.float64)
        ours, theirs = ((left.double() @ core @ right.double().T) for left, right in (found, exact(weight)))
        assert (ours - theirs).norm() < 1e-4 * theirs.norm(), name


def test_they_are_found_at_the_first_look_kept_and_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated_cache(tmp_path / "cache", monkeypatch)
    folder = make_model(tmp_path / "model", "phi3")
    name, kept = fingerprint(folder), tmp_path / "cache" / "bases"
    monkeypatch.setattr(lora_xs_bases, "TELL_S", 0.0)
    told: list[str] = []
    bases = LoraXsBases(folder, name, told.append)
    assert not kept.exists()
    config = ModelConfig.from_folder(folder)
    assert len(bases) == 7 * config.layers
    left, right = bases["model.layers.1.self_attn.k_proj"]
    assert (left.shape, right.shape) == ((32, 16), (64, 16))
    assert len(told) == len(bases)
    assert told[-1] == "finding the LoRA-XS bases of the base model, once: 100% done, about 0 s left"
    (path,) = kept.iterdir()
    first = path.read_bytes()
    path.unlink()
    assert len(LoraXsBases(folder, name)) == 7 * config.layers
    assert path.read_bytes() == first

    def found_again(*_: object) -> None:
        raise AssertionError("they were there")

    monkeypatch.setattr(lora_xs_bases, "leading_vectors", found_again)
    assert torch.equal(LoraXsBases(folder, name)["model.layers.1.self_attn.k_proj"][0], left)
