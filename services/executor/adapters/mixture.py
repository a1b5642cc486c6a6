"""Mixtures: what a weighted set of adapters adds to every linear module, exactly sum_i w_i dW_i.

`lora_xs` adapters share their bases, so a mixture is one core a module whatever the number of adapters, and a batch shares the two
large products. `lora` adapters are concatenated along the rank (PEFT's `cat`), in the place where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from services.executor.models.base_model import BASES_RANK, MODULES
from services.executor.models.config import ModelConfig, module_path
from smoa.adapter import Adapter
from smoa.errors import FailedPrecondition, InvalidArgument

Site = tuple[int, str]
"""A linear module: (layer, module name)."""
Bases = Mapping[str, tuple[Tensor, Tensor]]
"""Module path -> (U S [out, rank], V [in, rank])."""


@dataclass(frozen=True)
class LoadedAdapter:
    """One adapter's tensors on the device. Either map may be empty.

    `cores`: module -> [layers, rank, rank] in the file's dtype, for the layers named. `pairs`: site -> A [rank, in] and B transposed
    [rank, out], in the model's dtype.
    """

    layers: tuple[int, ...]
    scaling: float
    cores: Mapping[str, Tensor]
    pairs: Mapping[Site, tuple[Tensor, Tensor]]

    @property
    def nbytes(self) -> int:
        """Device bytes held."""
        return sum(t.nbytes for t in self.cores.values()) + sum(a.nbytes + b.nbytes for a, b in self.pairs.values())


def load_adapter(adapter: Adapter, config: ModelConfig, fingerprint: str, max_rank: int, dtype: torch.dtype) -> LoadedAdapter:
    """An adapter as host tensors in the model's dtype, checked against the model.

    Raises:
        FailedPrecondition: trained for another base model.
        InvalidArgument: a rank over the pool's, an unknown module, a layer or shape the model does not have.
    """
    manifest = adapter.manifest
    if manifest.base_model != fingerprint:
        raise FailedPrecondition(
            f"base_model: adapter {manifest.adapter_id} was trained for {manifest.base_model[:12]}, this executor runs "
            f"{fingerprint[:12]}; send it to an executor with that base model"
        )
    limit = BASES_RANK if manifest.kind == "lora_xs" else max_rank
    if manifest.rank > limit:
        remedy = f"retrain with a rank up to {limit}" + ("" if manifest.kind == "lora_xs" else ", or raise SMOA_EXECUTOR_MAX_RANK")
        raise InvalidArgument("rank", f"{manifest.rank} is over this executor's {limit} for {manifest.kind}", remedy)
    for layer in manifest.layers:
        for module in manifest.modules:
            if module not in MODULES or not 0 <= layer < config.layers:
                raise InvalidArgument("manifest.modules", f"layer {layer} {module!r} is not in the base model", f"use {', '.join(MODULES)}")
    if manifest.kind == "lora_xs":
        cores = {module: torch.tensor(adapter.tensors[module]) for module in manifest.modules}
        return LoadedAdapter(manifest.layers, manifest.scaling, cores, {})
    pairs: dict[Site, tuple[Tensor, Tensor]] = {}
    for layer in manifest.layers:
        for module in manifest.modules:
            path = module_path(layer, module)
            if f"{path}.lora_A" not in adapter.tensors:
                continue
            a, b = torch.tensor(adapter.tensors[f"{path}.lora_A"]), torch.tensor(adapter.tensors[f"{path}.lora_B"])
            if (b.shape[0], a.shape[1]) != config.shape(module):
                raise InvalidArgument("file", f"{path} is {b.shape[0]}x{a.shape[1]}, the model's is {config.shape(module)}", "retrain")
            pairs[layer, module] = (a.to(dtype).contiguous(), b.T.to(dtype).contiguous())
    if len(pairs) * 2 != len(adapter.tensors):
        raise InvalidArgument("file", "holds tensors outside the manifest's layers", "write only the layers that the manifest names")
    return LoadedAdapter(manifest.layers, manifest.scaling, {}, pairs)


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

    def add(self, layer: int, module: str, x: Tensor, y: Tensor) -> Tensor:
        """Y [tokens, out] plus the tokens' deltas applied to x [tokens, in]."""
