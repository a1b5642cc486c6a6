"""What a batch's mixtures add to the linear modules: the two forms of `Delta` that the model runs with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.executor.adapters.mixture import Bases
from services.executor.backends.torch.kernels import add_ranks
from services.executor.backends.torch.ranks import RankPool, TorchMixture
from services.executor.models.base_model import BASES_RANK, INPUTS, MODULES
from services.executor.models.config import ModelConfig, module_path
from services.executor.models.linear import Linear


class DeltaBuffers:
    """The mixtures of a batch's sequences, in buffers of a fixed size: so a captured graph reads what `set` wrote last."""

    def __init__(self, pool: RankPool, config: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self.pool = pool
        self.lefts: dict[tuple[str, ...], Tensor] = {}
        """Of each of `base_model.INPUTS`: the bases' U S [layers, outputs of all, BASES_RANK], from the first `lora_xs` adapter on."""
        # Layer and module first: each site reads one piece.
        self.cores = torch.zeros(config.layers, len(MODULES), rows, BASES_RANK, BASES_RANK, dtype=dtype, device=device)
        self.ranks = torch.zeros(rows, max(1, pool.ranks), dtype=torch.int32, device=device)
        self.scales = torch.zeros(rows, max(1, pool.ranks), dtype=torch.float32, device=device)
        self.counts = torch.zeros(rows, dtype=torch.int32, device=device)
        self._set: tuple[TorchMixture, ...] = ()
        self._dense: tuple[Tensor, Tensor] | None = None

    def set(self, mixtures: Sequence[TorchMixture]) -> None:
        """Make row i mixture i. Does nothing when they are the same as before."""
        if len(self._set) == len(mixtures) and all(map(lambda a, b: a is b, self._set, mixtures)):
            return
        self._set, self._dense = (), None  # until all is written
        device, rows = self.cores.device, len(mixtures)
        if (some := next((one.cores for one in mixtures if one.cores is not None), None)) is not None:
            zero = torch.zeros_like(some)
            self.cores[:, :, :rows] = torch.stack([zero if one.cores is None else one.cores for one in mixtures], 2).to(self.cores.dtype)
        if most := self._rounded(max(len(one.rows) for one in mixtures)):
            ranks, scales = torch.zeros(rows, most, dtype=torch.int32), torch.zeros(rows, most)
            for row, one in enumerate(mixtures):
                ranks[row, : len(one.rows)] = torch.tensor(one.rows, dtype=torch.int32)
                scales[row, : len(one.rows)] = torch.tensor(one.scales)
            self.ranks[:rows, :most] = ranks.to(device)
            self.scales[:rows, :most] = scales.to(device)
        self.counts[:rows] = torch.tensor([len(one.rows) for one in mixtures], dtype=torch.int32).to(device)
        self._set = tuple(mixtures)

    def of_rows(self) -> RowsDelta | None:
        """What the rows add where each has one token."""
        core_modules, pair_modules = self._modules()
        most = self._rounded(max(len(one.rows) for one in self._set))
        return RowsDelta(self, len(self._set), core_modules, pair_modules, most) if core_modules or pair_modules else None

    def of_tokens(self, row_of: Tensor) -> TokensDelta | None:
        """What the rows add where each has any number of tokens; `row_of` [tokens] int64 says whose they are."""
        core_modules, pair_modules = self._modules()
        if not core_modules and not pair_modules:
            return None
        if self._dense is None:
            self._dense = self._scales_of_used()
        used, scales = self._dense
        return TokensDelta(self, row_of, core_modules, pair_modules, used, scales[row_of])

    def _scales_of_used(self) -> tuple[Tensor, Tensor]:
        """The ranks [used] that any row has, and what each row takes of each [rows, used]."""
        used = sorted({rank for one in self._set for rank in one.rows})
        place = {rank: index for index, rank in enumerate(used)}
        scales = torch.zeros(len(self._set), len(used))
        for row, one in enumerate(self._set):
            scales[row, [place[rank] for rank in one.rows]] = torch.tensor(one.scales)
        device = self.cores.device
        return torch.tensor(used, dtype=torch.long, device=device), scales.to(device, self.cores.dtype)

    def set_bases(self, bases: Bases) -> None:
        """Take the bases that `lora_xs` adapters write by, of BASES_RANK columns."""
        for modules in INPUTS:
            layers = [torch.cat([bases[module_path(layer, module)][0] for module in modules]) for layer in range(len(self.cores))]
            self.lefts[modules] = torch.stack(layers).to(self.cores.device, self.cores.dtype)

    def _modules(self) -> tuple[frozenset[str], frozenset[str]]:
        """Those that any row uses: the others cost nothing.

        By modules, not by layers: each set is a graph of its own, and where a layer has nothing the stacks are zero.
        """
        empty = frozenset[str]()
        return empty.union(*(one.core_modules for one in self._set)), empty.union(*(one.pair_modules for one in self._set))

    def _rounded(self, most: int) -> int:
        """Few sizes: each is a graph of its own."""
        return min(1 << (most - 1).bit_length(), self.ranks.shape[1]) if most else 0


@dataclass(frozen=True)
class RowsDelta:
    """The first rows of the buffers, a token each, by the Triton kernels: the model's `Delta`, and what a captured graph is good for."""

    buffers: DeltaBuffers
    rows: int
    core_modules: frozenset[str]
    pair_modules: frozenset[str]
    most: int
    """Ranks of the row that has most, rounded up."""

    def apply(self, layer: int, linear: Linear, x: Tensor) -> Sequence[Tensor]:
        """See `Delta`."""
        from services.executor.backends.torch.triton_kernels import add_cores, add_pairs

        buffers, modules = self.buffers, linear.modules
        cored = self.core_modules.intersection(modules)
        y = linear(x, bases=bool(cored))
        if cored:
            first = MODULES.index(modules[0])
            cores = buffers.cores[layer, first : first + len(modules)]
            add_cores(y, linear, buffers.lefts[modules][layer], cores, cored)
        if paired := self.pair_modules.intersection(modules):
            ranks, scales = buffers.ranks[: self.rows, : self.most], buffers.scales[: self.rows, : self.most]
            a, b = (side[layer] for side in buffers.pool.fused[modules])
            add_pairs(y, linear, x, a, b, ranks, scales, buffers.counts[: self.rows], paired)
        return linear.parts(y)


@dataclass(frozen=True, eq=False)
class TokensDelta:
    """The rows of a flat batch: all ranks in use as one product, in which each token has its own scales."""

    buffers: DeltaBuffers
    row_of: Tensor
    core_modules: frozenset[str]
    pair_modules: frozenset[str]
    used: Tensor
    """[ranks] rows of the stacks."""
    scales: Tensor
    """[tokens, ranks]."""

    def apply(self, layer: int, linear: Linear, x: Tensor) -> Sequence[Tensor]:
        """See `Delta`."""
        buffers, modules = self.buffers, linear.modules
        cored = self.core_modules.intersection(modules)
        y = linear(x, bases=bool(cored))
        parts = [*linear.parts(y)]
        lefts = torch.split(buffers.lefts[modules][layer], linear.sizes) if cored else ()
        for place, module in enumerate(modules):
            if module in cored:
                core = buffers.cores[layer, MODULES.index(module)][self.row_of]
                read = linear.read_by_basis(y, place)
                parts[place] = parts[place] + (read[:, None] @ core)[:, 0] @ lefts[place].T
            if module in self.pair_modules:
                a, b = buffers.pool.a[module][layer][self.used], buffers.pool.b[module][layer][self.used]
                parts[place] = add_ranks(parts[place], x, a, b, self.scales)
        return parts
