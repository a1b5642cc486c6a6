"""Linear modules that read the same input, as one product; behind their outputs, what `lora_xs` adapters read of that input."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from services.executor.models.base_model import BASES_RANK
from services.executor.models.config import ModelConfig, module_path


class Linear:
    """The modules of one of `base_model.INPUTS` in one layer.

    The weight ends in BASES_RANK rows a module for the V of its LoRA-XS basis, zero until `set_bases`. A product without them reads the
    rows before: so they cost a batch without such adapters nothing, and a batch with some no product of its own.
    """

    def __init__(self, weights: MutableMapping[str, Tensor], config: ModelConfig, layer: int, modules: Sequence[str]) -> None:
        """`weights` are the model's, by Llama's names; these modules' are taken out of it, so that no model is in memory twice."""
        self.modules = tuple(modules)
        self.paths = tuple(module_path(layer, module) for module in modules)
        self.sizes = [config.shape(module)[0] for module in modules]
        """Outputs of each module."""
        self.outputs = sum(self.sizes)
        parts = [weights.pop(f"{path}.weight") for path in self.paths]
        behind = parts[0].new_zeros(len(modules) * BASES_RANK, parts[0].shape[1])
        self.weight = torch.cat([*parts, behind])
        self.bias = None
        if config.biased.intersection(modules):
            biases = [weights.pop(f"{path}.bias", parts[0].new_zeros(size)) for path, size in zip(self.paths, self.sizes, strict=True)]
            self.bias = torch.cat([*biases, parts[0].new_zeros(len(behind))])

    def __call__(self, x: Tensor, bases: bool = False) -> Tensor:
        """[tokens, outputs] of x [tokens, inputs]; with `bases`, [tokens, outputs + modules * BASES_RANK]."""
        rows = len(self.weight) if bases else self.outputs
        return F.linear(x, self.weight[:rows], None if self.bias is None else self.bias[:rows])

    def parts(self, y: Tensor) -> Sequence[Tensor]:
        """What each module gave: views [tokens, its outputs] of a product."""
        return torch.split(y[..., : self.outputs], self.sizes, -1)

    def read_by_basis(self, y: Tensor, place: int) -> Tensor:
        """V^T x [tokens, BASES_RANK] of the module at a place, of a product with bases."""
        return y[..., self.outputs + place * BASES_RANK :][..., :BASES_RANK]

    def set_bases(self, rights: Sequence[Tensor]) -> None:
        """Take each module's V [inputs, BASES_RANK]. Products without bases may run meanwhile."""
        for place, right in enumerate(rights):
            self.weight[self.outputs + place * BASES_RANK :][:BASES_RANK].copy_(right.T)
