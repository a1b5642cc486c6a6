"""PEFT folders in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from smoa.adapter import Adapter, Manifest, decode, encode
from smoa.errors import InvalidArgument
from smoa.peft import export_folder, import_folder
from smoa.peft_config import FIELDS_WITHOUT_EFFECT, READ_FIELDS, parse_config
from smoa.tensor_file import BFLOAT16, read_tensors

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
    linears = ["model.layers.0.self_attn.q_proj", "model.layers.3.mlp.up_proj", "model.layers.3.self_attn.q_proj"]
    assert (config["r"], config["lora_alpha"], config["target_modules"], config["layers_to_transform"]) == (4, 8.0, sorted(linears), None)
    again = import_folder(tmp_path / "out", "base", name="n")
    assert (again.manifest.scaling, again.manifest.layers) == (adapter.manifest.scaling, adapter.manifest.layers)


def test_modules_of_all_its_layers_are_exported_by_their_names(tmp_path: Path) -> None:
    attention = {name: tensor for name, tensor in _tensors().items() if "q_proj" in name}
    export_folder(import_folder(_folder(tmp_path, attention), "base"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["target_modules"], config["layers_to_transform"], config["rank_pattern"]) == (["q_proj"], [0, 3], {})


def test_rslora_scaling(tmp_path: Path) -> None:
    assert import_folder(_folder(tmp_path, use_rslora=True), "base").manifest.scaling == 4.0


def test_rslora_scaling_survives_a_round_trip(tmp_path: Path) -> None:
    export_folder(import_folder(_folder(tmp_path, use_rslora=True), "base"), tmp_path / "out")
    assert import_folder(tmp_path / "out", "base").manifest.scaling == 4.0


def test_ranks_and_scalings_of_their_own(tmp_path: Path) -> None:
    tensors = _tensors()
    tensors[f"{PREFIX}.3.mlp.up_proj.lora_A.weight"] = np.ones((2, 6), np.float32)
    tensors[f"{PREFIX}.3.mlp.up_proj.lora_B.weight"] = np.ones((5, 2), np.float32)
    patterns = {"rank_pattern": {r".*\.3\..*up_proj": 2, "up_proj": 9}, "alpha_pattern": {"layers.3.self_attn.q_proj": 32}}
    adapter = import_folder(_folder(tmp_path, tensors, base_model_name_or_path="a/b", **patterns), "base")
    manifest, (q_0, q_3, up_3) = (
        adapter.manifest,
        (f"model.layers.{n}" for n in ("0.self_attn.q_proj", "3.self_attn.q_proj", "3.mlp.up_proj")),
    )
    assert (manifest.rank, manifest.base_model_name) == (4, "a/b")
    assert [manifest.scaling_of(path) for path in (q_0, q_3, up_3)] == [2.0, 8.0, 4.0]
    assert len(manifest.scalings) == 2
    export_folder(decode(encode(adapter)), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("a/b", 4, 8.0)
    assert (config["target_modules"], config["layers_to_transform"]) == (sorted([q_0, q_3, up_3]), None)
    again = import_folder(tmp_path / "out", "base", adapter_id=manifest.adapter_id, name="jobs")
    assert encode(again) == encode(adapter)


def test_bfloat16_is_kept(tmp_path: Path) -> None:
    tensors = {name: tensor.astype(BFLOAT16) for name, tensor in _tensors().items()}
    adapter = decode(encode(import_folder(_folder(tmp_path, tensors), "base")))
    assert {tensor.dtype for tensor in adapter.tensors.values()} == {BFLOAT16}
    export_folder(adapter, tmp_path / "out")
    found, _ = read_tensors((tmp_path / "out" / "adapter_model.safetensors").read_bytes())
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize(
    "spelling",
    [
        "base_model.model.model.layers.{}.lora_{}.weight",
        "base_model.model.model.layers.{}.lora_{}.default.weight",
        "base_model.model.model.layers.{}.lora_{}.my-adapter.weight",
        "base_model.model.model.language_model.layers.{}.lora_{}.weight",
        "base_model.model.language_model.model.layers.{}.lora_{}.weight",
        "base_model.model.layers.{}.lora_{}.weight",
        "model.language_model.layers.{}.lora_{}.weight",
        "model.layers.{}.lora_{}.weight",
        "_orig_mod.base_model.model.model.layers.{}.lora_{}.weight",
        "module.base_model.model._orig_mod.model.layers.{}.lora_{}.weight",
    ],
)
def test_names_of_every_known_spelling(tmp_path: Path, spelling: str) -> None:
    tensors = {}
    for name, tensor in _tensors().items():
        site, _, side = name.removeprefix(f"{PREFIX}.").removesuffix(".weight").rpartition(".lora_")
        tensors[spelling.format(site, side)] = tensor
    adapter = import_folder(_folder(tmp_path, tensors), "base")
    assert set(adapter.tensors) == {name.removeprefix("base_model.model.").removesuffix(".weight") for name in _tensors()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"target_modules": r".*\.(q_proj|up_proj)"}, None),
        ({"target_modules": "all-linear"}, None),
        ({"target_modules": "All-Linear", "layers_to_transform": [7]}, None),
        ({"target_modules": ["q_proj", "model.layers.3.mlp.up_proj"], "layers_to_transform": [0, 3]}, None),
        ({"layers_to_transform": [0, 3], "layers_pattern": "layers"}, None),
        ({"layers_to_transform": [0, 3], "layers_pattern": ["h", "layers"]}, None),
        ({"exclude_modules": ["k_proj", "lm_head"]}, None),
        ({"target_modules": ["q_proj"]}, "model.layers.3.mlp.up_proj"),
        ({"target_modules": ["proj"]}, "model.layers.0.self_attn.q_proj"),
        ({"target_modules": "q_proj"}, "model.layers.0.self_attn.q_proj"),
        ({"exclude_modules": r".*\.0\..*"}, "model.layers.0.self_attn.q_proj"),
        ({"exclude_modules": ["up_proj"]}, "model.layers.3.mlp.up_proj"),
        ({"layers_to_transform": 0}, "model.layers.3.mlp.up_proj"),
        ({"layers_to_transform": [0, 3], "layers_pattern": "h"}, "model.layers.0.self_attn.q_proj"),
    ],
)
def test_a_tensor_that_peft_would_leave_out_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str | None) -> None:
    folder = _folder(tmp_path, **changes)
    if expected is None:
        assert len(import_folder(folder, "base").tensors) == 6
    else:
        assert _refusal(folder).startswith(f"adapter_config.json: does not target {expected}, which ")


_TARGETS = "train again on attention and MLP modules only"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_dora": True}, "adapter_config.json: asks for use_dora; train again without it: DoRA rescales "),
        ({"modules_to_save": ["lm_head"]}, "adapter_config.json: asks for modules_to_save; train again without it: whole modules "),
        (
            {"trainable_token_indices": [1]},
            "adapter_config.json: asks for trainable_token_indices; train again without it: new embeddings ",
        ),
        ({"layer_replication": [[0, 4]]}, "adapter_config.json: asks for layer_replication; train again without it: it makes another "),
        ({"alora_invocation_tokens": [1]}, "adapter_config.json: asks for alora_invocation_tokens; train again without it: an adapter "),
        *(
            ({name: value}, f"adapter_config.json: asks for {name}; only plain LoRA can be imported: train again without it, or ")
            for name, value in (("lora_bias", True), ("use_qalora", True), ("kasa_config", {"beta": 1}), ("of_next_year", "x"))
        ),
        ({"peft_type": "LOHA"}, "adapter_config.json: has peft_type 'LOHA'; only LoRA adapters can be imported: train one of them"),
        ({"peft_type": None}, "adapter_config.json: has peft_type 'None'; "),
        *(
            (
                {"init_lora_weights": name},
                f"init_lora_weights: is {name!r}, which changed the base model's weights before the training; save the adapter again with "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes it a plain LoRA",
            )
            for name in ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga")
        ),
        ({"init_lora_weights": "loftq"}, "init_lora_weights: is 'loftq', which changed the base model's weights; train again with the "),
        ({"init_lora_weights": "of_next_year"}, "init_lora_weights: is 'of_next_year', which may have changed the base model's weights; "),
        ({"r": 2}, "adapter_config.json: says rank 2 for model.layers.0.self_attn.q_proj, adapter_model.safetensors has 4; "),
        ({"rank_pattern": {"up_proj": 2}}, "adapter_config.json: says rank 2 for model.layers.3.mlp.up_proj, "),
        ({"rank_pattern": {"(": 2}}, "adapter_config.json: has rank_pattern '(.*\\\\.)?(()$', no regular expression ("),
        ({"rank_pattern": {"q_proj": "2"}}, "adapter_config.json: has rank_pattern '2'; save the adapter again with PEFT"),
        ({"alpha_pattern": [1]}, "adapter_config.json: has alpha_pattern '[1]'; save the adapter again with PEFT"),
        ({"target_modules": "["}, "adapter_config.json: has target_modules '[', no regular expression ("),
        ({"target_modules": {"a": 1}}, "adapter_config.json: has target_modules "),
        ({"layers_to_transform": ["0"]}, "adapter_config.json: has layers_to_transform "),
        ({"lora_alpha": 10**400}, "adapter_config.json: has lora_alpha "),
    ],
)
def test_what_plain_lora_is_not_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert _refusal(_folder(tmp_path, **changes)).startswith(expected)


@pytest.mark.parametrize("value", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_model_alone(tmp_path: Path, value: object) -> None:
    assert import_folder(_folder(tmp_path, init_lora_weights=value), "base").manifest.rank == 4


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from([*sorted(READ_FIELDS), *sorted(FIELDS_WITHOUT_EFFECT), "use_dora", "of_next_year"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-1, 9) | st.floats() | st.sampled_from(["", "q_proj", "(", "LORA", "pissa", "a/b"]),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["q_proj", "(", "0"]), inner, max_size=2),
            max_leaves=3,
        ),
        max_size=3,
    )
)
def test_any_configuration_is_read_or_refused_in_a_sentence(changes: dict[str, Any]) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **changes}
    try:
        found = parse_config(json.loads(json.dumps(config)))
    except InvalidArgument:
        return
    assert found.rank_of("model.layers.0.self_attn.q_proj") >= 1
    assert found.targets("model.layers.0.self_attn.q_proj") in (True, False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base_model.model.lm_head.lora_A.weight", f"the output layer, which every other adapter shares; {_TARGETS}"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", f"embeddings, which every other adapter shares; {_TARGETS}"),
        (f"{PREFIX}.0.self_attn.q_proj.lora_magnitude_vector", "DoRA's magnitudes, which cannot be served; train again without use_dora"),
        (f"{PREFIX}.0.self_attn.q_proj.base_layer.bias", "biases, which would change the base model; train again with bias none"),
        (f"{PREFIX}.0.mlp.experts.3.up_proj.lora_A.weight", "experts, which no base model here has; train on attention and MLP "),
        ("base_model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight", "outside the decoder layers; train on attention and "),
        (f"{PREFIX}.0.input_layernorm.weight", "outside the decoder layers; train on attention and "),
    ],
)
def test_a_tensor_outside_the_decoders_linears_is_named(tmp_path: Path, name: str, expected: str) -> None:
    message = _refusal(_folder(tmp_path, {**_tensors(), name: np.zeros((4, 6), np.float32)}))
    assert message.startswith(f"adapter_model.safetensors: holds {name}, {expected}")


def test_what_is_no_single_whole_adapter_is_refused(tmp_path: Path) -> None:
    parts = {name: tensor.ravel()[:3] if "lora_B" in name else tensor for name, tensor in _tensors().items()}
    assert ", a part of it; gather the parts (DeepSpeed ZeRO-3, FSDP) and save the adapter again" in _refusal(_folder(tmp_path, parts))
    (tmp_path / "jobs").rename(tmp_path / "parts")
    both = [(name.removesuffix("weight"), tensor) for name, tensor in _tensors().items()]
    twice = {f"{name}{adapter}.weight": tensor for name, tensor in both for adapter in "ab"}
    assert _refusal(_folder(tmp_path, twice)).startswith("adapter_model.safetensors: holds model.layers.0.self_attn.q_proj twice, once as ")
    (tmp_path / "jobs").rename(tmp_path / "twice")
    two = {f"{name}{'a' if '.0.' in name else 'b'}.weight": tensor for name, tensor in both}
    assert _refusal(_folder(tmp_path, two)) == "adapter_model.safetensors: holds the adapters a, b; save each in a folder of its own"
    (tmp_path / "jobs").rename(tmp_path / "two")
    assert _refusal(_folder(tmp_path, {})) == "adapter_model.safetensors: holds no weights; save the adapter again with PEFT"


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
