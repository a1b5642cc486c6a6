"""Rotary positions are those of transformers, to the last bit, as far into a context as a model goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from services.executor.models.config import ModelConfig

CONTEXT = 131_072
STRETCHES: dict[str, dict[str, object]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32_768},
    "yarn, not truncated": {"factor": 4.0, "original_max_position_embeddings": 32_768, "truncate": False},
}


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_angles(stretch: str, theta: float, tmp_path: Path) -> None:
    raw: dict[str, object] = {
        "model_type": "llama",
        "vocab_size": 200,
        "hidden_size": 256,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": stretch.partition(",")[0], "rope_theta": theta, **STRETCHES[stretch]},
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    rope = ModelConfig.from_folder(tmp_path).ropes[0]
    assert rope is not None
    theirs = LlamaRotaryEmbedding(AutoConfig.from_pretrained(tmp_path))
    at = torch.tensor([[0, 1, 900, 2_000, 32_000, 100_000, CONTEXT - 1]])
    for ours, wanted in zip(rope.table(CONTEXT), theirs(torch.zeros(1), at), strict=True):
        assert torch.equal(ours[at[0]], wanted[0, :, : ours.shape[1]])
