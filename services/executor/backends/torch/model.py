"""Llama-family forward pass in plain torch, with one hook: every linear module may add a per-row adapter delta.

The reference: training differentiates it, GPUs serve with it, and the native forward pass is held equal to it. It is itself held equal
to `transformers` by `tests/contract/test_backend.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from services.executor.adapters.mixture import Delta
from services.executor.backends.native.library import AVX512_BF16, processor_variants
from services.executor.models.base_model import MODULES, fingerprint, load_weights
from services.executor.models.config import ModelConfig, module_path


class Attention(Protocol):
    """How tokens see those before them, and where the keys and values of those are."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What queries [tokens, heads, head_dim] read, in their shape; new keys and values are [tokens, kv_heads, head_dim]."""


def masked_attention(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Attention of queries [rows, tokens, heads, head_dim] to keys and values [rows, keys, kv_heads, head_dim], where seen.

    `seen` [rows, tokens, keys] is of bool.
    """
    q, k, v = (part.transpose(1, 2) for part in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], enable_gqa=True).transpose(1, 2)


def seen_from(positions: Tensor, at: Tensor, window: int) -> Tensor:
    """Whether a token at positions [rows, tokens] sees the key at [rows, keys]: not later ones, nor those out of its window (0: none)."""
    seen = at[:, None, :] <= positions[:, :, None]
    return seen & (at[:, None, :] > positions[:, :, None] - window) if window else seen


class WholeTexts:
    """`Attention` within texts of one length that lie one after the other, with nothing before them."""

    def __init__(self, texts: int, length: int, windows: tuple[int, ...], device: torch.device) -> None:
        self._texts, self._length, self._windows = texts, length, windows
        at = torch.arange(length, device=device)[None]
        self._seen = {window: seen_from(at, at, window) for window in set(windows)}

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Attention`."""
        q, k, v = (part.view(self._texts, self._length, *part.shape[1:]) for part in (queries, keys, values))
        return masked_attention(q, k, v, self._seen[self._windows[layer]]).flatten(0, 1)


@dataclass(frozen=True)
class LayerWeights:
    """One layer's tensors, in the model's dtype."""

    linears: dict[str, Tensor]
    biases: dict[str, Tensor]
    attention_norm: Tensor
    mlp_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None


class Llama:
    """A frozen base model. Not a `Module`: nothing in it trains."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], name: str) -> None:
        self.config, self.fingerprint = config, name
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = weights.get("lm_head.weight", self.embedding)
        self.final_norm = weights["model.norm.weight"]
        self.layers = [_layer(weights, layer) for layer in range(config.layers)]
        cos, sin = config.rotary()
        self.cos, self.sin = torch.cat((cos, cos), -1).to(self.embedding), torch.cat((sin, sin), -1).to(self.embedding)

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
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        stream = F.embedding(tokens, self.embedding)

        for index, layer in enumerate(self.layers):

            def linear(module: str, x: Tensor, index: int = index, layer: LayerWeights = layer) -> Tensor:
                y = F.linear(x, layer.linears[module], layer.biases.get(module))
                return y if delta is None else delta.add(index, module, x, y)

            def normed(x: Tensor, weight: Tensor | None) -> Tensor:
                return x if weight is None else F.rms_norm(x, (x.shape[-1],), weight, config.norm_eps)

            x = normed(stream, layer.attention_norm)
            queries, keys, values = (linear(name, x).view(len(x), -1, config.head_dim) for name in ("q_proj", "k_proj", "v_proj"))
            queries, keys = rotate(normed(queries, layer.query_norm), cos, sin), rotate(normed(keys, layer.key_norm), cos, sin)
            stream = stream + linear("o_proj", attention.attend(index, queries, keys, values).flatten(1))
            x = normed(stream, layer.mlp_norm)
            stream = stream + linear("down_proj", F.silu(linear("gate_proj", x)) * linear("up_proj", x))
        return F.rms_norm(stream, (config.hidden,), self.final_norm, config.norm_eps)

    def hidden_of_texts(self, tokens: Tensor, delta: Delta | None = None) -> Tensor:
        """`hidden` [texts, length, hidden] of whole texts [texts, length], each from position 0 on."""
        texts, length = tokens.shape
        positions = torch.arange(length, device=tokens.device).repeat(texts)
        attention = WholeTexts(texts, length, self.config.windows, tokens.device)
        return self.hidden(tokens.flatten(), positions, delta, attention).view(texts, length, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] of hidden states [..., hidden], float32."""
        return F.linear(hidden, self.head).float()


def _layer(weights: dict[str, Tensor], layer: int) -> LayerWeights:
    prefix = f"model.layers.{layer}."
    paths = {module: module_path(layer, module) for module in MODULES}
    return LayerWeights(
        linears={module: weights[f"{path}.weight"] for module, path in paths.items()},
        biases={module: weights[f"{path}.bias"] for module, path in paths.items() if f"{path}.bias" in weights},
        attention_norm=weights[f"{prefix}input_layernorm.weight"],
        mlp_norm=weights[f"{prefix}post_attention_layernorm.weight"],
        query_norm=weights.get(f"{prefix}self_attn.q_norm.weight"),
        key_norm=weights.get(f"{prefix}self_attn.k_norm.weight"),
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, in the half-split layout of Llama checkpoints."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def training_dtype(device: str) -> torch.dtype:
    """What to compute in: bfloat16 where the device multiplies it, else float32.

    On a CPU without such a unit torch multiplies bfloat16 number by number: a step takes minutes instead of a second.
    """
    return torch.bfloat16 if device != "cpu" or AVX512_BF16 in processor_variants() else torch.float32
