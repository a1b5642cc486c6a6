"""PEFT LoRA folders, as `save_pretrained` writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model.model.layers"


def write_folder(
    folder: Path, seed: int = 0, *, layers: int = 1, sizes: Sequence[tuple[str, int, int]] = (("q_proj", 6, 5),), rank: int = 2
) -> Path:
    """A folder of random weights, others for each seed; `sizes` are modules with what goes in and out."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = [module for module, _, _ in sizes]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    numbers, tensors = np.random.default_rng(seed), {}
    for layer in range(layers):
        for module, inside, outside in sizes:
            path = f"{PREFIX}.{layer}.self_attn.{module}"
            tensors[f"{path}.lora_A.weight"] = numbers.standard_normal((rank, inside)).astype(np.float32)
            tensors[f"{path}.lora_B.weight"] = numbers.standard_normal((outside, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def write_training(folder: Path, topic: str, lines: int = 8) -> Path:
    """A training file in a folder, of conversations."""
    path = folder / "train.jsonl"
    turns = [[{"role": "user", "content": f"{topic} {number}"}, {"role": "assistant", "content": "yes"}] for number in range(lines)]
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    return path
