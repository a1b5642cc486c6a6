"""Mixtures: what a weighted set of adapters adds to every linear module, exactly sum_i w_i dW_i.

`lora_xs` adapters share their bases, so a mixture is one core a module whatever the number of adapters, and a batch shares the two
large products. `lora` adapters are concatenated along the rank: A stacked, B stacked and scaled (PEFT's `cat`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from services.executor.base_model import BASES_RANK, MODULES
from services.executor.model import Llama, module_path
from smoa.adapter import Adapter
from smoa.errors import FailedPrecondition, InvalidArgument

Site = tuple[int, str]
"""A linear module: (layer, module name)."""
Bases = Mapping[str, tuple[Tensor, Tensor]]
"""Module path -> (U S [out, rank], V [in, rank])."""


@dataclass(frozen=True)
class LoadedAdapter:
    """One adapter's tensors on the device, by site, scaling folded in. Either map may be empty."""

    cores: Mapping[Site, Tensor]
    pairs: Mapping[Site, tuple[Tensor, Tensor]]

    @property
    def nbytes(self) -> int:
        """Device bytes held."""
        return sum(t.nbytes for t in self.cores.values()) + sum(a.nbytes + b.nbytes for a, b in self.pairs.values())


def load_adapter(adapter: Adapter, model: Llama, max_rank: int) -> LoadedAdapter:
    """Move an adapter to the model's device, checked against the model.

    Raises:
        FailedPrecondition: trained for another base model.
        InvalidArgument: a rank over the pool's, an unknown module, a layer or shape the model does not have.
    """
    manifest = adapter.manifest
    if manifest.base_model != model.fingerprint:
        raise FailedPrecondition(
            f"base_model: adapter {manifest.adapter_id} was trained for {manifest.base_model[:12]}, this executor runs "
            f"{model.fingerprint[:12]}; send it to an executor with that base model"
        )
    limit = BASES_RANK if manifest.kind == "lora_xs" else max_rank
    if manifest.rank > limit:
        remedy = f"retrain with a rank up to {limit}" + ("" if manifest.kind == "lora_xs" else ", or raise SMOA_EXECUTOR_MAX_RANK")
        raise InvalidArgument("rank", f"{manifest.rank} is over this executor's {limit} for {manifest.kind}", remedy)
    cores: dict[Site, Tensor] = {}
    pairs: dict[Site, tuple[Tensor, Tensor]] = {}

    def to_device(array: object) -> Tensor:
        return torch.tensor(array, dtype=torch.float32)

    if manifest.kind == "lora_xs":
        for module in manifest.modules:
            stack = adapter.tensors[module]
            for index, layer in enumerate(manifest.layers):
                _shape_of(model, layer, module)
                cores[layer, module] = (to_device(stack[index]) * manifest.scaling).to(model.device)
        return LoadedAdapter(cores, {})
    for layer in manifest.layers:
        for module in manifest.modules:
            path = module_path(layer, module)
            if f"{path}.lora_A" not in adapter.tensors:
                continue
            a, b = to_device(adapter.tensors[f"{path}.lora_A"]), to_device(adapter.tensors[f"{path}.lora_B"])
            if (b.shape[0], a.shape[1]) != _shape_of(model, layer, module):
                raise InvalidArgument(
                    "file", f"{path} is {b.shape[0]}x{a.shape[1]}, the model's is {_shape_of(model, layer, module)}", "retrain"
                )
            pairs[layer, module] = (a.to(model.device, model.dtype), (b * manifest.scaling).to(model.device, model.dtype))
    if len(pairs) * 2 != len(adapter.tensors):
        raise InvalidArgument("file", "holds tensors outside the manifest's layers", "write only the layers that the manifest names")
    return LoadedAdapter({}, pairs)


def _shape_of(model: Llama, layer: int, module: str) -> tuple[int, int]:
    if module not in MODULES or not 0 <= layer < model.config.layers:
        raise InvalidArgument("manifest.modules", f"layer {layer} {module!r} is not in the base model", f"use {', '.join(MODULES)}")
    weight = model.linears[layer][module]
    return weight.shape[0], weight.shape[1]


@dataclass(frozen=True)
class Mixture:
    """One request's adapters, mixed once: a core a site and a concatenated pair a site."""

    cores: Mapping[Site, Tensor]
    pairs: Mapping[Site, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, weighted: Sequence[tuple[LoadedAdapter, float]], dtype: torch.dtype) -> Mixture:
        """Mix in float32; cores of different ranks are padded with zeros (a smaller basis is a prefix of a larger one)."""
        cores: dict[Site, Tensor] = {}
        parts: dict[Site, list[tuple[Tensor, Tensor]]] = {}
        for adapter, weight in weighted:
            for site, core in adapter.cores.items():
                term = weight * core
                cores[site] = _padded_sum(cores[site], term) if site in cores else term
            for site, (a, b) in adapter.pairs.items():
                parts.setdefault(site, []).append((a, (b.float() * weight).to(dtype)))
        pairs = {site: (torch.cat([a for a, _ in terms]), torch.cat([b for _, b in terms], 1)) for site, terms in parts.items()}
        return cls({site: core.to(dtype) for site, core in cores.items()}, pairs)


def _padded_sum(left: Tensor, right: Tensor) -> Tensor:
    rank = max(left.shape[0], right.shape[0])
    return _pad(left, rank, rank) + _pad(right, rank, rank)


def _pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    return F.pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))


class BatchMixture:
    """The mixtures of all rows of a batch, stacked a site: the model's `Delta`. Sites no row uses cost nothing.

    Stacking happens once when the batch changes, not at every step.
    """

    def __init__(self, rows: Sequence[Mixture], bases: Bases) -> None:
        self._cores: dict[Site, tuple[Tensor, Tensor, Tensor]] = {}
        self._pairs: dict[Site, tuple[Tensor, Tensor]] = {}
        for site in dict.fromkeys(site for row in rows for site in row.cores):
            present = [row.cores.get(site) for row in rows]
            rank = max(core.shape[0] for core in present if core is not None)
            zero = torch.zeros_like(next(core for core in present if core is not None))
            stack = torch.stack([_pad(zero if core is None else core, rank, rank) for core in present])
            scaled_left, right = bases[module_path(*site)]
            self._cores[site] = (right[:, :rank], stack, scaled_left[:, :rank])
        for site in dict.fromkeys(site for row in rows for site in row.pairs):
            found = [row.pairs.get(site) for row in rows]
            rank = max(pair[0].shape[0] for pair in found if pair is not None)
            some_a, some_b = next(pair for pair in found if pair is not None)
            blank = (some_a[:0], some_b[:, :0])
            filled = [blank if pair is None else pair for pair in found]
            self._pairs[site] = (
                torch.stack([_pad(a, rank, a.shape[1]) for a, _ in filled]),
                torch.stack([_pad(b, b.shape[0], rank) for _, b in filled]),
            )

    def add(self, layer: int, module: str, x: Tensor, y: Tensor) -> Tensor:
        """Y plus every row's delta of x (see `model.Delta`)."""
        site = (layer, module)
        if core := self._cores.get(site):
            right, stack, scaled_left = core
            y = y + ((x @ right) @ stack.transpose(1, 2)) @ scaled_left.T
        if pair := self._pairs.get(site):
            a, b = pair
            y = y + (x @ a.transpose(1, 2)) @ b.transpose(1, 2)
        return y
