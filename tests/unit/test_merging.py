"""Merge maths in factored form against the dense matrices they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from services.optimizer.merging import cosines, lora_inner, merged, sketch
from smoa.adapter import Adapter, Array, Manifest, decode, encode

Matrix = NDArray[np.float64]
PATHS = tuple(f"model.layers.{layer}.self_attn.q_proj" for layer in range(2))
RANK, OUT, WIDTH, LAYERS = 3, 10, 12, 2
_bases = np.random.default_rng(7)
U = [np.linalg.qr(_bases.standard_normal((OUT, RANK)))[0] for _ in range(LAYERS)]
V = [np.linalg.qr(_bases.standard_normal((WIDTH, RANK)))[0] for _ in range(LAYERS)]
S = np.sort(_bases.uniform(1, 5, (LAYERS, RANK)))[:, ::-1].astype(np.float32)


def _manifest(adapter_id: str, kind: str, rank: int, module: str, scaling: float) -> Manifest:
    return Manifest(
        adapter_id=adapter_id,
        name=adapter_id,
        kind="lora" if kind == "lora" else "lora_xs",
        base_model="b",
        rank=rank,
        modules=(module,),
        layers=tuple(range(LAYERS)),
        scaling=scaling,
    )


def _lora_xs(adapter_id: str, seed: int, scaling: float = 1.0, dtype: type[np.floating] = np.float32) -> Adapter:
    cores = np.random.default_rng(seed).standard_normal((LAYERS, RANK, RANK)).astype(dtype)
    return Adapter(_manifest(adapter_id, "lora_xs", RANK, "q_proj", scaling), {"q_proj": cores, "q_proj.s": S.astype(dtype)})


def _lora(adapter_id: str, seed: int, scaling: float = 1.0, rank: int = RANK, out: int = OUT, width: int = WIDTH) -> Adapter:
    numbers = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for path in PATHS:
        tensors[f"{path}.lora_A"] = numbers.standard_normal((rank, width)).astype(np.float32)
        tensors[f"{path}.lora_B"] = numbers.standard_normal((out, rank)).astype(np.float32)
    return Adapter(_manifest(adapter_id, "lora", rank, "q_proj", scaling), tensors)


def _dense(adapter: Adapter) -> list[Matrix]:
    scaling, tensors = adapter.manifest.scaling, adapter.tensors
    if adapter.manifest.kind == "lora":
        return [scaling * tensors[f"{path}.lora_B"].astype(np.float64) @ tensors[f"{path}.lora_A"] for path in PATHS]
    return [scaling * U[n] @ np.diag(S[n].astype(np.float64)) @ tensors["q_proj"][n].astype(np.float64) @ V[n].T for n in range(LAYERS)]


def _inner(first: Adapter, second: Adapter) -> float:
    return float(sum(np.sum(a * b) for a, b in zip(_dense(first), _dense(second), strict=True)))


def test_sketch_inner_product_is_the_dense_one() -> None:
    first, second = _lora_xs("a", 1, 0.5), _lora_xs("b", 2, 3.0)
    assert float(sketch(first) @ sketch(second)) == pytest.approx(_inner(first, second), rel=1e-9)
    assert float(sketch(first) @ sketch(first)) == pytest.approx(_inner(first, first), rel=1e-9)


def test_lora_inner_product_is_the_dense_one() -> None:
    first, second = _lora("a", 1, 0.5), _lora("b", 2, 3.0)
    assert lora_inner(first, second) == pytest.approx(_inner(first, second), rel=1e-6)
    assert lora_inner(second, first) == pytest.approx(lora_inner(first, second), rel=1e-6)


@pytest.mark.parametrize("make", [_lora, _lora_xs])
def test_cosines_are_the_dense_ones_by_lower_and_higher_id(make: Callable[[str, int, float], Adapter]) -> None:
    adapters = [make(n, i, i + 1) for i, n in enumerate(("c", "a", "b"))]
    found = cosines(adapters)
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert cosines(adapters[::-1]) == pytest.approx(found)
    by_id = {adapter.manifest.adapter_id: adapter for adapter in adapters}
    for (low, high), value in found.items():
        one, two = by_id[low], by_id[high]
        assert value == pytest.approx(_inner(one, two) / np.sqrt(_inner(one, one) * _inner(two, two)), abs=1e-6)


def test_cosines_of_few() -> None:
    assert cosines([]) == {}
    assert cosines([_lora_xs("a", 1)]) == {}


def test_cosine_of_the_opposite_and_of_zero() -> None:
    first = _lora_xs("a", 1)
    opposite, zero = (
        Adapter(_lora_xs(n, 1).manifest, {**first.tensors, "q_proj": first.tensors["q_proj"] * f}) for n, f in (("b", -1), ("c", 0))
    )
    assert cosines([first, opposite, zero]) == pytest.approx({("a", "b"): -1.0, ("a", "c"): 0.0, ("b", "c"): 0.0})


def test_lora_merged_with_itself_is_itself() -> None:
    adapter = _lora("a", 1, 2.0)
    for found, wanted in zip(_dense(merged(adapter, adapter, (1, 3), "m")), _dense(adapter), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * float(np.abs(wanted).max()))


def test_lora_xs_merged_with_itself_is_itself() -> None:
    adapter = _lora_xs("a", 1, dtype=np.float16)
    child = merged(adapter, adapter, (1, 2), "m")
    assert child.tensors["q_proj"].dtype == np.float16
    np.testing.assert_allclose(child.tensors["q_proj"], adapter.tensors["q_proj"], rtol=1e-3)
    np.testing.assert_array_equal(child.tensors["q_proj.s"], adapter.tensors["q_proj.s"])


def test_lora_xs_weighted_average_is_the_dense_one() -> None:
    first, second = _lora_xs("a", 1, 0.5), _lora_xs("b", 2, 3.0)
    child = merged(first, second, (1, 3), "m")
    for found, one, two in zip(_dense(child), _dense(first), _dense(second), strict=True):
        np.testing.assert_allclose(found, 0.25 * one + 0.75 * two, atol=1e-5)


def test_lora_recompression_is_the_best_of_its_rank() -> None:
    first, second = _lora("a", 1, 0.5), _lora("b", 2, 2.0)
    child = merged(first, second, (1, 3), "m")
    for found, one, two in zip(_dense(child), _dense(first), _dense(second), strict=True):
        average = 0.25 * one + 0.75 * two
        u, s, vt = np.linalg.svd(average)
        best = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
        least = np.linalg.norm(average - best)
        assert np.linalg.norm(average - found) == pytest.approx(least, rel=0.01)


def test_child_is_a_valid_file_of_the_same_kind() -> None:
    for first, second in ((_lora("a", 1), _lora("b", 2)), (_lora_xs("a", 1), _lora_xs("b", 2))):
        child = decode(encode(merged(first, second, (1, 1), "m")))
        assert (child.manifest.kind, child.manifest.rank, child.manifest.parents) == (first.manifest.kind, RANK, ("a", "b"))


def test_child_id_follows_from_the_merge_id() -> None:
    first, second = _lora_xs("a", 1), _lora_xs("b", 2)
    ids = [merged(first, second, (1, 1), merge_id).manifest.adapter_id for merge_id in ("m", "m", "n")]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 26


def test_child_is_shared_only_if_both_are_and_has_the_tags_of_both() -> None:
    first, second = _lora_xs("a", 1), _lora_xs("b", 2)
    one = Adapter(dataclasses.replace(first.manifest, shared=True, tags=("x", "y")), first.tensors)
    two = Adapter(dataclasses.replace(second.manifest, tags=("y", "z")), second.tensors)
    child = merged(one, two, (1, 1), "m").manifest
    assert (child.shared, child.tags) == (False, ("x", "y", "z"))


@pytest.mark.parametrize(
    ("out", "width"),
    [(4, 12), (12, 4)],
)
def test_rank_over_the_size_of_the_linear_merges(out: int, width: int) -> None:
    child = merged(_lora("a", 1, rank=6, out=out, width=width), _lora("b", 2, rank=6, out=out, width=width), (1, 1), "m")
    assert decode(encode(child)).manifest.rank == 6
