"""Llama-family forward pass in plain torch, with one hook: every linear module may add a per-row adapter delta.

Owned rather than borrowed because a decode step must read a different mixture for every row, and training and serving must be
the same arithmetic. `tests/integration/test_model.py` holds it equal to `transformers`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from services.executor.base_model import MODULES, config_of, fingerprint, load_weights
from smoa.errors import FailedPrecondition


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of a Llama-family model, from its `config.json`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    rope_theta: float
    norm_eps: float
    eos_ids: tuple[int, ...]

    @classmethod
    def from_folder(cls, folder: Path) -> LlamaConfig:
        """Read `config.json`.

        Raises:
            FailedPrecondition: a model type or a rotary scaling this forward pass does not implement.
        """
        raw = json.loads(json.dumps(config_of(folder)))
        rope = raw.get("rope_parameters") or {}
        scaling = rope.get("rope_type", "default") if rope else (raw.get("rope_scaling") or {}).get("rope_type", "default")
        if raw.get("model_type") != "llama" or scaling != "default" or raw.get("attention_bias") or raw.get("mlp_bias"):
            raise FailedPrecondition(
                f"base_model: {folder} is {raw.get('model_type')!r} with rope {scaling!r}; use a plain Llama-family model such as SmolLM2"
            )
        eos = raw.get("eos_token_id")
        return cls(
            layers=raw["num_hidden_layers"],
            hidden=raw["hidden_size"],
            intermediate=raw["intermediate_size"],
            heads=raw["num_attention_heads"],
            kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
            vocabulary=raw["vocab_size"],
            context=raw["max_position_embeddings"],
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
            norm_eps=float(raw["rms_norm_eps"]),
            eos_ids=tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,)),
        )


class Delta(Protocol):
    """Per-row change of the linear modules: what a mixture looks like to the model."""

    def add(self, layer: int, module: str, x: Tensor, y: Tensor) -> Tensor:
        """Y [rows, tokens, out] plus the rows' deltas applied to x [rows, tokens, in]."""


class KeyValues(Protocol):
    """Where attention keeps keys and values of earlier tokens."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store keys, values [rows, kv_heads, tokens, head_dim]; return all of each row's and an additive mask or None for causal."""


class Llama:
    """A frozen base model. Not a `Module`: nothing in it trains."""

    def __init__(self, config: LlamaConfig, weights: dict[str, Tensor], name: str) -> None:
        self.config, self.fingerprint = config, name
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = weights.get("lm_head.weight", self.embedding)
        self.final_norm = weights["model.norm.weight"]
        self.linears: list[dict[str, Tensor]] = []
        self.norms: list[tuple[Tensor, Tensor]] = []
        for layer in range(config.layers):
            prefix = f"model.layers.{layer}."
            self.linears.append({module: weights[f"{prefix}{block_of(module)}.{module}.weight"] for module in MODULES})
            self.norms.append((weights[f"{prefix}input_layernorm.weight"], weights[f"{prefix}post_attention_layernorm.weight"]))
        inverse = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
        angles = torch.outer(torch.arange(config.context, dtype=torch.float64), inverse).to(torch.float32)
        self.cos = torch.cat((angles, angles), -1).cos().to(self.embedding)
        self.sin = torch.cat((angles, angles), -1).sin().to(self.embedding)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: str = "cpu") -> Llama:
        """Load a model folder onto `device` in `dtype`; its fingerprint is taken from the files, before the cast."""
        weights = {key: value.to(device, dtype) for key, value in load_weights(folder).items()}
        return cls(LlamaConfig.from_folder(folder), weights, fingerprint(folder))

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    def hidden(self, tokens: Tensor, positions: Tensor, delta: Delta | None, key_values: KeyValues | None = None) -> Tensor:
        """Final normed hidden states [rows, tokens, hidden] of token ids and positions [rows, tokens]."""
        config = self.config
        rows, length = tokens.shape
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        stream = F.embedding(tokens, self.embedding)

        for layer, linears in enumerate(self.linears):

            def linear(module: str, x: Tensor, layer: int = layer, linears: dict[str, Tensor] = linears) -> Tensor:
                y = F.linear(x, linears[module])
                return y if delta is None else delta.add(layer, module, x, y)

            def split(x: Tensor, heads: int) -> Tensor:
                return x.view(rows, length, heads, config.head_dim).transpose(1, 2)

            attention_norm, mlp_norm = self.norms[layer]
            x = F.rms_norm(stream, (config.hidden,), attention_norm, config.norm_eps)
            queries = rotate(split(linear("q_proj", x), config.heads), cos, sin)
            keys = rotate(split(linear("k_proj", x), config.kv_heads), cos, sin)
            values = split(linear("v_proj", x), config.kv_heads)
            mask: Tensor | None = None
            if key_values is not None:
                keys, values, mask = key_values.extend(layer, keys, values)
            group = config.heads // config.kv_heads
            keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None and length > 1)
            stream = stream + linear("o_proj", mixed.transpose(1, 2).reshape(rows, length, -1))
            x = F.rms_norm(stream, (config.hidden,), mlp_norm, config.norm_eps)
            stream = stream + linear("down_proj", F.silu(linear("gate_proj", x)) * linear("up_proj", x))
        return F.rms_norm(stream, (config.hidden,), self.final_norm, config.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] of hidden states [..., hidden], float32."""
        return F.linear(hidden, self.head).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (RoFormer, arXiv 2104.09864, in the half-split layout of Llama checkpoints)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def block_of(module: str) -> str:
    """The block a linear module lives in: `self_attn` or `mlp`."""
    return "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"


def module_path(layer: int, module: str) -> str:
    """Checkpoint name of a linear module, without `.weight`."""
    return f"model.layers.{layer}.{block_of(module)}.{module}"
