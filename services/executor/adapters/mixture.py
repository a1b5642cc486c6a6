"""Mixtures: what a weighted set of adapters adds to every linear module, exactly sum_i w_i dW_i.

`lora_xs` adapters share their bases, so a mixture is one core a module whatever the number of adapters, and a batch shares the two
large products. `lora` adapters are concatenated along the rank (PEFT's `cat`), in the place where they are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from services.executor.models.base_model import BASES_RANK, MODULES
from services.executor.models.config import ModelConfig
from services.executor.models.linear import Linear
from smoa.adapter import Adapter, site_of
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.model_shape import ModelShape
from smoa.tensor_file import BFLOAT16, Array

Site = tuple[int, str]
"""A linear module: (layer, module name)."""
Bases = Mapping[str, tuple[Tensor, Tensor]]
"""Module path -> (U S [out, rank], V [in, rank])."""


@dataclass(frozen=True)
class LoadedAdapter:
    """One adapter's tensors on the host, as a device takes them. Either map may be empty.

    `cores`: module -> [layers, rank, rank] in the file's dtype, for the layers named. `pairs`: site -> A [rank, in] and B transposed
    [rank, out], in the model's dtype.
    """

    layers: tuple[int, ...]
    scaling: float
    cores: Mapping[str, Tensor]
    pairs: Mapping[Site, tuple[Tensor, Tensor]]

    @property
    def nbytes(self) -> int:
        """Host bytes held."""
        return sum(t.nbytes for t in self.cores.values()) + sum(a.nbytes + b.nbytes for a, b in self.pairs.values())


def shape_of(config: ModelConfig, max_rank: int, dtype: torch.dtype, max_adapter_bytes: int = sys.maxsize) -> ModelShape:
    """What adapters of a model must fit, computed in `dtype`."""
    return ModelShape(
        layers=config.layers,
        modules={module: config.shape(module) for module in MODULES},
        max_rank=max_rank,
        max_lora_xs_rank=BASES_RANK,
        max_adapter_bytes=max_adapter_bytes,
        weight_bytes=dtype.itemsize,
    )


def load_adapter(
    adapter: Adapter, config: ModelConfig, fingerprint: str, max_rank: int, dtype: torch.dtype, max_bytes: int = sys.maxsize
) -> LoadedAdapter:
    """An adapter as host tensors in the model's dtype, checked against the model.

    A linear that several were fused into is taken apart: they share its A, and each has its rows of B. What a pair's scaling differs by
    from the adapter's is multiplied into its B, so that an adapter has one.

    Raises:
        FailedPrecondition: trained for another base model.
        InvalidArgument: a rank over the pool's, an unknown module, a layer or shape that the model lacks, or over `max_bytes`.
    """
    manifest = adapter.manifest
    if manifest.base_model != fingerprint:
        raise FailedPrecondition(
            f"base_model: adapter {manifest.adapter_id} was trained for {manifest.base_model[:12]}, this executor runs "
            f"{fingerprint[:12]}; send it to an executor with that base model"
        )
    shape = shape_of(config, max_rank, dtype, max_bytes)
    shape.check(adapter)
    if manifest.kind == "lora_xs":
        cores = {module: _tensor(adapter.tensors[module]) for module in manifest.modules}
        return LoadedAdapter(manifest.layers, manifest.scaling, cores, {})
    pairs: dict[Site, tuple[Tensor, Tensor]] = {}
    for name, tensor in adapter.tensors.items():
        path, _, side = name.rpartition(".")
        if side != "lora_A":
            continue
        (layer, module), a, b = site_of(path), _tensor(tensor).to(dtype), adapter.tensors[f"{path}.lora_B"]
        if path in manifest.scalings:
            b = b.astype(np.float32) * np.float32(manifest.scalings[path] / manifest.scaling)
        first = 0
        for part in shape.parts_of(module):
            outputs = shape.modules[part][0]
            pairs[layer, part] = (a, _tensor(b[first : first + outputs].T).to(dtype))
            first += outputs
            if not all(side.isfinite().all() for side in pairs[layer, part]):  # 0 times infinity would be others' NaN
                raise InvalidArgument("file", f"{path} holds weights that {dtype} cannot", "retrain it, or serve the model in bfloat16")
    return LoadedAdapter(manifest.layers, manifest.scaling, {}, pairs)


def _tensor(array: Array) -> Tensor:
    """A copy of an array, rows first."""
    if array.dtype == BFLOAT16:  # torch has a bfloat16 of its own
        return torch.from_numpy(np.array(array.view(np.uint16), order="C")).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def mixed_cores(parts: Sequence[tuple[Mapping[str, Tensor], Sequence[int], float]], config: ModelConfig) -> Tensor | None:
    """Cores of several `lora_xs` adapters as one, in float32: of (module -> [layers, rank, rank], which layers, scale) each.

    Returns:
        [layers, modules, BASES_RANK, BASES_RANK] transposed (x core, row by row), zero where there is none; None when no part has any.
        Cores of a smaller rank fill the leading corner: a smaller basis is a prefix of a larger.
    """
    mixed: Tensor | None = None
    for cores, layers, scale in parts:
        for module, stack in cores.items():
            if mixed is None:
                mixed = torch.zeros(config.layers, len(MODULES), BASES_RANK, BASES_RANK, device=stack.device)
            rank = stack.shape[-1]
            mixed[:, MODULES.index(module), :rank, :rank][list(layers)] += scale * stack.float().transpose(1, 2)
    return mixed


def padded_bases(bases: Bases) -> dict[str, tuple[Tensor, Tensor]]:
    """Bases with zero columns up to BASES_RANK, for models whose modules are narrower than that."""
    return {
        path: (F.pad(left, (0, BASES_RANK - left.shape[1])), F.pad(right, (0, BASES_RANK - right.shape[1])))
        for path, (left, right) in bases.items()
    }


class Delta(Protocol):
    """What each token's mixture changes of the linear modules: all that the model sees of adapters."""

    def apply(self, layer: int, linear: Linear, x: Tensor) -> Sequence[Tensor]:
        """What each of the modules gives [tokens, its outputs] for x [tokens, inputs], the tokens' deltas included."""
