"""What a base model's `config.json` says of its shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.executor.models.base_model import config_of
from smoa.errors import FailedPrecondition

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama-family model, from its `config.json`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    norm_eps: float
    windows: tuple[int, ...]
    """Tokens a token of each layer sees, itself included; 0 is all."""
    folder: Path

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read `config.json`.

        Raises:
            FailedPrecondition: a model type that this forward pass does not implement.
        """
        raw: dict[str, Any] = dict(config_of(folder))
        kind = raw.get("model_type")
        if kind not in MODEL_TYPES or raw.get("mlp_bias") or (kind == "llama" and raw.get("attention_bias")):
            raise FailedPrecondition(f"base_model: {folder} is {kind!r}; use a model of type {', '.join(MODEL_TYPES)} without MLP biases")
        layers, context = raw["num_hidden_layers"], raw["max_position_embeddings"]
        window = raw.get("sliding_window") or 0
        if (kind.startswith("qwen") and not raw.get("use_sliding_window")) or kind == "llama" or window >= context:
            window = 0
        kinds = raw.get("layer_types") or ["sliding_attention" if window else "full_attention"] * layers
        return cls(
            layers=layers,
            hidden=raw["hidden_size"],
            intermediate=raw["intermediate_size"],
            heads=raw["num_attention_heads"],
            kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
            vocabulary=raw["vocab_size"],
            context=context,
            norm_eps=float(raw["rms_norm_eps"]),
            windows=tuple(window if one == "sliding_attention" else 0 for one in kinds),
            folder=folder,
        )

    def shape(self, module: str) -> tuple[int, int]:
        """(outputs, inputs) of a linear module.

        Raises:
            KeyError: no such module.
        """
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (query, self.hidden),
            "k_proj": (key_value, self.hidden),
            "v_proj": (key_value, self.hidden),
            "o_proj": (self.hidden, query),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }[module]

    def rotary(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position's angles, [context, head_dim / 2] float32 (RoFormer, arXiv 2104.09864)."""
        raw: dict[str, Any] = dict(config_of(self.folder))
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        attention_factor = 1.0
        if rope.get("rope_type", rope.get("type", "default")) == "default":
            theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
            inverse = theta ** (-torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        else:  # Llama 3 and others stretch the angles; transformers knows how
            from transformers import AutoConfig
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            inverse, attention_factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](AutoConfig.from_pretrained(self.folder), None)
        angles = torch.outer(torch.arange(self.context, dtype=torch.float64), inverse.double()).float()
        return angles.cos() * attention_factor, angles.sin() * attention_factor


def module_path(layer: int, module: str) -> str:
    """Checkpoint name of a linear module, without `.weight`."""
    block = "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    return f"model.layers.{layer}.{block}.{module}"
