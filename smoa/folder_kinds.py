"""What somebody gave instead of a PEFT folder, and what to do with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
_PEFT_FOLDER: Final = "give a folder written by PEFT's save_pretrained"


def describe(path: Path) -> tuple[str, str]:
    """(what is wrong with it, the remedy) of a path that is not a whole PEFT folder, by the names of its files."""
    if not path.exists():
        return "is not there", _PEFT_FOLDER
    if not path.is_dir():
        return "is a file", f"{_PEFT_FOLDER}, or push an adapter file with `smoa adapter push`"
    names = {one.name for one in path.iterdir()}
    if names & {"adapters.safetensors", "adapters.npz"} or _is_mlx(path / CONFIG_FILE):
        return "holds an adapter of MLX", "convert it to PEFT's form, with the names and the order of sides that PEFT has"
    if CONFIG_FILE in names and "adapter_model.bin" in names:
        how = "load it with PeftModel.from_pretrained and save it with save_pretrained(..., safe_serialization=True)"
        return "holds its weights as adapter_model.bin, a pickle, which may run code when it is read", how
    if CONFIG_FILE in names or WEIGHTS_FILE in names:
        return f"lacks {WEIGHTS_FILE if CONFIG_FILE in names else CONFIG_FILE}", _PEFT_FOLDER
    if "pytorch_lora_weights.safetensors" in names:
        return "holds a LoRA of diffusers", "give one of a language model, written by PEFT's save_pretrained"
    if any(name.endswith(".gguf") for name in names):
        return "holds a GGUF file", "give the PEFT folder that it was converted from"
    if "config.json" in names:
        how = f"{_PEFT_FOLDER} before the merge; a whole model is served by SMOA_BASE_MODEL"
        return "holds a whole model, or one that an adapter was merged into", how
    return f"is no PEFT folder, and holds none ({CONFIG_FILE})", _PEFT_FOLDER


def _is_mlx(config: Path) -> bool:
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and "peft_type" not in fields and bool({"fine_tune_type", "lora_parameters"} & set(fields))
