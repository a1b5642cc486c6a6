"""A model's files hold what its config says, all of it and nothing else, in numbers that are themselves: or it is refused at the start."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.executor.app import load_backend
from services.executor.models.base_model import fingerprint
from services.executor.models.config import ModelConfig
from services.executor.models.weights import check_files, load_weights
from services.executor.settings import ExecutorSettings
from smoa.errors import FailedPrecondition, InvalidArgument
from tests.model_support import isolated_cache, make_model

PROJECTION = "model.layers.0.mlp.down_proj"
Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated_cache(tmp_path / "cache", monkeypatch)


def changed(folder: Path, change: Callable[[Tensors], None]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def of_projections(change: Callable[[Tensors, str, Tensor], None]) -> Callable[[Tensors], None]:
    def of_all(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            change(tensors, name, tensors.pop(name))

    return of_all


def fp8(tensors: Tensors, name: str, weight: Tensor) -> None:
    scale = weight.abs().max() / 448
    tensors |= {name: (weight / scale).to(torch.float8_e4m3fn), name + "_scale_inv": scale.reshape(1, 1)}


def int8(tensors: Tensors, name: str, weight: Tensor) -> None:
    scale = weight.abs().max() / 127
    tensors |= {name: (weight / scale).round().to(torch.int8), name + "_scale": scale.reshape(1)}


def bitsandbytes(tensors: Tensors, name: str, weight: Tensor) -> None:
    tensors |= {name: torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8), name + ".absmax": torch.ones(weight.numel() // 64)}


def gptq(tensors: Tensors, name: str, weight: Tensor) -> None:
    path = name.removesuffix("weight")
    tensors |= {path + "qweight": torch.zeros(weight.shape[1] // 8, weight.shape[0], dtype=torch.int32), path + "scales": torch.ones(1, 8)}


@pytest.mark.parametrize("backend", ["auto", "native", "torch"])
@pytest.mark.parametrize("method", [fp8, int8, bitsandbytes, gptq])
def test_quantised_models_are_refused_at_the_start(method: Callable[[Tensors, str, Tensor], None], backend: str, tmp_path: Path) -> None:
    folder = changed(make_model(tmp_path / "model", "qwen3"), of_projections(method))
    settings = ExecutorSettings(base_model=str(folder), backend=backend)
    with pytest.raises(
        FailedPrecondition, match=r"^base_model: model\.layers\.0\.\S+ is \w+: quantised weights are not served; convert the"
    ):
        load_backend(settings, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method.__name__}}))
    with pytest.raises(FailedPrecondition, match=r"^base_model: quantization_config says that .* convert it to bf16 safetensors first$"):
        load_backend(settings, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}),
            "model.safetensors holds model.layers.0.self_attn.q_norm.weight, which LlamaForCausalLM has not as config.json describes it",
        ),
        (
            lambda tensors: tensors.update({f"{PROJECTION}.lora_A.weight": torch.ones(4, 96)}),
            f"model.safetensors holds {PROJECTION}.lora_A.weight, which LlamaForCausalLM has not as config.json describes it, or has "
            "twice; use a checkpoint as transformers saves it, without adapters or heads of its own",
        ),
        (lambda tensors: tensors.pop(f"{PROJECTION}.weight"), f"{{folder}} lacks {PROJECTION}.weight; fetch all files of the model"),
        (lambda tensors: tensors.pop("model.norm.weight"), "{folder} lacks model.norm.weight; fetch all files of the model"),
        (
            lambda tensors: tensors.pop("lm_head.weight"),
            "{folder} lacks lm_head.weight, and tie_word_embeddings is false; fetch all files of the model, or take its own config.json",
        ),
        (
            lambda tensors: tensors.update({f"{PROJECTION}.weight": torch.ones(64, 95)}),
            f"{PROJECTION}.weight is (64, 95), and by config.json it would be (64, 96); take the model's own config.json",
        ),
        (lambda tensors: tensors.update({f"{PROJECTION}.bias": torch.ones(64)}), f"model.safetensors holds {PROJECTION}.bias, which "),
    ],
    ids=["norm", "adapter", "no projection", "no norm", "no head", "shape", "bias"],
)
def test_other_tensors_than_the_config_says_are_refused(change: Callable[[Tensors], None], message: str, tmp_path: Path) -> None:
    folder = changed(make_model(tmp_path / "model"), change)
    with pytest.raises(FailedPrecondition) as caught:
        load_weights(folder)
    assert str(caught.value).startswith("base_model: " + message.format(folder=folder))


def test_a_head_beside_a_tied_embedding_is_used(tmp_path: Path) -> None:
    """So does transformers, where they differ."""
    folder = make_model(tmp_path / "model", fields={"tie_word_embeddings": True})
    assert "lm_head.weight" not in load_weights(folder)
    changed(folder, lambda tensors: tensors.update({"lm_head.weight": torch.full((200, 64), 2.0)}))
    assert load_weights(folder)["lm_head.weight"].eq(2).all()


def test_frequencies_that_old_files_hold_are_passed_over(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    before = load_weights(folder)
    changed(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert load_weights(folder).keys() == before.keys()


def test_the_files_are_those_that_transformers_reads(tmp_path: Path) -> None:
    """Mistral's repositories hold the weights twice, under other names."""
    folder = make_model(tmp_path / "model")
    name, weights = fingerprint(folder), load_file(folder / "model.safetensors")
    save_file({"layers.0.attention.wq.weight": torch.ones(4)}, folder / "consolidated.safetensors")
    assert fingerprint(folder) == name
    parts = sorted(weights)[:7], sorted(weights)[7:]
    for number, part in enumerate(parts):
        save_file({key: weights[key] for key in part}, folder / f"model-{number}.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {key: f"model-{number}.safetensors" for number, part in enumerate(parts) for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprint(folder) == name
    assert load_weights(folder).keys() == weights.keys()
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(InvalidArgument, match=r"lacks model-1\.safetensors, which its index names; fetch all files of the model$"):
        fingerprint(folder)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is no whole safetensors file ("),
        ("model.safetensors", b"", "is no whole safetensors file ("),
        ("config.json", b"\xef\xbb\xbf{}", "config.json cannot be read ("),
        ("config.json", b"[]", "config.json holds no JSON object; fetch all files of the model again"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(FailedPrecondition, match=re.escape(sentence)):
        load_weights(folder)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', "{"])
def test_an_index_without_a_map_is_refused(index: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(FailedPrecondition, match=r"^base_model: .*model\.safetensors\.index\.json (has no weight_map|cannot be read)"):
        load_weights(folder)


def test_fused_tensors_come_apart(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "phi3")
    stored, weights = load_file(folder / "model.safetensors"), load_weights(folder)
    attention, mlp = "model.layers.2.self_attn.", "model.layers.2.mlp."
    parts = [weights[f"{attention}{name}_proj.weight"] for name in "qkv"]
    assert [len(part) for part in parts] == [64, 32, 32]
    assert torch.equal(torch.cat(parts), stored[attention + "qkv_proj.weight"])
    gate_up = [weights[f"{mlp}{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(torch.cat(gate_up), stored[mlp + "gate_up_proj.weight"])
    config = ModelConfig.from_folder(folder)
    check_files(config)
    with pytest.raises(FailedPrecondition, match=r"qkv_proj\.weight is \(128, 64\), and by config.json it would be \(192, 64\)"):
        check_files(dataclasses.replace(config, kv_heads=4))
