"""Adapters on the device of the torch backend: preallocated stacks of ranks, and what a batch reads of them.

A `lora` adapter of rank r holds r rows of every site's stacks, wherever they are free: so a mixture of any adapters is a list of rows
with a scale each, whatever their ranks, and nothing is copied when the batch changes. A `lora_xs` adapter keeps its cores as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.executor.adapters.mixture import LoadedAdapter, Site, mixed_cores
from services.executor.models.base_model import INPUTS, MODULES
from services.executor.models.config import ModelConfig
from smoa.errors import FailedPrecondition


@dataclass(frozen=True)
class PlacedAdapter:
    """An adapter on the device: its cores, and the rows of the stacks that its pairs have."""

    layers: tuple[int, ...]
    scaling: float
    cores: Mapping[str, Tensor]
    rows: tuple[int, ...]
    ranks: Mapping[Site, int]
    """How many of the rows each site's pair fills."""

    @property
    def pair_modules(self) -> frozenset[str]:
        """Those of its pairs."""
        return frozenset(module for _, module in self.ranks)


@dataclass(frozen=True, eq=False)
class TorchMixture:
    """One request's adapters: cores mixed into one (see `mixed_cores`), pairs as rows of the stacks with their scales."""

    cores: Tensor | None = None
    core_modules: frozenset[str] = frozenset()
    rows: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    pair_modules: frozenset[str] = frozenset()


class RankPool:
    """The stacks: every module's A and B by rank, zero where a row's adapter has nothing."""

    def __init__(self, config: ModelConfig, max_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rank_bytes = sum(sum(config.shape(module)) for module in MODULES) * config.layers * dtype.itemsize
        self.ranks = max_bytes // self.rank_bytes
        self._config, self._device = config, device
        self.fused: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
        """Of each of `base_model.INPUTS`: A [layers, ranks, modules, inputs] and B [layers, ranks, outputs of all]."""
        self.a: dict[str, Tensor] = {}
        """Of each module: a view [layers, ranks, inputs]."""
        self.b: dict[str, Tensor] = {}
        """Of each module: a view [layers, ranks, outputs]."""
        for modules in INPUTS:
            sizes, inputs = [config.shape(module)[0] for module in modules], config.shape(modules[0])[1]
            a = torch.zeros(config.layers, self.ranks, len(modules), inputs, dtype=dtype, device=device)
            b = torch.zeros(config.layers, self.ranks, sum(sizes), dtype=dtype, device=device)
            self.fused[modules] = (a, b)
            self.a |= zip(modules, a.unbind(2), strict=True)
            self.b |= zip(modules, torch.split(b, sizes, 2), strict=True)
        self._free = list(range(self.ranks - 1, -1, -1))
        self._placed: dict[str, PlacedAdapter] = {}

    def bytes_of(self, adapter: LoadedAdapter) -> int:
        """Device bytes that an adapter will hold: whole rows of the stacks, and its cores."""
        return _rank(adapter) * self.rank_bytes + sum(stack.nbytes for stack in adapter.cores.values())

    def place(self, key: str, adapter: LoadedAdapter) -> None:
        """Copy an adapter to the device.

        Raises:
            FailedPrecondition: its ranks are more than are free.
        """
        cores = {module: stack.to(self._device) for module, stack in adapter.cores.items()}
        rank = _rank(adapter)
        if rank > len(self._free):
            raise FailedPrecondition(
                f"adapter: needs {rank} ranks of the device and {len(self._free)} are free; raise SMOA_EXECUTOR_SLOT_BYTES"
            )
        rows = tuple(self._free.pop() for _ in range(rank))
        try:
            self._write(rows, adapter)
        except BaseException:
            self._free.extend(reversed(rows))
            raise
        ranks = {site: len(a) for site, (a, _) in adapter.pairs.items()}
        self._placed[key] = PlacedAdapter(adapter.layers, adapter.scaling, cores, rows, ranks)

    def _write(self, rows: tuple[int, ...], adapter: LoadedAdapter) -> None:
        if not rows:
            return
        at = torch.tensor(rows, device=self._device)
        for module in MODULES:
            a = torch.zeros(self._config.layers, len(rows), self.a[module].shape[2], dtype=self.a[module].dtype)
            b = torch.zeros(self._config.layers, len(rows), self.b[module].shape[2], dtype=self.b[module].dtype)
            for layer in range(self._config.layers):
                if pair := adapter.pairs.get((layer, module)):
                    a[layer, : len(pair[0])], b[layer, : len(pair[1])] = pair
            self.a[module].index_copy_(1, at, a.to(self._device))
            self.b[module].index_copy_(1, at, b.to(self._device))

    def read(self, key: str) -> LoadedAdapter:
        """A placed adapter, copied to the host."""
        one = self._placed[key]
        cores = {module: stack.cpu() for module, stack in one.cores.items()}
        rows = torch.tensor(one.rows, dtype=torch.long, device=self._device)
        sides = {module: (self.a[module][:, rows].cpu(), self.b[module][:, rows].cpu()) for module in one.pair_modules}
        pairs = {
            (layer, module): (sides[module][0][layer, :rank].clone(), sides[module][1][layer, :rank].clone())
            for (layer, module), rank in one.ranks.items()
        }
        return LoadedAdapter(one.layers, one.scaling, cores, pairs)

    def evict(self, key: str) -> None:
        """Free an adapter's rows. No mixture that holds them may run any more."""
        self._free.extend(reversed(self._placed.pop(key).rows))

    def mix(self, weighted: Sequence[tuple[str, float]]) -> TorchMixture:
        """sum_i w_i dW_i of placed adapters: cores mixed into one, ranks listed."""
        placed = [(self._placed[key], weight) for key, weight in weighted]
        return TorchMixture(
            cores=mixed_cores([(one.cores, one.layers, weight * one.scaling) for one, weight in placed], self._config),
            core_modules=frozenset[str]().union(*(one.cores for one, _ in placed)),
            rows=tuple(row for one, _ in placed for row in one.rows),
            scales=tuple(weight * one.scaling for one, weight in placed for _ in one.rows),
            pair_modules=frozenset[str]().union(*(one.pair_modules for one, _ in placed)),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if a row is free and held, held twice, or lost."""
        held = [row for one in self._placed.values() for row in one.rows]
        assert sorted([*self._free, *held]) == list(range(self.ranks)), "a row is lost, or in two states"


def _rank(adapter: LoadedAdapter) -> int:
    return max((len(a) for a, _ in adapter.pairs.values()), default=0)
