"""The forward pass of Llama and its relatives in plain torch, with one hook: every linear module may add a per-token adapter delta.

Where a family differs (see `models.families`), it reads that from the `ModelConfig`. The reference: training differentiates it, GPUs serve
with it, and the native forward pass is held equal to it. It is itself held equal to `transformers` by `tests/contract/test_backend.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from services.executor.adapters.mixture import Delta
from services.executor.backends.native.library import AVX512_BF16, processor_variants
from services.executor.models.base_model import MODULES, fingerprint
from services.executor.models.config import LayerAttention, ModelConfig, module_path
from services.executor.models.weights import EMBEDDING, FINAL_NORM, HEAD, load_weights, norm_names

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}


class Attention(Protocol):
    """How tokens see those before them, and where the keys and values of those are."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What queries [tokens, heads, head_dim] read, in their shape; new keys and values are [tokens, kv_heads, head_dim]."""


def masked_attention(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor, how: LayerAttention) -> Tensor:
    """Attention of queries [rows, tokens, heads, head_dim] to keys and values [rows, keys, kv_heads, head_dim], where seen.

    `seen` [rows, tokens, keys] is of bool; the window is in it already.
    """
    q, k, v = (part.transpose(1, 2) for part in (queries, keys, values))
    if not how.soft_cap:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], scale=how.scale, enable_gqa=True).transpose(1, 2)
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    scores = soft_capped((q @ k.transpose(2, 3)).float() * how.scale, how.soft_cap).masked_fill(~seen[:, None], float("-inf"))
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def soft_capped(x: Tensor, cap: float) -> Tensor:
    """Near x where that is small against the cap, and never over it; 0 is no cap."""
    return torch.tanh(x / cap) * cap if cap else x


def seen_from(positions: Tensor, at: Tensor, window: int) -> Tensor:
    """Whether a token at positions [rows, tokens] sees the key at [rows, keys]: not later ones, nor those out of its window (0: none)."""
    seen = at[:, None, :] <= positions[:, :, None]
    return seen & (at[:, None, :] > positions[:, :, None] - window) if window else seen


class WholeTexts:
    """`Attention` within texts of one length that lie one after the other, with nothing before them."""

    def __init__(self, texts: int, length: int, layers: Sequence[LayerAttention], device: torch.device) -> None:
        self._texts, self._length, self._layers = texts, length, layers
        at = torch.arange(length, device=device)[None]
        self._seen = {how.window: seen_from(at, at, how.window) for how in set(layers)}

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        q, k, v = (part.view(self._texts, self._length, *part.shape[1:]) for part in (queries, keys, values))
        how = self._layers[layer]
        return masked_attention(q, k, v, self._seen[how.window], how).flatten(0, 1)


@dataclass(frozen=True)
class LayerWeights:
    """One layer's tensors, in the model's dtype; norms by what they do (see `weights.norm_names`)."""

    linears: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]


