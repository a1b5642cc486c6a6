"""Adapters on the device of the torch backend: preallocated stacks of ranks, and what a batch reads of them.

A `lora` adapter of rank r holds r rows of every site's stacks, wherever they are free: so a mixture of any adapters is a list of rows
with a scale each, whatever their ranks, and nothing is copied when the batch changes. A `lora_xs` adapter keeps its cores as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.executor.adapters.mixture import Bases, LoadedAdapter, Mixture
from services.executor.backends.torch.kernels import add_ranks
from services.executor.models.base_model import BASES_RANK, MODULES
from services.executor.models.config import ModelConfig, module_path
from smoa.errors import FailedPrecondition


@dataclass(frozen=True)
class PlacedAdapter(LoadedAdapter):
    """An adapter on the device: cores as tensors, pairs as rows of the stacks."""

    rows: tuple[int, ...] = ()
    pair_modules: frozenset[str] = frozenset()
    device_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Device bytes held: whole rows of the stacks, and the cores."""
        return self.device_bytes


@dataclass(frozen=True, eq=False)
class RankMixture(Mixture):
    """A mixture whose pairs are rows of the stacks with their scales."""

    rows: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    pair_modules: frozenset[str] = frozenset()


class RankPool:
    """The stacks: A [layers, ranks, inputs] and B [layers, ranks, outputs] of every module, zero where a row's adapter has nothing."""

    def __init__(self, config: ModelConfig, max_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rank_bytes = sum(sum(config.shape(module)) for module in MODULES) * config.layers * dtype.itemsize
        self.ranks = max_bytes // self.rank_bytes
        self._config = config
        shapes = {module: config.shape(module) for module in MODULES}
        self.a = {m: torch.zeros(config.layers, self.ranks, inputs, dtype=dtype, device=device) for m, (_, inputs) in shapes.items()}
        self.b = {m: torch.zeros(config.layers, self.ranks, outputs, dtype=dtype, device=device) for m, (outputs, _) in shapes.items()}
        self._free = list(range(self.ranks - 1, -1, -1))

    @property
    def available(self) -> int:
        """Rows that nobody holds."""
        return len(self._free)

    def bytes_of(self, adapter: LoadedAdapter) -> int:
        """Device bytes that an adapter will hold."""
        return _rank(adapter) * self.rank_bytes + sum(stack.nbytes for stack in adapter.cores.values())

    def place(self, adapter: LoadedAdapter) -> PlacedAdapter:
        """Copy an adapter to the device.

        Raises:
            FailedPrecondition: its ranks are more than are free.
        """
        device = next(iter(self.a.values())).device
        cores = {module: stack.to(device) for module, stack in adapter.cores.items()}
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
        return PlacedAdapter(
            adapter.layers, adapter.scaling, cores, {}, rows, frozenset(module for _, module in adapter.pairs), self.bytes_of(adapter)
        )

    def _write(self, rows: tuple[int, ...], adapter: LoadedAdapter) -> None:
        if not rows:
            return
        device = next(iter(self.a.values())).device
        at = torch.tensor(rows, device=device)
        for module in MODULES:
            a = torch.zeros(self._config.layers, len(rows), self.a[module].shape[2], dtype=self.a[module].dtype)
            b = torch.zeros(self._config.layers, len(rows), self.b[module].shape[2], dtype=self.b[module].dtype)
            for layer in range(self._config.layers):
                if pair := adapter.pairs.get((layer, module)):
                    a[layer, : len(pair[0])], b[layer, : len(pair[1])] = pair
            self.a[module].index_copy_(1, at, a.to(device))
            self.b[module].index_copy_(1, at, b.to(device))

    def evict(self, adapter: PlacedAdapter) -> None:
        """Free an adapter's rows. No mixture that holds them may run any more."""
        self._free.extend(reversed(adapter.rows))

    def check_integrity(self) -> None:
        """Raise AssertionError if a row is free twice."""
        assert len(set(self._free)) == len(self._free) <= self.ranks, "a row is free twice"


def _rank(adapter: LoadedAdapter) -> int:
    return max((len(a) for a, _ in adapter.pairs.values()), default=0)


class BatchDelta:
    """The mixtures of a batch's rows, in buffers of a fixed size: so a captured graph reads what `set` wrote last."""

    def __init__(self, pool: RankPool, bases: Bases, config: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self._pool, self._bases = pool, bases
        # Layer and module first: each site reads one piece.
        self._cores = torch.zeros(config.layers, len(MODULES), rows, BASES_RANK, BASES_RANK, dtype=dtype, device=device)
        self._ranks = torch.zeros(rows, max(1, pool.ranks), dtype=torch.int32, device=device)
        self._scales = torch.zeros(rows, max(1, pool.ranks), dtype=torch.float32, device=device)
        self._counts = torch.zeros(rows, dtype=torch.int32, device=device)
        self._set: tuple[RankMixture, ...] = ()

    def set(self, mixtures: Sequence[Mixture]) -> None:
        """Make row i mixture i. Does nothing when they are the same as before."""
        if len(self._set) == len(mixtures) and all(map(lambda a, b: a is b, self._set, mixtures)):
            return
        self._set = ()  # until all is written
        device = self._cores.device
        of_kind = [mixture for mixture in mixtures if isinstance(mixture, RankMixture)]
        assert len(of_kind) == len(mixtures), "a mixture of another backend"
        if (some := next((mixture.cores for mixture in mixtures if mixture.cores is not None), None)) is not None:
            zero = torch.zeros_like(some)
            stack = torch.stack([zero if mixture.cores is None else mixture.cores for mixture in mixtures], 2)
            self._cores[:, :, : len(mixtures)] = stack.to(self._cores.dtype)
        counts = [len(mixture.rows) for mixture in of_kind]
        if most := self._rounded(max(counts, default=0)):
            ranks, scales = torch.zeros(len(counts), most, dtype=torch.int32), torch.zeros(len(counts), most)
            for row, mixture in enumerate(of_kind):
                ranks[row, : counts[row]] = torch.tensor(mixture.rows, dtype=torch.int32)
                scales[row, : counts[row]] = torch.tensor(mixture.scales)
            self._ranks[: len(counts), :most] = ranks.to(device)
            self._scales[: len(counts), :most] = scales.to(device)
        self._counts[: len(counts)] = torch.tensor(counts, dtype=torch.int32).to(device)
        self._set = tuple(of_kind)

    def of(self, rows: int, *, fused: bool) -> RowsDelta:
        """What the first `rows` rows add. Modules that no row uses are left out, so they cost nothing.

        By modules, not by layers: each set is a graph of its own, and where a layer has nothing the stacks are zero.
        """
        core_modules = frozenset(module for mixture in self._set for _, module in mixture.core_sites)
        pair_modules = frozenset(module for mixture in self._set for module in mixture.pair_modules)
        most = self._rounded(max((len(mixture.rows) for mixture in self._set), default=0))
        return RowsDelta(self, rows, core_modules, pair_modules, most, fused)

    def _rounded(self, most: int) -> int:
        """Few sizes: each is a graph of its own."""
        return min(1 << (most - 1).bit_length(), self._ranks.shape[1]) if most else 0

    def add(self, one: RowsDelta, layer: int, module: str, x: Tensor, y: Tensor) -> Tensor:
        """See `model.Delta`."""
        if module in one.core_modules:
            scaled_left, right = self._bases[module_path(layer, module)]
            y = y + ((x @ right) @ self._cores[layer, MODULES.index(module), : one.rows]) @ scaled_left.T
        if module in one.pair_modules:
            ranks, scales = self._ranks[: one.rows, : one.most], self._scales[: one.rows, : one.most]
            a, b = self._pool.a[module][layer], self._pool.b[module][layer]
            y = add_ranks(y, x, a, b, ranks, scales, self._counts[: one.rows], fused=one.fused)
        return y


@dataclass(frozen=True)
class RowsDelta:
    """The first rows of a `BatchDelta`, and the modules they adapt: the model's `Delta`, and what a captured graph is good for."""

    batch: BatchDelta
    rows: int
    core_modules: frozenset[str]
    pair_modules: frozenset[str]
    most: int
    """Ranks of the row that has most, rounded up."""
    fused: bool

    def add(self, layer: int, module: str, x: Tensor, y: Tensor) -> Tensor:
        """See `model.Delta`."""
        return self.batch.add(self, layer, module, x, y)


def mix(weighted: Sequence[tuple[LoadedAdapter, float]], config: ModelConfig) -> RankMixture:
    """sum_i w_i dW_i of placed adapters: cores mixed into one, ranks listed."""
    mixture = Mixture.of(weighted, config)
    placed = [(adapter, weight) for adapter, weight in weighted if isinstance(adapter, PlacedAdapter)]
    assert len(placed) == len(weighted), "an adapter that was not placed"
    return RankMixture(
        mixture.cores,
        mixture.core_sites,
        {},
        rows=tuple(row for adapter, _ in placed for row in adapter.rows),
        scales=tuple(weight * adapter.scaling for adapter, weight in placed for _ in adapter.rows),
        pair_modules=frozenset[str]().union(*(adapter.pair_modules for adapter, _ in placed)),
    )
