"""The forward pass in torch: for GPUs, and the reference for the native one.

Prompts and tokens that decode are one flat batch. On CUDA a step that only decodes is one captured graph, for each number of rows
(rounded up) and set of adapted modules: the host writes token ids, positions and block tables into it, and reads one token a row.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from services.executor.adapters.mixture import Bases, Delta, LoadedAdapter, padded_bases
from services.executor.backends.port import BLOCK_TOKENS, Batch
from services.executor.backends.torch.deltas import DeltaBuffers, RowsDelta
from services.executor.backends.torch.kernels import PagedAttention
from services.executor.backends.torch.model import PLAIN, Attention, Between, Llama
from services.executor.backends.torch.ranks import RankPool, TorchMixture

MAX_GRAPHS = 64
"""Captured at a time; the least recently used goes. A graph keeps the memory of one step's activations."""


class TorchBackend:
    """`Backend` on any torch device.

    Torch chooses its kernels by the size of a batch, so a row's logits may differ in the last bits between batches. `fused` takes the
    Triton kernels for steps that only decode: by default on CUDA.
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
        self._pool = RankPool(model.config, slot_bytes, model.dtype, model.device)
        self.max_rank = self._pool.ranks  # whole ranks, whatever modules an adapter has
        self._bases = bases
        self._adding = threading.Lock()
        self._deltas = DeltaBuffers(self._pool, model.config, rows, model.dtype, model.device)
        # One block more than are given out: rows that only fill a graph up write there.
        shape = (model.config.layers, 2, blocks + 1, BLOCK_TOKENS, model.config.kv_heads, model.config.head_dim)
        self._cache = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self._between = _fused_between() if self._fused else PLAIN
        self._decode = _DecodeStep(self, rows, -(-self.context // BLOCK_TOKENS)) if self._fused else None

    def slot_bytes_of(self, adapter: LoadedAdapter) -> int:
        """See `Device`."""
        return self._pool.bytes_of(adapter)

    def add_bases(self) -> None:
        """See `Device`."""
        with self._adding, self._on_device():
            if not self._deltas.lefts:
                padded = padded_bases(self._bases)
                self.model.set_bases(padded)
                self._deltas.set_bases(padded)  # the last: batches with such adapters follow

    def place(self, key: str, adapter: LoadedAdapter) -> None:
        """See `Device`."""
        if adapter.cores:
            self.add_bases()
        with self._on_device():
            self._pool.place(key, adapter)

    def read(self, key: str) -> LoadedAdapter:
        """See `Device`."""
        with self._on_device():
            return self._pool.read(key)

    def evict(self, key: str) -> None:
        """See `Device`."""
        self._pool.evict(key)

    def mix(self, weighted: Sequence[tuple[str, float]]) -> TorchMixture:
        """See `Backend`."""
        with self._on_device():
            return self._pool.mix(weighted)

    @torch.inference_mode()
    def forward(self, batch: Batch[TorchMixture]) -> tuple[Tensor, list[int]]:
        """See `Backend`. At most `rows` sequences.

        Raises:
            ValueError: more sequences.
        """
        if len(batch.mixtures) > self._rows:
            raise ValueError(f"{len(batch.mixtures)} sequences are over {self._rows} rows")
        with self._on_device():
            if self._decode is not None and batch.decodes:
                return self._decode.run(batch)
            device = self.model.device
            tokens, row_of, outputs = (torch.from_numpy(part).long().to(device) for part in (batch.tokens, batch.sequence, batch.outputs))
            self._deltas.set(batch.mixtures)
            attention = PagedAttention(self.model, self._cache, batch)
            logits, greedy = self.step(tokens, self._deltas.of_tokens(row_of), attention, outputs)
            return logits, greedy.tolist()

    def step(self, tokens: Tensor, delta: Delta | None, attention: Attention, outputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [outputs, vocabulary] and arg max of a flat batch; without `outputs`, of every token."""
        hidden = self.model.hidden(tokens, delta, attention, self._between)
        logits = self.model.logits(hidden if outputs is None else hidden[outputs])
        return logits, logits.argmax(-1)

    def _on_device(self) -> AbstractContextManager[object]:
        """The calling thread's current device is the model's: streams and kernels go by it."""
        return torch.cuda.device(self.model.device) if self.model.device.type == "cuda" else nullcontext()


