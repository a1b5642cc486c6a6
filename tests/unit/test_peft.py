"""PEFT folders in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smoa.adapter import Adapter, Manifest, decode, encode
from smoa.errors import InvalidArgument
from smoa.peft import export_folder, import_folder

PREFIX = "base_model.model.model.layers"


def _tensors() -> dict[str, Any]:
    numbers = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for layer, module in ((0, "self_attn.q_proj"), (3, "self_attn.q_proj"), (3, "mlp.up_proj")):
        tensors[f"{PREFIX}.{layer}.{module}.lora_A.weight"] = numbers.standard_normal((4, 6)).astype(np.float32)
        tensors[f"{PREFIX}.{layer}.{module}.lora_B.weight"] = numbers.standard_normal((5, 4)).astype(np.float32)
    return tensors


def _folder(tmp_path: Path, tensors: dict[str, Any] | None = None, **changes: Any) -> Path:
    folder = tmp_path / "jobs"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj", "up_proj"], **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(_tensors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def _refusal(folder: Path) -> str:
    with pytest.raises(InvalidArgument) as caught:
        import_folder(folder, "base")
    return str(caught.value)


def test_import(tmp_path: Path) -> None:
    adapter = import_folder(_folder(tmp_path), "base", tenant="t", shared=True, tags=("x",), specialization="style")
    manifest = adapter.manifest
    assert (manifest.name, manifest.kind, manifest.base_model, manifest.rank, manifest.scaling) == ("jobs", "lora", "base", 4, 2.0)
    assert (manifest.modules, manifest.layers) == (("q_proj", "up_proj"), (0, 3))
    assert (manifest.tenant, manifest.shared, manifest.tags, manifest.specialization) == ("t", True, ("x",), "style")
    np.testing.assert_array_equal(adapter.tensors["model.layers.3.mlp.up_proj.lora_B"], _tensors()[f"{PREFIX}.3.mlp.up_proj.lora_B.weight"])
    assert decode(encode(adapter)).parameter_count == 3 * (4 * 6 + 5 * 4)


def test_round_trip(tmp_path: Path) -> None:
    adapter = import_folder(_folder(tmp_path), "base", name="n")
    export_folder(adapter, tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(found) == set(_tensors())
    for name, tensor in _tensors().items():
        np.testing.assert_array_equal(found[name], tensor)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8.0, ["q_proj", "up_proj"])
    again = import_folder(tmp_path / "out", "base", name="n")
    assert (again.manifest.scaling, again.manifest.layers) == (adapter.manifest.scaling, adapter.manifest.layers)


def test_rslora_scaling(tmp_path: Path) -> None:
    assert import_folder(_folder(tmp_path, use_rslora=True), "base").manifest.scaling == 4.0


def test_rslora_scaling_survives_a_round_trip(tmp_path: Path) -> None:
    export_folder(import_folder(_folder(tmp_path, use_rslora=True), "base"), tmp_path / "out")
    assert import_folder(tmp_path / "out", "base").manifest.scaling == 4.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 4]]),
        ("trainable_token_indices", [1]),
    ],
)
def test_unsupported_option_is_named(tmp_path: Path, key: str, value: Any) -> None:
    assert _refusal(_folder(tmp_path, **{key: value})) == f"adapter_config.json: asks for {key}; only plain LoRA can be imported"


@pytest.mark.parametrize(("key", "value"), [("alora_invocation_tokens", [1, 2]), ("use_qalora", True)])
def test_unsupported_option_of_newer_peft_is_named(tmp_path: Path, key: str, value: Any) -> None:
    assert _refusal(_folder(tmp_path, **{key: value})) == f"adapter_config.json: asks for {key}; only plain LoRA can be imported"


def test_other_methods_and_biases_are_refused(tmp_path: Path) -> None:
    assert _refusal(_folder(tmp_path, peft_type="LOHA")).startswith("adapter_config.json: asks for LOHA with bias 'none'; ")


def test_bias_is_refused(tmp_path: Path) -> None:
    assert _refusal(_folder(tmp_path, bias="all")).startswith("adapter_config.json: asks for LORA with bias 'all'; ")


def test_tensor_outside_the_layers_is_refused(tmp_path: Path) -> None:
    name = "base_model.model.lm_head.lora_A.weight"
    assert _refusal(_folder(tmp_path, {name: np.zeros((4, 6), np.float32)})).startswith(
        f"adapter_model.safetensors: holds {name}, outside the decoder layers; "
    )


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = _folder(tmp_path)
    (folder / name).unlink()
    assert _refusal(folder) == f"folder: {folder} lacks {name}; give a folder written by PEFT's save_pretrained"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = _folder(tmp_path)
    (folder / name).write_bytes(b"{")
    assert _refusal(folder).startswith(f"folder: {folder} holds a damaged file (")


@pytest.mark.parametrize("rank", [None, 0, "four"])
def test_bad_rank_is_refused(tmp_path: Path, rank: object) -> None:
    assert _refusal(_folder(tmp_path, r=rank)).startswith("adapter_config.json: ")


def test_lora_xs_is_not_exported(tmp_path: Path) -> None:
    manifest = Manifest(adapter_id="a", name="a", kind="lora_xs", base_model="b", rank=1, modules=("q",), layers=(0,))
    with pytest.raises(InvalidArgument) as caught:
        export_folder(Adapter(manifest, {}), tmp_path / "out")
    assert str(caught.value) == "kind: is lora_xs; only lora adapters have a PEFT form"
    assert not (tmp_path / "out").exists()
