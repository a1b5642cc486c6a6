"""Adapter files: what is written is read back, and nothing a server could not rely on is ever accepted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import deserialize
from safetensors.numpy import save

from smoa.adapter import (
    GRANULARITIES,
    KINDS,
    SPECIALIZATIONS,
    Adapter,
    Manifest,
    decode,
    digest_of,
    encode,
    granularity_of,
    new_adapter_id,
    site_of,
)
from smoa.errors import InvalidArgument
from smoa.limits import MAX_RANK
from smoa.tensor_file import BFLOAT16, Array

PATH = "model.layers.{}.self_attn.q_proj"


def _lora_xs(rank: int = 2, layers: int = 2, dtype: type[np.floating] = np.float16, seed: int = 0, **changes: Any) -> Adapter:
    numbers = np.random.default_rng(seed)
    modules = ("q_proj", "v_proj")
    tensors: dict[str, Array] = {}
    for module in modules:
        tensors[module] = numbers.standard_normal((layers, rank, rank)).astype(dtype)
        tensors[f"{module}.s"] = np.abs(numbers.standard_normal((layers, rank))).astype(dtype)
    manifest = Manifest(
        adapter_id="01J00000000000000000000000",
        name="jobs",
        kind="lora_xs",
        base_model="base",
        rank=rank,
        modules=modules,
        layers=tuple(range(layers)),
        scaling=0.5,
        tags=("a", "b"),
        parents=("p",),
    )
    return Adapter(dataclasses.replace(manifest, **changes), tensors)


def _lora(rank: int = 2, width: int = 4, out: int = 3, layers: int = 2, seed: int = 0, **changes: Any) -> Adapter:
    numbers = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for layer in range(layers):
        tensors[f"{PATH.format(layer)}.lora_A"] = numbers.standard_normal((rank, width)).astype(np.float32)
        tensors[f"{PATH.format(layer)}.lora_B"] = numbers.standard_normal((out, rank)).astype(np.float32)
    manifest = Manifest(
        adapter_id="01J00000000000000000000001",
        name="jobs",
        kind="lora",
        base_model="base",
        rank=rank,
        modules=("q_proj",),
        layers=tuple(range(layers)),
    )
    return Adapter(dataclasses.replace(manifest, **changes), tensors)


def _weights_digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}|{tensors[name].dtype}|{tensors[name].shape}|".encode() + tensors[name].tobytes())
    return digest.hexdigest()


def _raw(adapter: Adapter, **changes: Any) -> bytes:
    """An adapter file written past every check, with a right weights_sha256."""
    tensors = dict(adapter.tensors)
    fields = {**dataclasses.asdict(adapter.manifest), "weights_sha256": _weights_digest(tensors), **changes}
    return save(tensors, {"smoa": json.dumps(fields)})


def _refusal(data: bytes) -> str:
    with pytest.raises(InvalidArgument) as caught:
        decode(data)
    return str(caught.value)


def _assert_equal(found: Adapter, wanted: Adapter) -> None:
    assert dataclasses.replace(found.manifest, weights_sha256="") == dataclasses.replace(wanted.manifest, weights_sha256="")
    assert set(found.tensors) == set(wanted.tensors)
    for name, tensor in wanted.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found.tensors[name], tensor)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([np.float16, np.float32, np.float64]), st.integers(0, 99))
def test_lora_xs_round_trip(rank: int, layers: int, dtype: type[np.floating], seed: int) -> None:
    adapter = _lora_xs(rank, layers, dtype, seed)
    _assert_equal(decode(encode(adapter)), adapter)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_lora_round_trip(rank: int, width: int, out: int, layers: int, seed: int) -> None:
    adapter = _lora(rank, width, out, layers, seed)
    _assert_equal(decode(encode(adapter)), adapter)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_bfloat16_stays_bfloat16(rank: int, width: int, out: int, seed: int) -> None:
    adapter = _lora(rank, width, out, 1, seed)
    adapter = Adapter(adapter.manifest, {name: tensor.astype(BFLOAT16) for name, tensor in adapter.tensors.items()})
    data = encode(adapter)
    _assert_equal(decode(data), adapter)
    entries = deserialize(data)  # type: ignore[no-untyped-call]
    assert [entry["dtype"] for _, entry in entries] == ["BF16", "BF16"]
    assert encode(decode(data)) == data


def test_each_pair_has_a_rank_and_a_scaling_of_its_own() -> None:
    path, other = PATH.format(0), PATH.format(1)
    large = {f"{path}.lora_A": np.ones((5, 4), np.float32), f"{path}.lora_B": np.ones((3, 5), np.float32)}
    adapter = Adapter(dataclasses.replace(_lora().manifest, rank=5, scaling=2.0, scalings={path: 4.0}), {**_lora().tensors, **large})
    found = decode(encode(adapter))
    _assert_equal(found, adapter)
    assert (found.manifest.scaling_of(path), found.manifest.scaling_of(other), found.parameter_count) == (4.0, 2.0, 5 * 7 + 2 * 7)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scalings": {"model.layers.9.self_attn.q_proj": 1.0}}, "manifest.scalings: names a path that has no pair; "),
        ({"scalings": {PATH.format(0): "1"}}, "manifest.scalings: {'model.layers.0.self_attn.q_proj': '1'} has the wrong type; "),
        ({"scalings": [1]}, "manifest.scalings: [1] has the wrong type; "),
        ({"scalings": {PATH.format(0): float("nan")}}, "manifest.scaling: is not finite; "),
        ({"scaling": 10**400}, "manifest.scaling: is not finite; "),
        ({"scalings": {PATH.format(0): 1.0}, "scaling": 0.0}, "manifest.scaling: is 0 beside others; "),
        ({"rank": 3}, "manifest.rank: 3 is no pair's: the highest is 2; "),
        ({"layers": [0]}, "file: holds tensors outside the manifest's layers; "),
        ({"base_model_name": "n" * 257}, "manifest.base_model_name: holds one over 256 characters; "),
        ({"base_model_name": 5}, "manifest.base_model_name: 5 has the wrong type; "),
    ],
)
def test_what_no_pair_has_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert _refusal(_raw(_lora(), **changes)).startswith(expected)


def test_a_lora_xs_adapter_has_one_scaling() -> None:
    assert _refusal(_raw(_lora_xs(), scalings={"q_proj": 1.0})).startswith("manifest.scalings: is not empty; ")


@pytest.mark.parametrize(
    "path",
    ["model.layers.x.self_attn.q_proj", "model.layers.0.self_attn", "lm_head", "model.layers.0.moe.q_proj", "model.layers.0.mlp.q_proj"],
)
def test_a_linear_outside_the_decoder_layers_is_refused(path: str) -> None:
    tensors = {f"{path}.lora_A": np.ones((2, 4), np.float32), f"{path}.lora_B": np.ones((3, 2), np.float32)}
    assert _refusal(_raw(Adapter(_lora().manifest, tensors))).startswith(f"file: {path!r} is no linear of a decoder layer; ")


def test_a_path_is_a_layer_and_a_module() -> None:
    assert site_of("model.layers.31.mlp.gate_up_proj") == (31, "gate_up_proj")


def test_equal_adapters_give_equal_bytes() -> None:
    adapter = _lora_xs()
    reordered = dict(reversed(list(adapter.tensors.items())))
    strided = {name: np.asfortranarray(tensor) for name, tensor in reordered.items()}
    stale = dataclasses.replace(adapter.manifest, weights_sha256="stale")
    assert encode(Adapter(stale, strided)) == encode(adapter)


def test_decoded_adapter_encodes_to_the_same_bytes() -> None:
    data = encode(_lora())
    assert encode(decode(data)) == data


def test_other_weights_give_other_bytes() -> None:
    assert encode(_lora(seed=1)) != encode(_lora(seed=2))


def test_digest_of_is_sha256() -> None:
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_new_ids_are_26_characters_and_differ() -> None:
    first, second = new_adapter_id(), new_adapter_id()
    assert (len(first), len(second), first != second) == (26, 26, True)


def test_truncated_file_is_refused() -> None:
    data = encode(_lora())
    for length in (0, 4, 8, 100, len(data) - 1):
        assert _refusal(data[:length]).startswith("file: is not a whole safetensors file (")


def test_trailing_bytes_are_refused() -> None:
    assert _refusal(encode(_lora()) + b"x").startswith("file: is not a whole safetensors file (")


def test_other_formats_are_refused() -> None:
    assert _refusal(b"PK\x03\x04 this is a zip file, not an adapter").startswith("file: is not a whole safetensors file (")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert _refusal(data).startswith(("file: is not a whole safetensors file (", "manifest: is missing"))


def test_no_metadata_is_refused() -> None:
    data = save({"a": np.zeros(1, np.float32)})
    assert _refusal(data).startswith("manifest: is missing or malformed ('smoa'); write the file with `smoa adapter train`")


def test_other_metadata_is_refused() -> None:
    data = save({"a": np.zeros(1, np.float32)}, {"format": "pt"})
    assert _refusal(data).startswith("manifest: is missing or malformed ('smoa'); ")


@pytest.mark.parametrize("text", ["{", "[]", "5", "null", "{}", '{"unknown": 1}'])
def test_malformed_manifest_is_refused(text: str) -> None:
    data = save({"a": np.zeros(1, np.float32)}, {"smoa": text})
    assert _refusal(data).startswith("manifest: is missing or malformed (")


@pytest.mark.parametrize("changes", [{"layers": 5}, {"modules": None}, {"surprise": 1}])
def test_manifest_with_a_wrong_field_is_refused(changes: dict[str, Any]) -> None:
    assert _refusal(_raw(_lora(), **changes)).startswith("manifest: is missing or malformed (")


@pytest.mark.parametrize("changes", [{"rank": "2"}, {"rank": None}, {"scaling": "1"}, {"scaling": None}])
def test_manifest_value_of_a_wrong_type_is_refused(changes: dict[str, Any]) -> None:
    assert _refusal(_raw(_lora_xs(), **changes)).startswith("manifest")


@pytest.mark.parametrize("changes", [{"name": 7}, {"tenant": None}, {"tags": [1]}, {"version": "one"}, {"adapter_id": 3}, {"shared": "no"}])
def test_manifest_value_of_a_wrong_type_is_not_accepted(changes: dict[str, Any]) -> None:
    assert _refusal(_raw(_lora_xs(), **changes)).startswith("manifest")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("make", "name"), [(_lora_xs, "q_proj"), (_lora_xs, "v_proj.s"), (_lora, f"{PATH.format(1)}.lora_B")])
def test_weights_that_are_not_finite_are_refused(make: Callable[[], Adapter], name: str, value: float) -> None:
    adapter = make()
    adapter.tensors[name].flat[-1] = value
    message = f"file: {name} holds NaN or infinite weights; retrain with a lower learning rate"
    assert _refusal(_raw(adapter)) == message
    with pytest.raises(InvalidArgument) as caught:
        encode(adapter)
    assert str(caught.value) == message


def test_lora_xs_core_of_wrong_shape_is_refused() -> None:
    adapter = _lora_xs()
    wrong = {**adapter.tensors, "q_proj": np.zeros((2, 2, 3), np.float16)}
    assert _refusal(_raw(Adapter(adapter.manifest, wrong))).startswith("file: q_proj has shape (2, 2, 3), not (2, 2, 2); ")


def test_lora_xs_singular_values_of_wrong_shape_are_refused() -> None:
    adapter = _lora_xs()
    wrong = {**adapter.tensors, "q_proj.s": np.zeros((2, 3), np.float16)}
    assert _refusal(_raw(Adapter(adapter.manifest, wrong))).startswith("file: q_proj.s has shape (2, 3), not (2, 2); ")


def test_lora_xs_without_singular_values_is_refused() -> None:
    adapter = _lora_xs()
    fewer = {name: tensor for name, tensor in adapter.tensors.items() if name != "v_proj.s"}
    message = _refusal(_raw(Adapter(adapter.manifest, fewer)))
    assert message.startswith("file: tensors ['q_proj', 'q_proj.s', 'v_proj'] are not ['q_proj', 'q_proj.s', 'v_proj', 'v_proj.s']; ")


def test_lora_of_a_rank_over_the_manifests_is_refused() -> None:
    path = PATH.format(0)
    assert _refusal(_raw(_lora(), rank=1)) == f"file: {path} has shapes (2, 4) and (3, 2); make them [r, in] and [out, r], r up to 1"


def test_a_pair_of_two_ranks_is_refused() -> None:
    path = PATH.format(1)
    wrong = {**_lora().tensors, f"{path}.lora_B": np.ones((3, 1), np.float32)}
    assert _refusal(_raw(Adapter(_lora().manifest, wrong))).startswith(f"file: {path} has shapes (2, 4) and (3, 1); ")


def test_lora_half_of_a_pair_is_refused() -> None:
    adapter = _lora()
    fewer = {name: tensor for name, tensor in adapter.tensors.items() if name != f"{PATH.format(1)}.lora_B"}
    assert _refusal(_raw(Adapter(adapter.manifest, fewer))) == f"file: {PATH.format(1)} lacks lora_A or lora_B; write both"


def test_lora_of_other_modules_than_the_manifest_is_refused() -> None:
    assert _refusal(_raw(_lora(), modules=["k_proj"])).startswith("file: tensors are not the manifest's modules; ")


def test_lora_with_an_extra_tensor_is_refused() -> None:
    adapter = _lora()
    more = {**adapter.tensors, f"{PATH.format(0)}.other": np.zeros(1, np.float32)}
    assert _refusal(_raw(Adapter(adapter.manifest, more))).startswith("file: tensors are not the manifest's modules; ")


@pytest.mark.parametrize("make", [_lora, _lora_xs])
def test_altered_weights_are_refused(make: Callable[[], Adapter]) -> None:
    data = bytearray(encode(make()))
    data[-2] ^= 1
    assert _refusal(bytes(data)).startswith("file: weights do not match the manifest's weights_sha256; the file was altered")


def test_unknown_kind_is_refused() -> None:
    assert _refusal(_raw(_lora(), kind="dora")) == "manifest.kind: 'dora' is unknown; use one of lora, lora_xs"


def test_unknown_specialization_is_refused() -> None:
    assert _refusal(_raw(_lora(), specialization="x")).startswith("manifest.specialization: 'x' is unknown; use one of general, domain, ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        *(({"version": n}, f"manifest.version: {n} is outside 1..2147483647; count versions from 1") for n in (0, -1, 2**31, 2**63)),
        ({"name": ""}, "manifest.name: has 0 characters; give 1 to 256"),
        ({"name": "n" * 257}, "manifest.name: has 257 characters; give 1 to 256"),
        ({"tags": [str(n) for n in range(65)]}, "manifest.tags: holds 65; send at most 64"),
        ({"tags": ["t" * 257]}, "manifest.tags: holds one over 256 characters; shorten it"),
    ],
)
def test_what_no_event_or_search_could_carry_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert _refusal(_raw(_lora(), **changes)) == expected


@pytest.mark.parametrize("rank", [0, -1, 1025])
def test_rank_outside_its_bounds_is_refused(rank: int) -> None:
    assert _refusal(_raw(_lora(), rank=rank)) == f"manifest.rank: {rank} is outside 1..1024; retrain with a rank inside it"


def test_greatest_rank_is_accepted() -> None:
    assert decode(encode(_lora(rank=MAX_RANK, layers=1))).manifest.rank == 1024


@pytest.mark.parametrize("scaling", [float("nan"), float("inf")])
def test_scaling_that_is_not_finite_is_refused(scaling: float) -> None:
    assert _refusal(_raw(_lora(), scaling=scaling)) == "manifest.scaling: is not finite; write a finite scaling"


def test_no_modules_are_refused() -> None:
    assert _refusal(_raw(_lora(), modules=[])).startswith("manifest.modules: is empty; ")


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_integer_weights_are_refused(dtype: type[Any]) -> None:
    adapter = _lora()
    tensors: dict[str, Any] = {name: np.ones(tensor.shape, dtype) for name, tensor in adapter.tensors.items()}
    message = _refusal(_raw(Adapter(adapter.manifest, tensors)))
    assert message.startswith("file: dtype ")
    assert message.endswith(" is not supported; save weights as float16, bfloat16 or float32")


def test_encode_refuses_what_decode_refuses() -> None:
    adapter = _lora()
    tensors: dict[str, Any] = {name: np.ones(tensor.shape, np.int32) for name, tensor in adapter.tensors.items()}
    with pytest.raises(InvalidArgument):
        encode(Adapter(adapter.manifest, tensors))


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (1, "NANO"),
        (10_000, "NANO"),
        (10_001, "MICRO"),
        (50_000, "MICRO"),
        (50_001, "MINI"),
        (250_000, "MINI"),
        (250_001, "SMALL"),
        (1_000_000, "SMALL"),
        (1_000_001, "MEDIUM"),
        (10_000_000, "MEDIUM"),
        (10_000_001, "LARGE"),
        (10**12, "LARGE"),
    ],
)
def test_granularity_boundaries(count: int, name: str) -> None:
    assert granularity_of(count) == name


def test_singular_values_are_not_parameters() -> None:
    adapter = _lora_xs(rank=3, layers=4)
    assert (adapter.parameter_count, adapter.granularity) == (2 * 4 * 3 * 3, "NANO")


def test_vocabulary() -> None:
    assert (len(GRANULARITIES), len(SPECIALIZATIONS), KINDS) == (6, 10, ("lora", "lora_xs"))
