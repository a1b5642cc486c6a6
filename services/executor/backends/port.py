"""The port between the engine and the arithmetic: one forward pass over a batch in which every sequence has its own mixture.

Two implementations, held to one contract test: `torch_backend` (any device) and `native.backend` (CPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from services.executor.adapters.device import Device
from services.executor.adapters.mixture import LoadedAdapter, Mixture
from services.executor.models.config import ModelConfig

BLOCK_TOKENS = 16
"""Tokens in a block of the key/value cache."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive new tokens of one sequence: a piece of its prompt, or the one token it decodes."""

    tokens: Sequence[int]
    start: int
    """Position of the first of them; everything before it is in the cache."""
    blocks: Sequence[int]
    """The sequence's cache blocks in order of position, enough for start + len(tokens)."""
    mixture: Mixture
    outputs: int
    """How many of the last tokens' next-token logits are wanted."""


class Backend(Device, Protocol):
    """Owns the base model's weights and the key/value cache, both fixed at start."""

    config: ModelConfig
    fingerprint: str
    dtype: torch.dtype
    context: int
    blocks: int

    def mix(self, weighted: Sequence[tuple[LoadedAdapter, float]]) -> Mixture:
        """sum_i w_i dW_i of placed adapters, in the form that `forward` reads. It keeps what it needs of the adapters alive."""

    def forward(self, chunks: Sequence[Chunk]) -> tuple[Tensor, list[int]]:
        """Logits [outputs of all chunks, vocabulary] float32 on the CPU or device, and the arg max of each (lowest id of equals).

        The logits are good until the next call.

        A sequence's logits do not depend on which other chunks are in the call: to the bit on the native backend, to the dtype's
        precision on torch.
        """