def _fused_between() -> Between:
    from services.executor.backends.torch.triton_kernels import FUSED

    return FUSED


class _DecodeStep:
    """One token of each row by the Triton kernels; on CUDA as captured graphs.

    What changes at every step is one copy from the host to the device, into buffers that stay where they are.
    """

    def __init__(self, backend: TorchBackend, rows: int, width: int) -> None:
        self._backend, self._rows = backend, rows
        device = backend.model.device
        self._host = torch.zeros(rows * (3 + width), dtype=torch.int32, pin_memory=device.type == "cuda")
        self._device = torch.zeros_like(self._host, device=device)
        parts = [[*part[: 3 * rows].view(3, rows), part[3 * rows :].view(rows, width)] for part in (self._host, self._device)]
        self._writes = [part.numpy() for part in parts[0]]
        self._ids, self._positions, self._slots, self._tables = parts[1]
        self._captures = device.type == "cuda"
        self._memory = torch.cuda.graph_pool_handle() if self._captures else None
        self._warming: torch.cuda.Stream | None = None
        self._graphs: OrderedDict[tuple[int, RowsDelta | None], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = OrderedDict()
        self._nothing = TorchMixture()

    def run(self, batch: Batch[TorchMixture]) -> tuple[Tensor, list[int]]:
        """Logits [outputs, vocabulary] and arg max."""
        count = len(batch.tokens)
        rows = min(1 << (count - 1).bit_length(), self._rows)
        self._write(batch, rows)
        self._backend._deltas.set([*batch.mixtures, *[self._nothing] * (rows - count)])
        delta = self._backend._deltas.of_rows()
        logits, greedy = self._graph(rows, delta) if self._captures else self._step(rows, delta)
        if len(batch.outputs) < count:
            wanted = torch.from_numpy(batch.outputs).long().to(logits.device)
            logits, greedy = logits[wanted], greedy[wanted]
            return logits, greedy.tolist()
        return logits[:count], greedy[:count].tolist()

    def _write(self, batch: Batch[TorchMixture], rows: int) -> None:
        """Rows after the batch's read and write the filler block at position 0."""
        count, width = batch.tables.shape
        ids, positions, slots, tables = self._writes
        ids[:count], positions[:count], slots[:count] = batch.tokens, batch.positions, batch.cache_slots
        tables[:count, :width] = batch.tables
        filler = self._backend.blocks
        ids[count:rows], positions[count:rows], slots[count:rows], tables[count:rows, 0] = 0, 0, filler * BLOCK_TOKENS, filler
        self._device.copy_(self._host, non_blocking=True)

    def _step(self, rows: int, delta: RowsDelta | None) -> tuple[Tensor, Tensor]:
        """Reads nothing that the host may change but the buffers: so it can be captured."""
        from services.executor.backends.torch.triton_kernels import FusedAttention

        backend = self._backend
        attention = FusedAttention(backend.model, backend._cache, self._slots[:rows], self._tables[:rows], self._positions[:rows])
        return backend.step(self._ids[:rows], delta, attention)

    def _graph(self, rows: int, delta: RowsDelta | None) -> tuple[Tensor, Tensor]:
        key = (rows, delta)
        if key not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._captured(rows, delta)
        self._graphs.move_to_end(key)
        graph, logits, greedy = self._graphs[key]
        graph.replay()
        return logits, greedy

    def _captured(self, rows: int, delta: RowsDelta | None) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """A graph of one step and where it leaves its results. Kernels are compiled and chosen in runs before it, beside the main stream.

        All graphs share their memory: one runs at a time, and its results are read before the next.
        """
        if self._warming is None:  # one for all graphs: the libraries keep a workspace for each stream
            self._warming = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side = self._warming
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._step(rows, delta)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Adapters are placed from other threads meanwhile: only this thread's work is captured, and only it must not synchronise.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            logits, greedy = self._step(rows, delta)
        return graph, logits, greedy
