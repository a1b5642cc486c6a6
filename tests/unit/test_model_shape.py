"""Whether an adapter fits a base model, said before a query needs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from smoa.adapter import Adapter, Manifest
from smoa.errors import InvalidArgument
from smoa.model_shape import ModelShape, folder_name, may_be_same_model, model_name
from smoa.tensor_file import Array

SHAPE = ModelShape(
    layers=2,
    modules={"q_proj": (8, 6), "k_proj": (4, 6), "v_proj": (4, 6), "gate_proj": (10, 6), "up_proj": (10, 6)},
    max_rank=4,
    max_lora_xs_rank=2,
    max_adapter_bytes=1000,
    weight_bytes=2,
)


def lora(*sites: tuple[str, int, int], rank: int = 2) -> Adapter:
    tensors: dict[str, Array] = {}
    for path, outputs, inputs in sites:
        tensors[f"model.layers.{path}.lora_A"] = np.ones((rank, inputs), np.float32)
        tensors[f"model.layers.{path}.lora_B"] = np.ones((outputs, rank), np.float32)
    modules = tuple(dict.fromkeys(path.rpartition(".")[2] for path, _, _ in sites))
    layers = tuple(sorted({int(path.partition(".")[0]) for path, _, _ in sites}))
    return Adapter(Manifest(adapter_id="a", name="a", kind="lora", base_model="b", rank=rank, modules=modules, layers=layers), tensors)


def test_what_fits() -> None:
    SHAPE.check(lora(("0.self_attn.q_proj", 8, 6), ("1.self_attn.v_proj", 4, 6), rank=4))
    SHAPE.check(lora(("0.self_attn.qkv_proj", 16, 6), ("1.mlp.gate_up_proj", 20, 6)))
    manifest = Manifest(adapter_id="a", name="a", kind="lora_xs", base_model="b", rank=2, modules=("q_proj",), layers=(0, 1))
    SHAPE.check(Adapter(manifest, {"q_proj": np.ones((2, 2, 2), np.float32), "q_proj.s": np.ones((2, 2), np.float32)}))


_OTHER = "it is of another base model; give it to an executor of the one that it was trained on"


@pytest.mark.parametrize(
    ("adapter", "shape", "message"),
    [
        (
            lora(("0.self_attn.q_proj", 9, 6)),
            {},
            f"adapter: model.layers.0.self_attn.q_proj is 9x6, the base model's is 8x6; {_OTHER}",
        ),
        (lora(("0.self_attn.q_proj", 8, 5)), {}, f"adapter: model.layers.0.self_attn.q_proj is 8x5, the base model's is 8x6; {_OTHER}"),
        (
            lora(("0.self_attn.qkv_proj", 17, 6)),
            {},
            f"adapter: model.layers.0.self_attn.qkv_proj is 17x6, the base model's is 16x6; {_OTHER}",
        ),
        (lora(("2.self_attn.q_proj", 8, 6)), {}, f"adapter: changes layer 2, the base model has layers 0 to 1; {_OTHER}"),
        (
            lora(("0.mlp.fc1", 8, 6)),
            {},
            f"adapter: changes fc1, the base model has gate_proj, k_proj, q_proj, up_proj, v_proj; {_OTHER}",
        ),
        (
            lora(("0.self_attn.q_proj", 8, 6), ("0.self_attn.qkv_proj", 16, 6)),
            {},
            "adapter: changes q_proj by itself and in a fused linear; ",
        ),
        (
            lora(("0.self_attn.q_proj", 8, 6), rank=5),
            {},
            "rank: 5 is over the executor's 4 for lora; retrain with a rank up to 4, or raise ",
        ),
        (
            lora(("0.self_attn.q_proj", 8, 6)),
            {"max_adapter_bytes": 55},
            "adapter: takes 56 bytes when it is loaded, the executor has room for 55; retrain with a smaller rank, or raise ",
        ),
        (lora(("0.self_attn.qkv_proj", 16, 6)), {"max_adapter_bytes": 135}, "adapter: takes 136 bytes when it is loaded, "),
    ],
)
def test_what_does_not_fit_is_said(adapter: Adapter, shape: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        dataclasses.replace(SHAPE, **shape).check(adapter)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_a_lora_xs_rank_over_the_bases_is_said() -> None:
    manifest = Manifest(adapter_id="a", name="a", kind="lora_xs", base_model="b", rank=3, modules=("q_proj",), layers=(0,))
    with pytest.raises(InvalidArgument, match=r"^rank: 3 is over the executor's 2 for lora_xs; retrain with a rank up to 2$"):
        SHAPE.check(Adapter(manifest, {"q_proj": np.ones((1, 3, 3), np.float32), "q_proj.s": np.ones((1, 3), np.float32)}))


def test_there_and_back() -> None:
    assert ModelShape.from_message(SHAPE.to_message()) == SHAPE


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("/models/llama", "/models/llama"),
        ("/root/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f2", "meta-llama/Llama-3.1-8B"),
        (f"/{'x' * 300}/llama", "llama"),
        ("", ""),
    ],
)
def test_names_of_base_models(text: str, name: str) -> None:
    assert model_name(text) == name


def test_names_of_folders() -> None:
    assert folder_name(Path("/models/qwen3-8b")) == "qwen3-8b"
    assert folder_name(Path("/hub/models--Qwen--Qwen3-8B/snapshots/abc")) == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Qwen/Qwen3-8B", "/models/qwen3-8b/", True),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct", True),
        ("", "anything", True),
        ("C:\\models\\Llama", "llama", True),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", False),
    ],
)
def test_names_that_may_be_of_one_model(first: str, second: str, same: bool) -> None:
    assert may_be_same_model(first, second) is may_be_same_model(second, first) is same
