"""The native forward pass as a `Backend`: packs the weights, keeps the cache, and hands pointers to `forward.cpp`."""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from services.executor.adapters.mixture import Bases, LoadedAdapter, mixed_cores, padded_bases
from services.executor.backends.native.library import AMX, Flags, loaded, processor_variants
from services.executor.backends.port import BLOCK_TOKENS, Batch
from services.executor.models.base_model import BASES_RANK, MODULES
from services.executor.models.config import ModelConfig, module_path
from services.executor.models.weights import EMBEDDING, FINAL_NORM, HEAD, norm_names
from smoa.errors import FailedPrecondition

_PANEL, _MATRIX_INPUTS = 32, 32
_FUNCTIONS = {torch.bfloat16: "smoa_forward_bfloat16", torch.float32: "smoa_forward_float32"}
_MIXTURE = np.dtype([("core", "u8"), ("first", "u8"), ("pair", "u8")])
_PAIR = np.dtype([("a", "u8"), ("b", "u8"), ("weight", "f4"), ("rank", "i4")])


class _Linear(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "left", "right")),
        *((name, ctypes.c_int32) for name in ("outputs", "inputs")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("linear", _Linear * len(MODULES)),
        *((name, ctypes.c_void_p) for name in ("attention_norm", "mlp_norm", "attention_post_norm", "mlp_post_norm")),
        *((name, ctypes.c_void_p) for name in ("query_norm", "key_norm", "cosine", "sine")),
        ("window", ctypes.c_int64),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("layer", ctypes.POINTER(_Layer)),
        ("head", _Linear),
        *((name, ctypes.c_void_p) for name in ("embedding", "final_norm")),
        *((name, ctypes.c_int32) for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary")),
        *((name, ctypes.c_int32) for name in ("rotary", "gelu", "apart")),
        *((name, ctypes.c_float) for name in ("epsilon", "scale", "soft_cap", "logits_soft_cap")),
        *((name, ctypes.c_float) for name in ("embedding_scale", "residual_scale", "logits_scale")),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("id", "position", "sequence", "sequences", "output", "logits", "greedy", "cache")),
        ("blocks", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("tokens", "outputs", "context")),
    ]


@dataclass(frozen=True, eq=False)
class NativeMixture:
    """One request's adapters as the C structs want them. Read-only, so any number of sequences may share it."""

    record: NDArray[np.void]
    kept: tuple[object, ...]
    """What the record points to."""


