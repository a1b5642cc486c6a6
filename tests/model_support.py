"""Tiny random models of every family, random adapters for them, and both backends."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from services.executor.adapters.mixture import load_adapter
from services.executor.backends.native import library
from services.executor.backends.native.backend import NativeBackend
from services.executor.backends.port import BLOCK_TOKENS, AnyBackend, Batch, Chunk
from services.executor.backends.torch.backend import TorchBackend
from services.executor.backends.torch.model import Llama
from services.executor.backends.torch.ranks import TorchMixture
from services.executor.models.base_model import BASES_RANK, cache_home
from services.executor.models.config import ModelConfig, module_path
from services.executor.models.linear import Linear
from services.executor.models.lora_xs_bases import LoraXsBases
from services.executor.models.weights import load_weights
from smoa.adapter import Adapter, Kind, Manifest, decode, encode, new_adapter_id

CAN_RUN_NATIVE = bool(library.processor_variants())
BACKENDS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not CAN_RUN_NATIVE, reason="this processor has no AVX2"))]
VARIANTS = [
    pytest.param(name, marks=pytest.mark.skipif(flags not in library.processor_variants(), reason=f"this processor has no {name}"))
    for name, flags in library.VARIANTS.items()
]
"""Names that `make_backend` takes for the native one on each kind of processor; "native" is the best of those here."""
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "llama3": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"sliding_window": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "smollm3": {"no_rope_layers": [1, 0, 1], "attention_bias": True, "mlp_bias": True, "use_sliding_window": True, "sliding_window": 24},
    "granite": {"embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.4, "logits_scaling": 3.0},
    "gemma2": {
        "head_dim": 32,
        "query_pre_attn_scalar": 20,
        "sliding_window": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 20,
        "sliding_window": 24,
        "sliding_window_pattern": 2,
        "rope_theta": 50000.0,
        "rope_local_base_freq": 1000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "final_logit_softcapping": 3.0,
    },
    "phi3": {"partial_rotary_factor": 0.5},
}
"""Fields of `config.json` beside the sizes: at least one model for every type that is served, with values that make a difference."""


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED = pytest.param("fused", marks=pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"))
"""The torch backend with its Triton kernels: on a GPU where there is one, else in Triton's interpreter."""


