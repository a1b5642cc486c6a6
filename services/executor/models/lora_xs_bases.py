"""The frozen LoRA-XS bases of a base model (arXiv 2405.17604): the leading singular vectors of every linear weight.

They are found at their first use, which takes minutes for a model of 8B parameters on two cores, and are kept on disk by the model's
fingerprint: who serves `lora` adapters only never pays for them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.executor.models.base_model import BASES_RANK, DEFAULT_BASE_MODEL, MODULES, cache_home, fingerprint, resolve
from services.executor.models.config import ModelConfig
from services.executor.models.weights import linear_weights

TELL_S = 10.0
TOLERANCE = 3e-4
"""Most that a singular vector may be off, in radians, by the bound that its residual gives. bfloat16 puts it off by more."""
_EXTRA, _STEPS, _MOST_ROUNDS, _ROWS, _FLOOR, _NOTHING = 16, 12, 50, 128, 5e-7, 1e-6
_log = logging.getLogger(__name__)


class LoraXsBases(Mapping[str, tuple[Tensor, Tensor]]):
    """Module path -> (U S [outputs, BASES_RANK], V [inputs, BASES_RANK]) float32, of W = U S V^T; an adapter of a smaller rank uses the
    first columns.

    Every machine finds the same ones, to `TOLERANCE`: the largest entry of each right vector is positive. Nothing is read or computed
    before the first look into it; any threads may look.
    """

    def __init__(self, folder: Path, fingerprint_hex: str, tell: Callable[[str], None] = _log.info) -> None:
        """`tell` hears how far it is, every `TELL_S` seconds."""
        self._folder, self._tell = folder, tell
        self._path = cache_home() / "bases" / f"{fingerprint_hex[:32]}-r{BASES_RANK}.safetensors"
        self._lock = threading.Lock()
        self._found: dict[str, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, path: str) -> tuple[Tensor, Tensor]:
        return self._bases()[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bases())

    def __len__(self) -> int:
        return len(self._bases())

    def _bases(self) -> dict[str, tuple[Tensor, Tensor]]:
        with self._lock:
            if not self._found:
                if not self._path.exists():
                    _find(ModelConfig.from_folder(self._folder), self._path, self._tell)
                stored = load_file(self._path)
                names = [key.removesuffix(".us") for key in stored if key.endswith(".us")]
                self._found = {name: (stored[f"{name}.us"], stored[f"{name}.v"]) for name in names}
            return self._found


def _find(config: ModelConfig, path: Path, tell: Callable[[str], None]) -> None:
    """Find the bases of every linear module and write them to `path`, as one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    total, done = config.layers * sum(outputs * inputs for outputs, inputs in map(config.shape, MODULES)), 0
    began = told = time.monotonic()
    for module, weight in linear_weights(config):
        tensors[f"{module}.us"], tensors[f"{module}.v"] = leading_vectors(weight, BASES_RANK)
        done += weight.numel()
        if (now := time.monotonic()) - told > TELL_S:
            told = now
            left = (now - began) / done * (total - done)
            tell(f"finding the LoRA-XS bases of the base model, once: {done / total:.0%} done, about {left:.0f} s left")
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, scratch)
    os.replace(scratch, path)


