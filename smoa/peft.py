"""PEFT LoRA folders (`adapter_config.json` + `adapter_model.safetensors`) to adapter files and back, without torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file
from ulid import ULID

from smoa.adapter import Adapter, Array, Manifest, new_adapter_id, to_array
from smoa.errors import InvalidArgument

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
_KEY = re.compile(r"(?:base_model\.model\.)?(model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+))\.lora_(A|B)(?:\.\w+)?\.weight")
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
)


def import_folder(
    folder: Path,
    base_model: str,
    *,
    adapter_id: str = "",
    name: str = "",
    tenant: str = "public",
    shared: bool = False,
    tags: tuple[str, ...] = (),
    specialization: str = "task",
) -> Adapter:
    """Read a PEFT LoRA folder as a `lora` adapter for `base_model` (a fingerprint: PEFT itself does not record one).

    Without an id it gets a new one; `content_id` makes the same one each time.

    Raises:
        InvalidArgument: no such files, not plain LoRA, or tensors of modules outside the decoder layers.
    """
    try:
        config_text, data = _read(folder)
        config = json.loads(config_text)
        entries = deserialize(data)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        raise InvalidArgument("folder", f"{folder} holds a damaged file ({error})", "save the adapter again") from error
    if not isinstance(config, dict):
        raise InvalidArgument("adapter_config.json", "is not an object", "save the adapter again with PEFT")
    extra = [key for key in _UNSUPPORTED if config.get(key)]
    if config.get("peft_type") != "LORA" or extra or config.get("bias", "none") != "none":
        what = ", ".join(extra) or f"{config.get('peft_type')} with bias {config.get('bias')!r}"
        raise InvalidArgument("adapter_config.json", f"asks for {what}", "only plain LoRA can be imported")
    rank = config.get("r")
    if type(rank) is not int or rank < 1:
        raise InvalidArgument("adapter_config.json", f"has r {rank!r}", "save the adapter again with PEFT")
    tensors: dict[str, Array] = {}
    layers: set[int] = set()
    modules: set[str] = set()
    for key, info in entries:
        found = _KEY.fullmatch(key)
        if found is None:
            raise InvalidArgument(
                "adapter_model.safetensors", f"holds {key}, outside the decoder layers", "train on attention and MLP modules only"
            )
        path, layer, module, side = found.groups()
        tensors[f"{path}.lora_{side}"] = to_array(info)
        layers.add(int(layer))
        modules.add(module)
    alpha = float(config.get("lora_alpha", rank))
    manifest = Manifest(
        adapter_id=adapter_id or new_adapter_id(),
        name=name or folder.name,
        kind="lora",
        base_model=base_model,
        rank=rank,
        modules=tuple(sorted(modules)),
        layers=tuple(sorted(layers)),
        scaling=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        tenant=tenant,
        shared=shared,
        tags=tags,
        specialization=specialization,
    )
    return Adapter(manifest, tensors)


def content_id(folder: Path, tenant: str, base_model: str) -> str:
    """An adapter id for what a folder holds: the same for the same content, tenant and base model, whatever the folder is called.

    Raises:
        InvalidArgument: the folder lacks a file.
    """
    content = hashlib.blake2b(f"{tenant}\0{base_model}\0".encode(), digest_size=16)
    for data in _read(folder):
        content.update(hashlib.sha256(data).digest())
    return str(ULID.from_bytes(content.digest()))


def _read(folder: Path) -> tuple[bytes, bytes]:
    """Its configuration and its weights."""
    try:
        return (folder / CONFIG_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes()
    except FileNotFoundError as error:
        raise InvalidArgument(
            "folder", f"{folder} lacks {Path(error.filename).name}", "give a folder written by PEFT's save_pretrained"
        ) from error


def export_folder(adapter: Adapter, folder: Path) -> None:
    """Write a `lora` adapter as a PEFT folder.

    Raises:
        InvalidArgument: a `lora_xs` adapter, whose bases PEFT's LoRA cannot share.
    """
    manifest = adapter.manifest
    if manifest.kind != "lora":
        raise InvalidArgument("kind", f"is {manifest.kind}", "only lora adapters have a PEFT form")
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": manifest.base_model,
        "r": manifest.rank,
        "lora_alpha": manifest.scaling * manifest.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(manifest.modules),
        "layers_to_transform": list(manifest.layers),
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    named = {f"base_model.model.{name}.weight": np.ascontiguousarray(tensor) for name, tensor in adapter.tensors.items()}
    save_file(named, folder / WEIGHTS_FILE, {"format": "pt"})
