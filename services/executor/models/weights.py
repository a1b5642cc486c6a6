"""A base model's tensors: which its files must hold and in what shape, and reading them under Llama's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from torch import Tensor

from services.executor.models.base_model import MODULES, open_weights, weight_files
from services.executor.models.config import ModelConfig, module_path
from smoa.adapter import FUSED
from smoa.errors import FailedPrecondition

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_FLOATS = ("BF16", "F16", "F32")
_COMPUTED = ".rotary_emb.inv_freq"  # in old files, and made from the config by everybody


def norm_names(config: ModelConfig, layer: int) -> dict[str, str]:
    """Names of a layer's norms by what they do: `attention` and `mlp` norm what these read, `attention_post` and `mlp_post` what they give,
    `query` and `key` each head.
    """
    after = {"attention_post": "post_attention", "mlp": "pre_feedforward", "mlp_post": "post_feedforward"}
    names = {"attention": "input"} | (after if config.family.post_norms else {"mlp": "post_attention"})
    of_layer = {norm: f"model.layers.{layer}.{name}_layernorm.weight" for norm, name in names.items()}
    if config.family.query_key_norms:
        of_layer |= {norm: f"model.layers.{layer}.self_attn.{norm[0]}_norm.weight" for norm in ("query", "key")}
    return of_layer


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the files: its shape, and the tensors that it is, one after the other, with the rows of each."""

    shape: tuple[int, ...]
    parts: Mapping[str, int]


def stored_tensors(config: ModelConfig) -> dict[str, StoredTensor]:
    """Every tensor that the files must hold, by name. Without the head, which they may leave out where it is the embedding."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocabulary, config.hidden), FINAL_NORM: (config.hidden,)}
    fused: dict[str, StoredTensor] = {}
    for layer in range(config.layers):
        for norm, name in norm_names(config, layer).items():
            shapes[name] = (config.head_dim if norm in ("query", "key") else config.hidden,)
        for module in MODULES:
            path = module_path(layer, module)
            shapes[f"{path}.weight"] = config.shape(module)
            if module in config.biased:
                shapes[f"{path}.bias"] = config.shape(module)[:1]
        for name, modules in FUSED.items() if config.family.fused else ():
            parts = {f"{module_path(layer, module)}.weight": config.shape(module)[0] for module in modules}
            for part in parts:
                del shapes[part]
            block = module_path(layer, modules[0]).rpartition(".")[0]
            fused[f"{block}.{name}.weight"] = StoredTensor((sum(parts.values()), config.hidden), parts)
    return {name: StoredTensor(shape, {name: shape[0]}) for name, shape in shapes.items()} | fused


def check_files(config: ModelConfig) -> None:
    """Read the headers of the files.

    Raises:
        FailedPrecondition: they hold a tensor that the model has not, lack one, or one has another dtype or shape than it must.
    """
    wanted = stored_tensors(config)
    wanted[HEAD] = StoredTensor((config.vocabulary, config.hidden), {HEAD: config.vocabulary})
    for path in weight_files(config.folder):
        with open_weights(path) as handle:
            for name in sorted(handle.keys()):
                if name.endswith(_COMPUTED):
                    continue
                piece = handle.get_slice(name)
                shape, dtype = tuple(piece.get_shape()), piece.get_dtype()
                if dtype not in _FLOATS:
                    kind = "64-bit" if dtype == "F64" else "quantised"
                    raise _refused(f"{name} is {dtype}: {kind} weights are not served", "convert the model to bf16 safetensors first")
                if (tensor := wanted.pop(name, None)) is None:
                    raise _refused(
                        f"{path.name} holds {name}, which {config.family.architecture} has not as config.json describes it, or has twice",
                        "use a checkpoint as transformers saves it, without adapters or heads of its own",
                    )
                if tensor.shape != shape:
                    raise _refused(f"{name} is {shape}, and by config.json it would be {tensor.shape}", "take the model's own config.json")
    if config.tied:
        wanted.pop(HEAD, None)
    if wanted.keys() == {HEAD}:
        raise _refused(
            f"{config.folder} lacks {HEAD}, and tie_word_embeddings is false", "fetch all files of the model, or take its own config.json"
        )
    if wanted:
        raise _refused(f"{config.folder} lacks {min(wanted)}", "fetch all files of the model, or take its own config.json")


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Every weight of the folder on the CPU, in its own dtype, by Llama's names: fused ones apart. No head where it is the embedding.

    Raises:
        FailedPrecondition: see `ModelConfig.from_folder` and `check_files`.
    """
    config = ModelConfig.from_folder(folder)
    check_files(config)
    stored = stored_tensors(config)
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with open_weights(path) as handle:
            for name in handle.keys():  # noqa: SIM118  safe_open is no mapping
                if name == HEAD:
                    weights[HEAD] = handle.get_tensor(name)
                elif not name.endswith(_COMPUTED):
                    weights |= zip(stored[name].parts, _apart(handle.get_tensor(name), stored[name]), strict=True)
    return weights


def linear_weights(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The path and weight [outputs, inputs] of every linear module, one after the other as they are in the files."""
    linear = {f"{module_path(layer, module)}.weight" for layer in range(config.layers) for module in MODULES}
    stored = stored_tensors(config)
    for path in weight_files(config.folder):
        with open_weights(path) as handle:
            for name in handle.keys():  # noqa: SIM118  safe_open is no mapping
                if name in stored and linear.issuperset(stored[name].parts):
                    for part, tensor in zip(stored[name].parts, _apart(handle.get_tensor(name), stored[name]), strict=True):
                        yield part.removesuffix(".weight"), tensor


def _apart(tensor: Tensor, stored: StoredTensor) -> Sequence[Tensor]:
    starts = accumulate(stored.parts.values(), initial=0)
    return [tensor[start : start + rows] for start, rows in zip(starts, stored.parts.values(), strict=False)]


def _refused(problem: str, remedy: str) -> FailedPrecondition:
    return FailedPrecondition(f"base_model: {problem}; {remedy}")
