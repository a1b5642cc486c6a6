"""The forward pass in torch: for GPUs, and the reference for the native one.

On CUDA a decode step is one captured graph, for each number of rows (rounded up) and set of adapted modules: the host writes token ids,
positions and block tables into it, and reads one token a row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from services.executor.adapters.mixture import Bases, LoadedAdapter, Mixture, padded_bases
from services.executor.backends.port import BLOCK_TOKENS, Chunk
from services.executor.backends.torch.kernels import paged_attention
from services.executor.backends.torch.model import Llama
from services.executor.backends.torch.ranks import BatchDelta, PlacedAdapter, RankPool, RowsDelta, mix

MAX_GRAPHS = 64
"""Captured at a time; the least recently used goes. A graph keeps the memory of one step's activations."""


class TorchBackend:
    """`Backend` on any torch device. Chunks of one token run as one batch; longer ones run one by one.

    Torch chooses its kernels by the size of a batch, so a row's logits may differ in the last bits between batches. `fused` takes the
    Triton kernels: by default on CUDA.
    """

    def __init__(
        self,
        model: Llama,
        bases: Bases,
        *,
        blocks: int,
        context: int,
        rows: int = 16,
        slot_bytes: int = 256 * 1024 * 1024,
        fused: bool | None = None,
    ) -> None:
        self.model, self.config, self.fingerprint, self.dtype = model, model.config, model.fingerprint, model.dtype
        self.blocks, self.context, self._rows = blocks, min(context, model.config.context), rows
        self._fused = model.device.type == "cuda" if fused is None else fused
        self._captures = self._fused and model.device.type == "cuda"
        on_device = {
            path: (left.to(model.device, model.dtype), right.to(model.device, model.dtype))
            for path, (left, right) in padded_bases(bases).items()
        }
        self._pool = RankPool(model.config, slot_bytes, model.dtype, model.device)
        self._delta = BatchDelta(self._pool, on_device, model.config, rows, model.dtype, model.device)
        # One block more than are given out: rows that only fill a graph up write there.
        shape = (model.config.layers, 2, blocks + 1, BLOCK_TOKENS, model.config.kv_heads, model.config.head_dim)
        self._cache = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self._step = _StepInput(rows, -(-self.context // BLOCK_TOKENS), blocks, model.device)
        self._nothing = mix([], model.config)
        self._graph_memory = torch.cuda.graph_pool_handle() if self._captures else None
        self._warming: torch.cuda.Stream | None = None
        self._graphs: OrderedDict[RowsDelta, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = OrderedDict()

    def slot_bytes_of(self, adapter: LoadedAdapter) -> int:
        """See `Backend`."""
        return self._pool.bytes_of(adapter)

    def place(self, adapter: LoadedAdapter) -> LoadedAdapter:
        """See `Backend`."""
        with self._on_device():
            return self._pool.place(adapter)

    def evict(self, adapter: LoadedAdapter) -> None:
        """See `Backend`."""
        assert isinstance(adapter, PlacedAdapter)
        self._pool.evict(adapter)

    def mix(self, weighted: Sequence[tuple[LoadedAdapter, float]]) -> Mixture:
        """See `Backend`."""
        with self._on_device():
            return mix(weighted, self.config)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[int]]:
        """See `Backend`."""
        with self._on_device():
            return self._forward(chunks)

    def _forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[int]]:
        logits: dict[int, Tensor] = {}
        greedy: dict[int, list[int]] = {}
        for index, chunk in enumerate(chunks):
            if len(chunk.tokens) > 1:
                logits[index] = self._read(chunk)
                greedy[index] = logits[index].argmax(-1).tolist()
        single = [index for index, chunk in enumerate(chunks) if len(chunk.tokens) == 1]
        for start in range(0, len(single), self._rows):
            group = single[start : start + self._rows]
            out, best = self._decode([chunks[index] for index in group])
            if len(single) > self._rows:
                out = out.clone()  # the next group may be the same graph
            for row, index in enumerate(group):
                logits[index] = out[row : row + chunks[index].outputs]
                greedy[index] = best[row : row + chunks[index].outputs]
        order = range(len(chunks))
        return torch.cat([logits[index] for index in order]), [token for index in order for token in greedy[index]]

    def delta(self, mixtures: Sequence[Mixture]) -> RowsDelta:
        """What the mixtures add, row by row, until the next call."""
        self._delta.set(mixtures)
        return self._delta.of(len(mixtures), fused=self._fused)

    def _read(self, chunk: Chunk) -> Tensor:
        """Logits [outputs, vocabulary] of several tokens of one sequence."""
        device, count = self.model.device, len(chunk.tokens)
        positions = torch.arange(chunk.start, chunk.start + count, device=device)[None]
        table = torch.tensor(chunk.blocks[: (chunk.start + count - 1) // BLOCK_TOKENS + 1], device=device)
        attention = _Paged(self._cache, table[None], positions, self.config.windows, self._fused)
        tokens = torch.tensor([list(chunk.tokens)], device=device)
        hidden = self.model.hidden(tokens, positions, self._useful(self.delta([chunk.mixture])), attention)
        return self.model.logits(hidden[0, count - chunk.outputs :])

    def _decode(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[int]]:
        """Logits [rows, vocabulary] and arg max of one token of each sequence."""
        rows = min(1 << (len(chunks) - 1).bit_length(), self._rows) if self._fused else len(chunks)
        delta = self.delta([chunk.mixture for chunk in chunks] + [self._nothing] * (rows - len(chunks)))
        self._step.write(chunks, rows)
        logits, greedy = self._graph(delta) if self._captures else self._run(delta)
        return logits[: len(chunks)], greedy[: len(chunks)].tolist()

    def _run(self, delta: RowsDelta) -> tuple[Tensor, Tensor]:
        """One step of the first `delta.rows` rows. Reads nothing that the host may change but the buffers: so it can be captured."""
        step = self._step
        positions, tables = step.positions[: delta.rows, None], step.tables[: delta.rows]
        if not self._fused:  # which would copy what the longest row does not use
            tables = tables[:, : step.used]
        attention = _Paged(self._cache, tables, positions, self.config.windows, self._fused)
        hidden = self.model.hidden(step.ids[: delta.rows, None], positions, self._useful(delta), attention)
        logits = self.model.logits(hidden[:, 0])
        return logits, logits.argmax(-1)

    def _graph(self, delta: RowsDelta) -> tuple[Tensor, Tensor]:
        if delta not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[delta] = self._captured(delta)
        self._graphs.move_to_end(delta)
        graph, logits, greedy = self._graphs[delta]
        graph.replay()
        return logits, greedy

    def _captured(self, delta: RowsDelta) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """A graph of one step and where it leaves its results. Kernels are compiled and chosen in runs before it, beside the main stream.

        All graphs share their memory: one runs at a time, and its results are read before the next.
        """
        if self._warming is None:  # one for all graphs: the libraries keep a workspace for each stream
            self._warming = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side = self._warming
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._run(delta)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Adapters are placed from other threads meanwhile: only this thread's work is captured, and only it must not synchronise.
        with torch.cuda.graph(graph, pool=self._graph_memory, capture_error_mode="thread_local"):
            logits, greedy = self._run(delta)
        return graph, logits, greedy

    def _on_device(self) -> AbstractContextManager[object]:
        """The calling thread's current device is the model's: streams and kernels go by it."""
        return torch.cuda.device(self.model.device) if self.model.device.type == "cuda" else nullcontext()

    @staticmethod
    def _useful(delta: RowsDelta) -> RowsDelta | None:
        return delta if delta.core_modules or delta.pair_modules else None


class _StepInput:
    """What changes at every step: one copy from the host to the device, into buffers that stay where they are."""

    def __init__(self, rows: int, width: int, filler_block: int, device: torch.device) -> None:
        self._host = torch.zeros(rows * (2 + width), dtype=torch.int32, pin_memory=device.type == "cuda")
        self._device = torch.zeros_like(self._host, device=device)
        self._filler = filler_block
        parts = [[part[:rows], part[rows : 2 * rows], part[2 * rows :].view(rows, width)] for part in (self._host, self._device)]
        self._writes = [part.numpy() for part in parts[0]]
        self.ids, self.positions, self.tables = parts[1]
        self.used = 0
        """Blocks of the longest row."""

    def write(self, chunks: Sequence[Chunk], rows: int) -> None:
        """Row i is chunk i; rows after the chunks read and write the filler block at position 0."""
        ids, positions, tables = self._writes
        self.used = 1
        for row, chunk in enumerate(chunks):
            used = chunk.start // BLOCK_TOKENS + 1
            ids[row], positions[row] = chunk.tokens[0], chunk.start
            tables[row, :used] = chunk.blocks[:used]
            self.used = max(self.used, used)
        ids[len(chunks) : rows], positions[len(chunks) : rows], tables[len(chunks) : rows, 0] = 0, 0, self._filler
        self._device.copy_(self._host, non_blocking=True)


@dataclass(frozen=True)
class _Paged:
    """`Attention` of each row's tokens to the row's blocks: new keys and values go to their place in them first."""

    cache: Tensor
    tables: Tensor
    positions: Tensor
    windows: tuple[int, ...]
    fused: bool

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `model.Attention`."""
        block = self.tables.gather(1, (self.positions // BLOCK_TOKENS).long())
        for part, new in zip(self.cache[layer], (keys, values), strict=True):
            part[block, self.positions % BLOCK_TOKENS] = new.transpose(1, 2)
        return paged_attention(queries, self.cache[layer], self.tables, self.positions, self.windows[layer], fused=self.fused)