class NativeBackend:
    """`Backend` on the CPU. A sequence's logits are the same bits alone, in any batch, and however its prompt is chunked."""

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        name: str,
        bases: Bases,
        *,
        dtype: torch.dtype,
        blocks: int,
        context: int,
        threads: int = 0,
        max_step_tokens: int = 512,
        flags: Flags | None = None,
    ) -> None:
        """Packs `weights`, emptying the mapping as it goes; `bases` are not looked into before an adapter needs them. `flags` asks for
        another variant than the processor's best.

        Raises:
            FailedPrecondition: a dtype or shape that the kernels do not have, or no compiler (see `library`).
        """
        if dtype not in _FUNCTIONS or config.head_dim % 16 or config.hidden % 2 or config.intermediate % 2:
            raise FailedPrecondition(
                f"backend: native needs bfloat16 or float32, a head dimension in sixteens and even widths, not {dtype} with "
                f"{config.head_dim}, {config.hidden} and {config.intermediate}; set SMOA_EXECUTOR_BACKEND=torch"
            )
        if flags is None:
            uneven = (
                config.hidden % _MATRIX_INPUTS or config.intermediate % _MATRIX_INPUTS or config.heads * config.head_dim % _MATRIX_INPUTS
            )
            flags = next((variant for variant in processor_variants() if not uneven or variant != AMX), None)
        library = loaded(flags)
        self._forward, self._scratch_bytes = library[_FUNCTIONS[dtype]], library["smoa_scratch_bytes"]
        self._scratch_bytes.restype = ctypes.c_int64
        library.smoa_team.restype = ctypes.c_void_p
        self.config, self.fingerprint, self.dtype = config, name, dtype
        self.blocks, self.context, self.max_step_tokens = blocks, min(context, config.context), max_step_tokens
        self.max_rank = sys.maxsize  # an adapter takes what its pairs do
        self._kept: list[object] = []  # what the structs point to
        self._placed: dict[str, LoadedAdapter] = {}
        self._sites = [(layer, module) for layer in range(config.layers) for module in MODULES]
        self._bases: Bases | None = bases  # until they are packed
        self._adding = threading.Lock()
        self._layers = (_Layer * config.layers)()
        self._model = self._packed_model(weights)
        self._cache = torch.zeros(config.layers * blocks * config.kv_heads * 2 * BLOCK_TOKENS * config.head_dim, dtype=dtype)
        self._team = ctypes.c_void_p(library.smoa_team(threads or torch.get_num_threads()))
        weakref.finalize(self, library.smoa_end_team, self._team)
        most = _Batch(tokens=max_step_tokens, outputs=max_step_tokens, context=self._padded_context)
        self._logits = torch.zeros(max_step_tokens, config.vocabulary)
        self._scratch = torch.zeros(self._scratch_bytes(ctypes.byref(self._model), ctypes.byref(most), self._team), dtype=torch.uint8)

    @property
    def _padded_context(self) -> int:
        return -(-self.context // BLOCK_TOKENS) * BLOCK_TOKENS

    def slot_bytes_of(self, adapter: LoadedAdapter) -> int:
        """See `Device`."""
        return adapter.nbytes

    def add_bases(self) -> None:
        """See `Device`."""
        with self._adding:
            if self._bases is None:
                return
            linears = {module_path(layer, module): self._layers[layer].linear[MODULES.index(module)] for layer, module in self._sites}
            for path, (left, right) in padded_bases(self._bases).items():
                linear = linears[path]
                linear.right = self._pointer(self._packed(right.T, BASES_RANK))
                linear.left = self._pointer(self._packed(F.pad(left, (0, _MATRIX_INPUTS - BASES_RANK))))
            self._bases = None

    def place(self, key: str, adapter: LoadedAdapter) -> None:
        """See `Device`. The host's memory is the device's: nothing is copied."""
        if adapter.cores:
            self.add_bases()
        self._placed[key] = adapter

    def read(self, key: str) -> LoadedAdapter:
        """See `Device`. It is the one that was placed."""
        return self._placed[key]

    def evict(self, key: str) -> None:
        """See `Device`."""
        del self._placed[key]

    def mix(self, weighted: Sequence[tuple[str, float]]) -> NativeMixture:
        """See `Backend`."""
        placed = [(self._placed[key], weight) for key, weight in weighted]
        record, kept = np.zeros(1, _MIXTURE), list[object]()
        mixed = mixed_cores([(one.cores, one.layers, weight * one.scaling) for one, weight in placed], self.config)
        if mixed is not None:
            used = {(layer, module) for one, _ in placed for module in one.cores for layer in one.layers}
            base, size = mixed.data_ptr(), BASES_RANK * BASES_RANK * mixed.itemsize
            cores = np.array([base + i * size if site in used else 0 for i, site in enumerate(self._sites)], np.uint64)
            record["core"] = cores.ctypes.data
            kept += [mixed, cores]
        terms = [[(*one.pairs[site], weight * one.scaling) for one, weight in placed if site in one.pairs] for site in self._sites]
        if any(terms):
            first = np.cumsum([0, *map(len, terms)], dtype=np.int32)
            pairs = np.array([(a.data_ptr(), b.data_ptr(), weight, len(a)) for some in terms for a, b, weight in some], _PAIR)
            record["first"], record["pair"] = first.ctypes.data, pairs.ctypes.data
            kept += [first, pairs, placed]
        return NativeMixture(record, tuple(kept))

    def forward(self, batch: Batch[NativeMixture]) -> tuple[Tensor, list[int]]:
        """See `Backend`. At most `max_step_tokens` tokens in all.

        Raises:
            ValueError: more tokens.
        """
        tokens = len(batch.tokens)
        if tokens > self.max_step_tokens:
            raise ValueError(f"{tokens} tokens are over {self.max_step_tokens} a step")
        blocks = batch.tables.ctypes.data + np.arange(len(batch.tables), dtype=np.uint64) * np.uint64(batch.tables.strides[0])
        records = np.array([mixture.record.ctypes.data for mixture in batch.mixtures], np.uint64)
        sequences = np.stack([records, blocks], 1)
        logits = self._logits[: len(batch.outputs)]
        greedy = np.empty(len(batch.outputs), np.int32)
        struct = _Batch(
            id=batch.tokens.ctypes.data,
            position=batch.positions.ctypes.data,
            sequence=batch.sequence.ctypes.data,
            sequences=sequences.ctypes.data,
            output=batch.outputs.ctypes.data,
            logits=logits.data_ptr(),
            greedy=greedy.ctypes.data,
            cache=self._cache.data_ptr(),
            blocks=self.blocks,
            scratch=self._scratch.data_ptr(),
            tokens=tokens,
            outputs=len(batch.outputs),
            context=self._padded_context,
        )
        self._forward(ctypes.byref(self._model), ctypes.byref(struct), self._team)
        return logits, greedy.tolist()

    def _packed_model(self, weights: dict[str, Tensor]) -> _Model:
        config = self.config
        tables = {rope: [self._pointer(part) for part in rope.table(config.context)] for rope in set(config.ropes) if rope is not None}
        (how,) = {(layer.scale, layer.soft_cap) for layer in config.attention}
        for index, layer in enumerate(self._layers):
            for number, module in enumerate(MODULES):
                path = module_path(index, module)
                layer.linear[number] = self._linear(weights.pop(f"{path}.weight"), weights.pop(f"{path}.bias", None))
            for norm, name in norm_names(config, index).items():
                setattr(layer, f"{norm}_norm", self._norm(weights.pop(name)))
            if (rope := config.ropes[index]) is not None:
                layer.cosine, layer.sine = tables[rope]
            layer.window = config.attention[index].window
        head = weights.pop(HEAD, None)
        embedding = self._linear(weights.pop(EMBEDDING))
        return _Model(
            layer=self._layers,
            head=embedding if head is None else self._linear(head),
            embedding=embedding.weight,
            final_norm=self._norm(weights.pop(FINAL_NORM)),
            layers=config.layers,
            hidden=config.hidden,
            intermediate=config.intermediate,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            vocabulary=config.vocabulary,
            rotary=max((rope.dimensions for rope in tables), default=0),
            gelu=config.activation == "gelu_pytorch_tanh",
            apart=config.family.post_norms or config.residual_scale != 1,
            epsilon=config.norm_eps,
            scale=how[0],
            soft_cap=how[1],
            logits_soft_cap=config.logits_soft_cap,
            embedding_scale=torch.tensor(config.embedding_scale, dtype=self.dtype).item(),  # rounded, as it was in training
            residual_scale=config.residual_scale,
            logits_scale=config.logits_scale,
        )

    def _linear(self, weight: Tensor, bias: Tensor | None = None) -> _Linear:
        made = _Linear(weight=self._pointer(self._packed(weight)), outputs=weight.shape[0], inputs=weight.shape[1])
        if bias is not None:
            made.bias = self._pointer(bias.float())
        return made

    def _norm(self, weight: Tensor) -> int:
        return self._pointer(weight.float() + self.config.family.norm_offset)

    def _packed(self, weight: Tensor, panel: int = _PANEL) -> Tensor:
        """[outputs, inputs] to [panels, inputs / pair, panel, pair], outputs padded with zeros."""
        pair = 2 if self.dtype is torch.bfloat16 else 1
        padded = F.pad(weight.to(self.dtype), (0, 0, 0, -weight.shape[0] % panel))
        return padded.view(-1, panel, weight.shape[1] // pair, pair).permute(0, 2, 1, 3).contiguous()

    def _pointer(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()