class Llama:
    """A frozen base model. Not a `Module`: nothing in it trains."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], name: str) -> None:
        self.config, self.fingerprint = config, name
        self.embedding = weights[EMBEDDING]
        self.head = weights.get(HEAD, self.embedding)
        self.final_norm = _norm(weights[FINAL_NORM], config)
        self.layers = [_layer(weights, layer, config) for layer in range(config.layers)]
        self._activation = _ACTIVATIONS[config.activation]
        self._embedding_scale = torch.tensor(config.embedding_scale).to(self.embedding)  # rounded, as it was in training
        self._angles = {
            rope: [torch.cat((part, part), -1).to(self.embedding) for part in rope.table(config.context)]
            for rope in set(config.ropes)
            if rope is not None
        }

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: str = "cpu") -> Llama:
        """Load a model folder onto `device` in `dtype`; its fingerprint is taken from the files, before the cast."""
        weights = {key: value.to(device, dtype) for key, value in load_weights(folder).items()}
        return cls(ModelConfig.from_folder(folder), weights, fingerprint(folder))

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    def hidden(self, tokens: Tensor, positions: Tensor, delta: Delta | None, attention: Attention) -> Tensor:
        """Final normed hidden states [tokens, hidden] of token ids and positions [tokens], of any number of texts."""
        config = self.config
        angles = {rope: [part[positions].unsqueeze(1) for part in parts] for rope, parts in self._angles.items()}
        stream = F.embedding(tokens, self.embedding)
        if config.embedding_scale != 1:
            stream = stream * self._embedding_scale

        for index, (layer, rope) in enumerate(zip(self.layers, config.ropes, strict=True)):

            def linear(module: str, x: Tensor, index: int = index, layer: LayerWeights = layer) -> Tensor:
                y = F.linear(x, layer.linears[module], layer.biases.get(module))
                return y if delta is None else delta.add(index, module, x, y)

            def normed(x: Tensor, norm: str, layer: LayerWeights = layer) -> Tensor:
                return _normed(x, layer.norms[norm], config.norm_eps) if norm in layer.norms else x

            def added(y: Tensor, norm: str, stream: Tensor) -> Tensor:
                y = normed(y, norm)
                return stream + (y if config.residual_scale == 1 else y * config.residual_scale)

            x = normed(stream, "attention")
            queries, keys, values = (linear(name, x).view(len(x), -1, config.head_dim) for name in ("q_proj", "k_proj", "v_proj"))
            queries, keys = normed(queries, "query"), normed(keys, "key")
            if rope is not None:
                queries, keys = (rotate(part, *angles[rope]) for part in (queries, keys))
            stream = added(linear("o_proj", attention.attend(index, queries, keys, values).flatten(1)), "attention_post", stream)
            x = normed(stream, "mlp")
            stream = added(linear("down_proj", self._activation(linear("gate_proj", x)) * linear("up_proj", x)), "mlp_post", stream)
        return _normed(stream, self.final_norm, config.norm_eps)

    def hidden_of_texts(self, tokens: Tensor, delta: Delta | None = None) -> Tensor:
        """`hidden` [texts, length, hidden] of whole texts [texts, length], each from position 0 on."""
        texts, length = tokens.shape
        positions = torch.arange(length, device=tokens.device).repeat(texts)
        attention = WholeTexts(texts, length, self.config.attention, tokens.device)
        return self.hidden(tokens.flatten(), positions, delta, attention).view(texts, length, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] of hidden states [..., hidden], float32."""
        logits = F.linear(hidden, self.head).float()
        if self.config.logits_scale != 1:
            logits = logits / self.config.logits_scale
        return soft_capped(logits, self.config.logits_soft_cap)


def _layer(weights: dict[str, Tensor], layer: int, config: ModelConfig) -> LayerWeights:
    paths = {module: module_path(layer, module) for module in MODULES}
    return LayerWeights(
        linears={module: weights[f"{path}.weight"] for module, path in paths.items()},
        biases={module: weights[f"{path}.bias"] for module, path in paths.items() if module in config.biased},
        norms={norm: _norm(weights[name], config) for norm, name in norm_names(config, layer).items()},
    )


def _norm(weight: Tensor, config: ModelConfig) -> Tensor:
    """A norm's factors; in float32 where they are offset from what the file has, which has digits that the sum would lose."""
    return weight.float() + config.family.norm_offset if config.family.norm_offset else weight


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of the leading dimensions, in the half-split layout of Llama checkpoints."""
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    turned = turned * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((turned, kept), -1) if kept.shape[-1] else turned


def training_dtype(device: str) -> torch.dtype:
    """What to compute in: bfloat16 where the device multiplies it, else float32.

    On a CPU without such a unit torch multiplies bfloat16 number by number: a step takes minutes instead of a second.
    """
    return torch.bfloat16 if device != "cpu" or AVX512_BF16 in processor_variants() else torch.float32
