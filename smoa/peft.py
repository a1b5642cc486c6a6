"""PEFT LoRA folders (`adapter_config.json` + `adapter_model.safetensors`) to adapter files and back, without torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.numpy import save
from ulid import ULID

from smoa.adapter import Adapter, Manifest, new_adapter_id, site_of
from smoa.errors import InvalidArgument
from smoa.folder_kinds import CONFIG_FILE, WEIGHTS_FILE, describe
from smoa.model_shape import model_name
from smoa.peft_config import LoraSettings, parse_config
from smoa.plain_files import read_plain, write_plain
from smoa.strict_json import parse_json
from smoa.tensor_file import Array, read_tensors

_WRAPPERS: Final = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a name that torch.compile, DDP, DeepSpeed and FSDP leave in it."""
_PREFIX: Final = "base_model.model."
MAX_CONFIG_BYTES: Final = 2**20
_KEY: Final = re.compile(
    r"((?:(?:base_model|model|language_model|text_model)\.)*(layers\.\d+\.(?:self_attn|mlp)\.\w+))\.lora_(A|B)(?:\.([^.]+))?\.weight"
)
_OUTSIDE: Final[Mapping[str, str]] = {
    "lora_magnitude_vector": "DoRA's magnitudes, which cannot be served: train again without use_dora",
    "embed": "embeddings, which every other adapter shares: train again on attention and MLP modules only",
    "lm_head": "the output layer, which every other adapter shares: train again on attention and MLP modules only",
    ".bias": "biases, which would change the base model: train again with bias none",
    "experts": "experts, which no base model here has: train on attention and MLP modules only",
}
_DECODER: Final = "outside the decoder layers: train on attention and MLP modules only"


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

    Without an id it gets a new one; `content_id` makes the same one each time. Tensors keep their dtype.

    Raises:
        InvalidArgument: no such files, not plain LoRA, or tensors of modules outside the decoder layers.
    """
    config, weights = _read(folder)
    try:
        settings = parse_config(parse_json(config))
        named, _ = read_tensors(weights)
    except ValueError as error:
        raise InvalidArgument("folder", f"{folder} holds a damaged file ({error})", "save the adapter again") from error
    tensors, scalings = _by_path(named, settings)
    scaling = Counter(filter(None, scalings.values())).most_common(1)[0][0] if any(scalings.values()) else 0.0
    sites = [site_of(path) for path in scalings]
    manifest = Manifest(
        adapter_id=adapter_id or new_adapter_id(),
        name=name or folder.name,
        kind="lora",
        base_model=base_model,
        base_model_name=model_name(settings.base_model_name),
        rank=max(len(tensors[f"{path}.lora_A"]) for path in scalings),
        modules=tuple(sorted({module for _, module in sites})),
        layers=tuple(sorted({layer for layer, _ in sites})),
        scaling=scaling,
        scalings={path: one for path, one in scalings.items() if one != scaling},
        tenant=tenant,
        shared=shared,
        tags=tags,
        specialization=specialization,
    )
    return Adapter(manifest, tensors)


def _by_path(named: Mapping[str, Array], settings: LoraSettings) -> tuple[dict[str, Array], dict[str, float]]:
    """Tensors by their names in an adapter file, and the scaling of every path."""
    tensors: dict[str, Array] = {}
    scalings: dict[str, float] = {}
    adapters: set[str] = set()
    for name, tensor in named.items():
        found = _KEY.fullmatch(".".join(part for part in name.split(".") if part not in _WRAPPERS))
        if found is None:
            raise _outside(name)
        key, path, side = found[1].removeprefix(_PREFIX), f"model.{found[2]}", found[3]
        adapters.add(found[4] or "")
        if tensor.ndim != 2 or not tensor.size:
            problem = f"holds {name} of shape {tensor.shape}, a part of it"
            raise InvalidArgument(WEIGHTS_FILE, problem, "gather the parts (DeepSpeed ZeRO-3, FSDP) and save the adapter again")
        if not settings.targets(key):
            problem = f"does not target {key}, which {WEIGHTS_FILE} holds, so PEFT would leave it out"
            raise InvalidArgument(CONFIG_FILE, problem, "correct target_modules, exclude_modules or layers_to_transform")
        rank = tensor.shape[0 if side == "A" else 1]
        if rank != settings.rank_of(key):
            problem = f"says rank {settings.rank_of(key)} for {key}, {WEIGHTS_FILE} has {rank}"
            raise InvalidArgument(CONFIG_FILE, problem, "correct r or rank_pattern, or save the adapter again")
        if f"{path}.lora_{side}" in tensors:
            raise InvalidArgument(WEIGHTS_FILE, f"holds {path} twice, once as {name}", "save one adapter of one model in a folder")
        tensors[f"{path}.lora_{side}"] = tensor
        scalings[path] = settings.scaling_of(key)
    if len(adapters) > 1:
        raise InvalidArgument(WEIGHTS_FILE, f"holds the adapters {', '.join(sorted(adapters))}", "save each in a folder of its own")
    if not tensors:
        raise InvalidArgument(WEIGHTS_FILE, "holds no weights", "save the adapter again with PEFT")
    if alone := next((path for path in scalings if f"{path}.lora_A" not in tensors or f"{path}.lora_B" not in tensors), None):
        raise InvalidArgument(WEIGHTS_FILE, f"holds one of lora_A and lora_B of {alone}", "save the adapter again with PEFT")
    return tensors, scalings


def _outside(name: str) -> InvalidArgument:
    what, _, remedy = next((text for part, text in _OUTSIDE.items() if part in name), _DECODER).partition(": ")
    return InvalidArgument(WEIGHTS_FILE, f"holds {name[:200]}, {what}", remedy)


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
        return read_plain(folder / CONFIG_FILE, "folder", MAX_CONFIG_BYTES), read_plain(folder / WEIGHTS_FILE, "folder")
    except (FileNotFoundError, NotADirectoryError) as error:
        problem, remedy = describe(folder)
        raise InvalidArgument("folder", f"{folder} {problem}", remedy) from error


def export_folder(adapter: Adapter, folder: Path) -> None:
    """Write a `lora` adapter as a PEFT folder, its tensors as they are. PEFT and vLLM read it (vLLM from 0.32 on where ranks or scalings
    differ from pair to pair).

    Raises:
        InvalidArgument: a `lora_xs` adapter, whose bases PEFT's LoRA cannot share.
    """
    manifest = adapter.manifest
    if manifest.kind != "lora":
        raise InvalidArgument("kind", f"is {manifest.kind}", "only lora adapters have a PEFT form")
    ranks = {name.removesuffix(".lora_A"): len(tensor) for name, tensor in adapter.tensors.items() if name.endswith(".lora_A")}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alphas = {path: manifest.scaling_of(path) * one for path, one in ranks.items()}
    alpha = manifest.scaling * rank
    everywhere = len(ranks) == len(manifest.modules) * len(manifest.layers)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": manifest.base_model_name or None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(manifest.modules) if everywhere else sorted(ranks),
        "layers_to_transform": list(manifest.layers) if everywhere else None,
        "rank_pattern": {re.escape(path): one for path, one in sorted(ranks.items()) if one != rank},
        "alpha_pattern": {re.escape(path): one for path, one in sorted(alphas.items()) if one != alpha},
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_plain(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
    named = {f"{_PREFIX}{name}.weight": np.ascontiguousarray(tensor) for name, tensor in adapter.tensors.items()}
    write_plain(folder / WEIGHTS_FILE, save(named, {"format": "pt"}))
