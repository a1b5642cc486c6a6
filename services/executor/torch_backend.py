"""The forward pass in torch: for GPUs, and the reference for the native one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.executor.backend import BLOCK_TOKENS, Chunk
from services.executor.mixture import Bases, BatchMixture, LoadedAdapter, Mixture, padded_bases
from services.executor.model import Llama


class TorchBackend:
    """`Backend` on any torch device. Chunks of one token run as one batch; longer ones run one by one.

    Torch chooses its kernels by the size of a batch, so a row's logits may differ in the last bits between batches.
    """

    def __init__(self, model: Llama, bases: Bases, *, blocks: int, context: int) -> None:
        self.model, self.config, self.fingerprint = model, model.config, model.fingerprint
        self.blocks, self.context = blocks, min(context, model.config.context)
        self._bases = {
            path: (left.to(model.device, model.dtype), right.to(model.device, model.dtype))
            for path, (left, right) in padded_bases(bases).items()
        }
        shape = (model.config.layers, blocks, BLOCK_TOKENS, model.config.kv_heads, model.config.head_dim)
        self._cache = torch.zeros((2, *shape), dtype=model.dtype, device=model.device)
        self._stacked: tuple[tuple[Mixture, ...], BatchMixture | None] = ((), None)

    def mix(self, weighted: Sequence[tuple[LoadedAdapter, float]]) -> Mixture:
        """See `Backend`."""
        return Mixture.of(weighted, self.config)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[int]]:
        """See `Backend`."""
        single = [index for index, chunk in enumerate(chunks) if len(chunk.tokens) == 1]
        groups = [single] if single else []
        groups += [[index] for index, chunk in enumerate(chunks) if len(chunk.tokens) > 1]
        hidden: dict[int, Tensor] = {}
        for group in groups:
            for index, row in zip(group, self._hidden([chunks[index] for index in group]), strict=True):
                hidden[index] = row[row.shape[0] - chunks[index].outputs :]
        logits = self.model.logits(torch.cat([hidden[index] for index in range(len(chunks))]))
        return logits, logits.argmax(-1).tolist()

    def _hidden(self, chunks: Sequence[Chunk]) -> Tensor:
        device = self.model.device
        tokens = torch.tensor([list(chunk.tokens) for chunk in chunks], device=device)
        start = torch.tensor([[chunk.start] for chunk in chunks], device=device)
        positions = start + torch.arange(tokens.shape[1], device=device)
        used = [(chunk.start + len(chunk.tokens) - 1) // BLOCK_TOKENS + 1 for chunk in chunks]
        tables = torch.zeros(len(chunks), max(used), dtype=torch.long)
        for row, chunk in enumerate(chunks):
            tables[row, : used[row]] = torch.tensor(chunk.blocks[: used[row]])
        return self.model.hidden(tokens, positions, self._delta(chunks), _Paged(self._cache, tables.to(device), positions))

    def _delta(self, chunks: Sequence[Chunk]) -> BatchMixture | None:
        mixtures = tuple(chunk.mixture for chunk in chunks)
        if not any(mixture.core_sites or mixture.pairs for mixture in mixtures):
            return None
        if self._stacked[0] != mixtures:
            self._stacked = (mixtures, BatchMixture(mixtures, self._bases, self.model.dtype))
        return self._stacked[1]


class _Paged:
    """Keys and values in blocks of the cache: new ones are written in their place, then each row's are gathered."""

    def __init__(self, cache: Tensor, tables: Tensor, positions: Tensor) -> None:
        self._cache, self._tables = cache, tables
        self._block = tables.gather(1, positions // BLOCK_TOKENS)
        self._offset = positions % BLOCK_TOKENS
        self._at = torch.arange(tables.shape[1] * BLOCK_TOKENS, device=tables.device).expand(tables.shape[0], -1)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `model.KeyValues`."""
        gathered: list[Tensor] = []
        for part, new in zip(self._cache[:, layer], (keys, values), strict=True):
            part[self._block, self._offset] = new.transpose(1, 2)
            rows = part[self._tables].flatten(1, 2)  # [rows, keys, kv_heads, head_dim]
            gathered.append(rows.transpose(1, 2))
        return gathered[0], gathered[1], self._at