def isolated_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases of throw-away models go to `folder`; the compiled kernels stay where they are."""
    real = cache_home() / "native"
    real.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    os.symlink(real, folder / "native")
    monkeypatch.setenv("SMOA_CACHE", str(folder))


def make_model(folder: Path, family: str = "llama", seed: int = 1, fields: Mapping[str, object] | None = None) -> Path:
    """A tiny random model with a word-level tokenizer of w0 to w199; `fields` are put into its `config.json` as they are."""
    torch.manual_seed(seed)
    raw: dict[str, object] = {
        "model_type": family,
        "vocab_size": 200,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    raw = raw | FAMILIES[family] | dict(fields or {})
    given: dict[str, Any] = copy.deepcopy(raw)  # it is changed in there
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():  # an untrained norm or bias would hide that it is left out
        if name.endswith("bias") or "norm" in name:
            parameter.data = parameter.data + torch.randn_like(parameter) * 0.2
        elif parameter.ndim == 2:
            parameter.data = torch.randn_like(parameter) * 0.15
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(raw | {"architectures": [type(model).__name__], "dtype": "float32"}))
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(200)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def reference_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The same model in transformers. With its plain attention: another leaves out the soft caps of Gemma 2."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")


def make_backend(
    kind: str, folder: Path, dtype: torch.dtype = torch.float32, blocks: int = 64, context: int = 256, slot_mib: int = 32
) -> AnyBackend:
    """A backend of a model folder. `fused` is torch with the Triton kernels."""
    model = Llama.load(folder, dtype, DEVICE if kind == "fused" else "cpu")
    bases = LoraXsBases(folder, model.fingerprint)
    if kind in ("torch", "fused"):
        return TorchBackend(model, bases, blocks=blocks, context=context, slot_bytes=slot_mib * 2**20, fused=kind == "fused")
    return NativeBackend(
        model.config,
        load_weights(folder),
        model.fingerprint,
        bases,
        dtype=dtype,
        blocks=blocks,
        context=context,
        threads=2,
        flags=library.VARIANTS.get(kind),
    )


def random_adapter(
    config: ModelConfig,
    base_model: str,
    *,
    seed: int,
    kind: Kind = "lora_xs",
    rank: int = 4,
    modules: Sequence[str] = ("q_proj", "v_proj"),
    layers: Sequence[int] | None = None,
    scaling: float = 1.0,
    size: float = 0.3,
    dtype: type[np.floating] = np.float32,
    **changes: object,
) -> Adapter:
    """An adapter whose weights make a difference, through its file form and back."""
    rng = np.random.default_rng(seed)
    where = tuple(range(config.layers) if layers is None else layers)
    manifest = Manifest(
        adapter_id=new_adapter_id(),
        name=str(seed),
        kind=kind,
        base_model=base_model,
        rank=rank,
        modules=tuple(modules),
        layers=where,
        scaling=scaling,
        **changes,  # type: ignore[arg-type]
    )
    tensors: dict[str, np.ndarray] = {}
    for module in modules:
        out, inputs = config.shape(module)
        if kind == "lora_xs":
            tensors[module] = rng.standard_normal((len(where), rank, rank)).astype(dtype) * dtype(size)
            tensors[module + ".s"] = np.ones((len(where), rank), dtype)
            continue
        for layer in where:
            path = module_path(layer, module)
            tensors[f"{path}.lora_A"] = (rng.standard_normal((rank, inputs)) * size / inputs**0.5).astype(dtype)
            tensors[f"{path}.lora_B"] = (rng.standard_normal((out, rank)) * size).astype(dtype)
    return decode(encode(Adapter(manifest, tensors)))


def delta_of(adapter: Adapter, folder: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, by checkpoint path: the definition, in float64."""
    bases = LoraXsBases(folder, adapter.manifest.base_model)
    deltas: dict[str, torch.Tensor] = {}
    for index, layer in enumerate(adapter.manifest.layers):
        for module in adapter.manifest.modules:
            path = module_path(layer, module)
            if adapter.manifest.kind == "lora_xs":
                left, right = (basis[:, : adapter.manifest.rank].double() for basis in bases[path])
                core = torch.tensor(adapter.tensors[module][index]).double()
                product = left @ core[: left.shape[1], : right.shape[1]] @ right.T
            else:
                product = (
                    torch.tensor(adapter.tensors[f"{path}.lora_B"]).double() @ torch.tensor(adapter.tensors[f"{path}.lora_A"]).double()
                )
            deltas[path] = product * adapter.manifest.scaling
    assert adapter.manifest.rank <= BASES_RANK or adapter.manifest.kind == "lora"
    return deltas


def load(adapter: Adapter, backend: AnyBackend, dtype: torch.dtype = torch.float32) -> str:
    """Put an adapter in a slot; returns its key, as the backend's `mix` takes it."""
    key = adapter.manifest.adapter_id
    backend.place(key, load_adapter(adapter, backend.config, backend.fingerprint, 64, dtype))
    return key


class Everywhere:
    """`Delta` of one mixture in every token, whatever their number."""

    def __init__(self, backend: TorchBackend, mixture: TorchMixture) -> None:
        self._deltas = backend._deltas
        self._deltas.set([mixture])

    def apply(self, layer: int, linear: Linear, x: torch.Tensor) -> Sequence[torch.Tensor]:
        delta = self._deltas.of_tokens(torch.zeros(len(x), dtype=torch.long))
        return linear.parts(linear(x)) if delta is None else delta.apply(layer, linear, x)


def logits_of(
    backend: AnyBackend, tokens: Sequence[int], mixture: object | None = None, blocks: Sequence[int] | None = None
) -> torch.Tensor:
    """Logits [tokens, vocabulary] of a whole text, in one chunk."""
    needed = -(-len(tokens) // BLOCK_TOKENS)
    chunk = Chunk(tokens, 0, list(range(needed)) if blocks is None else blocks, mixture or backend.mix([]), len(tokens))
    return backend.forward(Batch.of([chunk]))[0].cpu().clone()
