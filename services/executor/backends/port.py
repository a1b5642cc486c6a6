"""The port between the engine and the arithmetic: one forward pass over a batch in which every sequence has its own mixture.

Two implementations, held to one contract test: `torch.backend` (any device) and `native.backend` (CPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.executor.adapters.device import Device
from services.executor.models.config import ModelConfig

BLOCK_TOKENS = 16
"""Tokens in a block of the key/value cache."""
MixtureT = TypeVar("MixtureT")
"""What a backend makes of a weighted set of adapters; nobody else looks into it."""
Indices = NDArray[np.int32]


@dataclass(frozen=True)
class Chunk(Generic[MixtureT]):
    """Consecutive new tokens of one sequence: a piece of its prompt, or the one token it decodes."""

    tokens: Sequence[int]
    start: int
    """Position of the first of them; everything before it is in the cache."""
    blocks: Sequence[int]
    """The sequence's cache blocks in order of position, enough for start + len(tokens)."""
    mixture: MixtureT
    outputs: int
    """How many of the last tokens' next-token logits are wanted."""


@dataclass(frozen=True)
class Batch(Generic[MixtureT]):
    """The chunks of one step, token by token and without padding; every index is made here, once for all layers."""

    tokens: Indices
    """[tokens] ids."""
    positions: Indices
    """[tokens] in their sequences."""
    cache_slots: Indices
    """[tokens] where their keys and values go: block * BLOCK_TOKENS + place in it."""
    bounds: Indices
    """[sequences + 1]: sequence i has the tokens bounds[i] to bounds[i + 1]."""
    sequence: Indices
    """[tokens] which one each is of."""
    tables: Indices
    """[sequences, most blocks]: each one's blocks up to its last new token, then zeros."""
    mixtures: tuple[MixtureT, ...]
    """Each sequence's."""
    outputs: Indices
    """Tokens whose next-token logits are wanted."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk[MixtureT]]) -> Batch[MixtureT]:
        """Side by side, in order."""
        counts = np.array([len(chunk.tokens) for chunk in chunks])
        starts = np.array([chunk.start for chunk in chunks])
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        sequence = np.repeat(np.arange(len(chunks), dtype=np.int32), counts)
        positions = (np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], counts)).astype(np.int32)
        used = (starts + counts - 1) // BLOCK_TOKENS + 1
        tables = np.zeros((len(chunks), used.max()), np.int32)
        for row, chunk in enumerate(chunks):
            tables[row, : used[row]] = chunk.blocks[: used[row]]
        return cls(
            tokens=np.concatenate([np.asarray(chunk.tokens, np.int32) for chunk in chunks]),
            positions=positions,
            cache_slots=tables[sequence, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS,
            bounds=bounds,
            sequence=sequence,
            tables=tables,
            mixtures=tuple(chunk.mixture for chunk in chunks),
            outputs=np.concatenate([np.arange(end - c.outputs, end) for c, end in zip(chunks, bounds[1:], strict=True)]).astype(np.int32),
        )

    @property
    def decodes(self) -> bool:
        """Whether every sequence has one token."""
        return len(self.tokens) == len(self.mixtures)


class Backend(Device, Protocol[MixtureT]):
    """Owns the base model's weights and the key/value cache, both fixed at start."""

    config: ModelConfig
    fingerprint: str
    dtype: torch.dtype
    context: int
    blocks: int
    max_rank: int
    """Highest rank of a `lora` adapter for which there is room."""

    def mix(self, weighted: Sequence[tuple[str, float]]) -> MixtureT:
        """sum_i w_i dW_i of the adapters in slots, by their keys. Good until one of them is evicted."""

    def forward(self, batch: Batch[MixtureT]) -> tuple[Tensor, list[int]]:
        """Logits [outputs, vocabulary] float32 on the CPU or device, and the arg max of each (lowest id of equals).

        The logits are good until the next call.

        A sequence's logits do not depend on which others are in the call: to the bit on the native backend, to the dtype's precision
        on torch.
        """


AnyBackend: TypeAlias = Backend[Any]
"""For those who only hand its mixtures back to it."""