def leading_vectors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(U S [outputs, rank], V [inputs, rank]) float32 of a weight's leading singular triples; fewer where it has fewer.

    Randomised (Halko, Martinsson, Tropp, arXiv 0909.4061): from `rank` + 16 random vectors, a block Krylov space (arXiv 1504.05477) of 12
    powers of W W^T is made in float32; its best vectors are turned into singular vectors in float64, and measured; and again from these,
    until each is right to `TOLERANCE`. So singular values that are close together cost rounds, not digits.
    """
    flat = weight.shape[0] <= weight.shape[1]
    matrix = (weight if flat else weight.T).float().contiguous()
    rows = len(matrix)
    rank, block = min(rank, rows), min(rank + _EXTRA, rows)
    if rows <= _STEPS * block:
        left = torch.eye(rows, dtype=torch.float64)  # the space as a whole
    else:
        left = torch.randn(rows, block, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(_MOST_ROUNDS):
        left = torch.linalg.qr(_krylov(matrix, left.float(), block).double()).Q
        images = _transposed_product(matrix, left)
        turn = _by_size(images)
        left, images = left @ turn, images @ turn
        values = images.norm(dim=0)
        values = values.where(values > _NOTHING * values.max(), 0.0)
        right = torch.where(values[:rank] > 0, images[:, :rank] / values[:rank], 0.0)
        scaled_left = _product(matrix, right)
        if _converged(values, (scaled_left - left[:, :rank] * values[:rank]).norm(dim=0)):
            break
    else:
        _log.warning("singular vectors of a weight %s are not right to %.0e after %d rounds", list(weight.shape), TOLERANCE, _MOST_ROUNDS)
    if not flat:
        scaled_left, right = images[:, :rank], left[:, :rank]
    signs = right.gather(0, right.abs().argmax(0)[None]).sign()
    return (scaled_left * signs).float().contiguous(), (right * signs).float().contiguous()


def _converged(values: Tensor, residuals: Tensor) -> bool:
    """Whether the leading singular vectors are as right as they need to be, or as float32 lets them be.

    `values` are of the whole block, descending; `residuals` |W v - s u| of the leading ones. What is missing of a vector lies outside the
    block: to first order it is the residual over the distance to the block's last value. What that mixes within the block is of second
    order, over the distance to the next value. Equal ones have no vectors of their own: any will do, and the residual is all that counts.
    """
    if float(residuals.max()) <= _FLOOR * float(values[0]):
        return True
    leading = values[: len(residuals)]
    outside = (leading - values[-1]).clamp(min=1e-300)
    gaps = (values[:-1] - values[1:])[: len(residuals)].clamp(min=1e-300)
    nearest = torch.minimum(gaps, torch.cat((gaps[:1], gaps[:-1])))
    return float((residuals / outside * (1 + residuals.max() / nearest)).max()) <= TOLERANCE


def _krylov(matrix: Tensor, start: Tensor, block: int) -> Tensor:
    """The `block` best left vectors [rows, block] in the space of `start` and its images under up to `_STEPS` - 1 powers of W W^T."""
    basis = _orthonormal(start)
    images = [matrix.T @ basis]
    while len(images) < _STEPS and basis.shape[1] + block <= len(matrix):
        new = _beside(basis, matrix @ images[-1])
        if new is None:
            break
        basis = torch.cat((basis, new), 1)
        images.append(matrix.T @ new)
    return basis @ _by_size(torch.cat(images, 1).double())[:, :block].float()


def _beside(basis: Tensor, vectors: Tensor) -> Tensor | None:
    """An orthonormal basis of what the vectors have beside a basis; None when that is nothing."""
    vectors = _orthonormal(vectors)
    for _ in range(4):  # What is left of a vector that has hardly anything is rounding errors, and shares much with the basis again.
        shared = basis.T @ vectors
        vectors = _orthonormal(vectors - basis @ shared)
        if float(shared.abs().max()) < 1e-3:
            return vectors
    return None


def _by_size(images: Tensor) -> Tensor:
    """The rotation that makes of W^T Q, for an orthonormal Q, right singular vectors times values, largest first."""
    vectors: Tensor = torch.linalg.eigh(images.T @ images)[1]
    return vectors.flip(1)


def _orthonormal(vectors: Tensor) -> Tensor:
    """An orthonormal basis of float32 columns, by Cholesky factors in float64, which are far faster than reflections for few columns."""
    wide = vectors.double()
    for _ in range(2):
        factor, failed = torch.linalg.cholesky_ex(wide.T @ wide)
        if failed:  # some columns are in the span of the others
            by_reflections: Tensor = torch.linalg.qr(vectors)[0]
            return by_reflections
        wide = torch.linalg.solve_triangular(factor, wide.T, upper=False).T
    return wide.float()


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """Matrix [rows, columns] times x [columns, n] in float64, without a copy of the matrix in it."""
    return torch.cat([matrix[at : at + _ROWS].double() @ x for at in range(0, len(matrix), _ROWS)])


def _transposed_product(matrix: Tensor, x: Tensor) -> Tensor:
    """The matrix's transpose times x [rows, n] in float64."""
    out = torch.zeros(matrix.shape[1], x.shape[1], dtype=torch.float64)
    for at in range(0, len(matrix), _ROWS):
        out.addmm_(matrix[at : at + _ROWS].double().T, x[at : at + _ROWS])
    return out


def main() -> None:
    """Convert the default base model and find its bases ahead of their first use: `python -m services.executor.models.lora_xs_bases`."""
    folder = resolve(DEFAULT_BASE_MODEL)
    name = fingerprint(folder)
    bases = LoraXsBases(folder, name)
    print(f"base model {DEFAULT_BASE_MODEL} in {folder}, fingerprint {name[:12]}, bases of {len(bases)} modules")


if __name__ == "__main__":
    main()
