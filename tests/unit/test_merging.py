"""Merge maths in factored form against the dense matrices they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.optimizer.policy.merging import METHODS, Method, checked_method, cosines, lora_inner, merged, random_sketch, sketch
from smoa.adapter import Adapter, Manifest, decode, encode
from smoa.errors import InvalidArgument
from smoa.tensor_file import BFLOAT16, Array

Matrix = NDArray[np.float64]
PATHS = tuple(f"model.layers.{layer}.self_attn.q_proj" for layer in range(2))
RANK, OUT, WIDTH, LAYERS = 3, 10, 12, 2
_bases = np.random.default_rng(7)
U = [np.linalg.qr(_bases.standard_normal((OUT, RANK)))[0] for _ in range(LAYERS)]
V = [np.linalg.qr(_bases.standard_normal((WIDTH, RANK)))[0] for _ in range(LAYERS)]
S = np.sort(_bases.uniform(1, 5, (LAYERS, RANK)))[:, ::-1].astype(np.float32)


ID = "01J0000000000000000000000"
"""The beginning of one that a file may have; a letter more is one."""


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
        pairs = [(tensors[f"{path}.lora_B"].astype(np.float64), tensors[f"{path}.lora_A"].astype(np.float64)) for path in PATHS]
        return [adapter.manifest.scaling_of(path) * b @ a for path, (b, a) in zip(PATHS, pairs, strict=True)]
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
    for found, wanted in zip(_dense(merged([adapter, adapter], (1, 3), "m").adapter), _dense(adapter), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_lora_xs_merged_with_itself_is_itself_to_the_last_bit(dtype: type[np.floating]) -> None:
    adapter = _lora_xs("a", 1, scaling=0.3, dtype=dtype)
    child = merged([adapter] * 3, (1, 2, 5), "m").adapter
    assert child.manifest.scaling == 0.3
    for name, tensor in adapter.tensors.items():
        assert child.tensors[name].dtype == dtype
        np.testing.assert_array_equal(child.tensors[name], tensor)


@pytest.mark.parametrize("make", [_lora, _lora_xs])
@pytest.mark.parametrize("method", ["average", "ties", "dare"])
def test_the_order_in_which_they_are_given_does_not_matter(make: Callable[..., Adapter], method: Method) -> None:
    adapters, weights = [make(name, seed, seed + 1.0) for seed, name in enumerate("abcd")], (1.0, 4.0, 2.0, 3.0)
    straight = merged(adapters, weights, "m", method=method, density=0.5).adapter
    back = merged(adapters[::-1], weights[::-1], "m", method=method, density=0.5).adapter
    assert straight.manifest == back.manifest
    for name, tensor in straight.tensors.items():
        np.testing.assert_array_equal(back.tensors[name], tensor)


@pytest.mark.parametrize("make", [_lora, _lora_xs])
def test_grouping_does_not_matter_while_nothing_is_cut_off(make: Callable[..., Adapter]) -> None:
    a, b, c, d = (make(name, seed, seed + 1.0) for seed, name in enumerate("abcd"))
    whole = merged([a, b, c, d], (1, 4, 2, 3), "m", max_error=0.0).adapter
    left, right = merged([a, b], (1, 4), "l", max_error=0.0).adapter, merged([c, d], (2, 3), "r", max_error=0.0).adapter
    for grouped in (
        merged([left, right], (5, 5), "m", max_error=0.0),
        merged([merged([left, c], (5, 2), "x", max_error=0.0).adapter, d], (7, 3), "m", max_error=0.0),
    ):
        for found, wanted in zip(_dense(grouped.adapter), _dense(whole), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5 * float(np.abs(wanted).max()))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(count=st.integers(2, 5), rank=st.integers(1, 12), seed=st.integers(0, 1000))
def test_the_error_is_the_least_of_the_rank_and_is_told(count: int, rank: int, seed: int) -> None:
    adapters = [_lora(f"{number}", seed + number, number + 0.5) for number in range(count)]
    child = merged(adapters, range(1, count + 1), "m", rank=rank)
    wanted = [
        sum(w * part for w, part in zip(range(1, count + 1), parts, strict=True)) / sum(range(1, count + 1))
        for parts in zip(*map(_dense, adapters), strict=True)
    ]
    least = lost = total = 0.0
    for found, one in zip(_dense(child.adapter), wanted, strict=True):
        s = np.linalg.svd(one, compute_uv=False)
        least, lost, total = least + float(np.sum(s[rank:] ** 2)), lost + float(np.sum((found - one) ** 2)), total + float(np.sum(one**2))
    assert child.error == pytest.approx(np.sqrt(least / total), abs=1e-6)
    assert np.sqrt(lost / total) == pytest.approx(child.error, abs=1e-5)


def test_the_least_rank_within_an_error_is_found() -> None:
    adapters = [_lora(name, seed) for seed, name in enumerate("abc")]
    errors = {rank: merged(adapters, (1, 1, 1), "m", rank=rank).error for rank in range(1, 10)}
    for wanted in (0.0, 0.1, 0.3, 0.6):
        child = merged(adapters, (1, 1, 1), "m", max_error=wanted)
        assert child.error <= wanted + 1e-9
        assert child.adapter.manifest.rank == min(rank for rank, error in errors.items() if error <= wanted + 1e-9)


def _uneven(adapter_id: str, seed: int) -> Adapter:
    """In bfloat16, its second pair of a higher rank and another scaling than its first."""
    numbers, adapter = np.random.default_rng(seed + 50), _lora(adapter_id, seed, 0.5)
    larger: dict[str, Array] = {
        f"{PATHS[1]}.lora_A": numbers.standard_normal((RANK + 2, WIDTH)).astype(np.float32),
        f"{PATHS[1]}.lora_B": numbers.standard_normal((OUT, RANK + 2)).astype(np.float32),
    }
    tensors = {name: tensor.astype(BFLOAT16) for name, tensor in {**adapter.tensors, **larger}.items()}
    manifest = dataclasses.replace(adapter.manifest, rank=RANK + 2, scalings={PATHS[1]: 3.0 + seed})
    return decode(encode(Adapter(manifest, tensors)))


def test_ranks_and_scalings_of_each_pair_are_merged() -> None:
    first, second = _uneven(f"{ID}A", 1), _uneven(f"{ID}B", 2)
    assert lora_inner(first, second) == pytest.approx(_inner(first, second), rel=1e-9)
    wanted = [(one + 3 * two) / 4 for one, two in zip(*map(_dense, (first, second)), strict=True)]
    for method, largest in (("average", 2 * RANK + 4), ("ties", 10)):
        child = merged([first, second], (1, 3), f"{ID}M", method=checked_method(method), rank=20, density=1.0)
        assert (child.adapter.manifest.rank, dict(child.adapter.manifest.scalings)) == (largest, {})
        decode(encode(child.adapter))
        if method == "average":
            assert child.error == pytest.approx(0, abs=1e-6)
            assert {len(tensor) for name, tensor in child.adapter.tensors.items() if name.endswith("A")} == {2 * RANK, largest}
            for found, one in zip(_dense(child.adapter), wanted, strict=True):
                np.testing.assert_allclose(found, one, atol=1e-5 * float(np.abs(one).max()))
    louder = Adapter(dataclasses.replace(first.manifest, scaling=1.0, scalings={PATHS[1]: 8.0}), first.tensors)
    np.testing.assert_allclose(random_sketch(louder), random_sketch(first), atol=1e-6)


def test_ties_keeps_the_largest_and_the_sign_of_most() -> None:
    """Figure 1 of the paper, with three deltas of four numbers; the last is trimmed in each."""
    deltas = [np.array([[3.0, -2.0, 1.0, 0.1]]), np.array([[1.0, 4.0, -3.0, 0.1]]), np.array([[2.0, -5.0, -1.0, 0.1]])]
    adapters = [_flat(name, delta) for name, delta in zip("abc", deltas, strict=True)]
    child = merged(adapters, (1, 1, 1), "m", method="ties", density=0.75, rank=1).adapter
    np.testing.assert_allclose(_one(child), [[2.0, -3.5, -2.0, 0.0]], atol=1e-6)


def test_ties_of_one_kind_is_the_trimmed_average() -> None:
    adapter = _lora("a", 1)
    child = merged([adapter, adapter], (1, 3), "m", method="ties", density=1.0)
    for found, wanted in zip(_dense(child.adapter), _dense(adapter), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * float(np.abs(wanted).max()))


def test_dare_is_the_average_in_expectation_and_the_same_for_the_same_merge() -> None:
    adapters = [_lora("a", 1), _lora("b", 2)]
    wanted = [(one + two) / 2 for one, two in zip(*map(_dense, adapters), strict=True)]
    children = [merged(adapters, (1, 1), f"m{number}", method="dare", density=0.5, rank=10).adapter for number in range(300)]
    for found, one in zip(zip(*map(_dense, children), strict=True), wanted, strict=True):
        np.testing.assert_allclose(np.mean(found, 0), one, atol=0.5)
    again = merged(adapters, (1, 1), "m0", method="dare", density=0.5, rank=10).adapter
    for name, tensor in children[0].tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)


@pytest.mark.parametrize("make", [_lora, _lora_xs])
def test_cosines_of_sketches_are_about_those_of_the_deltas(make: Callable[..., Adapter]) -> None:
    first, errors = make("a", 1), []
    for share in np.linspace(0.0, 1.0, 11):
        for seed in range(5):
            other = merged([make("a", 1), make("b", 100 + seed)], (share + 1e-9, 1 - share + 1e-9), "m", max_error=0.0).adapter
            other = Adapter(dataclasses.replace(other.manifest, adapter_id="b"), other.tensors)
            [exact] = cosines([first, other]).values()
            errors.append(float(random_sketch(first) @ random_sketch(other)) - exact)
            if exact > 0.95:
                assert abs(errors[-1]) < 0.1
    assert abs(np.mean(errors)) < 0.1
    assert np.std(errors) < 0.25


def test_a_sketch_follows_from_the_file_alone() -> None:
    adapter = _lora(f"{ID}A", 1, 2.0)
    again = random_sketch(decode(encode(adapter)))
    np.testing.assert_array_equal(random_sketch(adapter), again)
    assert (again.dtype, again.shape) == (np.dtype(np.float32), (256,))
    assert float(np.linalg.norm(again)) == pytest.approx(1.0)
    louder = Adapter(dataclasses.replace(adapter.manifest, scaling=7.0), adapter.tensors)
    np.testing.assert_allclose(random_sketch(louder), again, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "weights", "options", "message"),
    [
        (1, (1,), {}, "adapters: are 1 with 1 weights; give two or more, and a weight for each"),
        (2, (1,), {}, "adapters: are 2 with 1 weights; give two or more, and a weight for each"),
        (2, (1, -1), {}, "weights: hold a negative or infinite one, or nothing but zeros; give what each adapter succeeded"),
        (2, (0, 0), {}, "weights: hold a negative or infinite one, or nothing but zeros; give what each adapter succeeded"),
        (2, (1, float("nan")), {}, "weights: hold a negative or infinite one, or nothing but zeros; give what each adapter succeeded"),
        (2, (1, 1), {"rank": 0}, "rank: 0 is outside 1..1024; choose one inside it"),
        (2, (1, 1), {"max_error": 1.0}, "max_error: 1.0 is outside 0..1; give the share of |dW| that may be lost"),
        (2, (1, 1), {"density": 0.0}, "density: 0.0 is outside 0..1; give the share of numbers to keep"),
    ],
)
def test_what_cannot_be_merged_is_refused(count: int, weights: tuple[float, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        merged([_lora(name, seed) for seed, name in enumerate("ab"[:count])], weights, "m", **options)
    assert str(caught.value) == message
    with pytest.raises(InvalidArgument, match=r"^adapters: differ in kind, base model, tenant or modules; "):
        merged([_lora("a", 1), _lora_xs("b", 1)], (1, 1), "m")


def _flat(adapter_id: str, delta: Matrix) -> Adapter:
    path = PATHS[0]
    tensors: dict[str, Array] = {f"{path}.lora_A": delta.astype(np.float32), f"{path}.lora_B": np.ones((1, 1), np.float32)}
    return Adapter(_manifest(adapter_id, "lora", 1, "q_proj", 1.0), tensors)


def _one(adapter: Adapter) -> Matrix:
    return np.asarray(adapter.tensors[f"{PATHS[0]}.lora_B"].astype(np.float64) @ adapter.tensors[f"{PATHS[0]}.lora_A"])


def test_lora_xs_weighted_average_is_the_dense_one() -> None:
    first, second = _lora_xs("a", 1, 0.5), _lora_xs("b", 2, 3.0)
    child = merged([first, second], (1, 3), "m").adapter
    for found, one, two in zip(_dense(child), _dense(first), _dense(second), strict=True):
        np.testing.assert_allclose(found, 0.25 * one + 0.75 * two, atol=1e-5)


def test_lora_recompression_is_the_best_of_its_rank() -> None:
    first, second = _lora("a", 1, 0.5), _lora("b", 2, 2.0)
    child = merged([first, second], (1, 3), "m").adapter
    for found, one, two in zip(_dense(child), _dense(first), _dense(second), strict=True):
        average = 0.25 * one + 0.75 * two
        u, s, vt = np.linalg.svd(average)
        best = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
        least = np.linalg.norm(average - best)
        assert np.linalg.norm(average - found) == pytest.approx(least, rel=0.01)


def test_child_is_a_valid_file_of_the_same_kind() -> None:
    for first, second in ((_lora("a", 1), _lora("b", 2)), (_lora_xs("a", 1), _lora_xs("b", 2))):
        child = decode(encode(merged([first, second], (1, 1), "m").adapter))
        assert (child.manifest.kind, child.manifest.rank, child.manifest.parents) == (first.manifest.kind, RANK, ("a", "b"))


def test_child_id_follows_from_the_merge_id() -> None:
    first, second = _lora_xs("a", 1), _lora_xs("b", 2)
    ids = [merged([first, second], (1, 1), merge_id).adapter.manifest.adapter_id for merge_id in ("m", "m", "n")]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 26


def test_child_is_shared_only_if_both_are_and_has_the_tags_of_both() -> None:
    first, second = _lora_xs("a", 1), _lora_xs("b", 2)
    one = Adapter(dataclasses.replace(first.manifest, shared=True, tags=("x", "y")), first.tensors)
    two = Adapter(dataclasses.replace(second.manifest, tags=("y", "z")), second.tensors)
    child = merged([one, two], (1, 1), "m").adapter.manifest
    assert (child.shared, child.tags) == (False, ("x", "y", "z"))


@pytest.mark.parametrize(
    ("out", "width"),
    [(4, 12), (12, 4)],
)
def test_rank_over_the_size_of_the_linear_merges(out: int, width: int) -> None:
    both = [_lora(name, seed, rank=6, out=out, width=width) for seed, name in enumerate("ab")]
    child = merged(both, (1, 1), "m").adapter
    assert decode(encode(child)).manifest.rank == 4


def test_methods_have_names() -> None:
    assert [checked_method(name) for name in METHODS] == list(METHODS)
    with pytest.raises(InvalidArgument, match=r"^merge_method: 'best' is unknown; use one of average, ties, dare$"):
        checked_method("best")


def test_an_error_that_cannot_be_kept_is_told() -> None:
    with pytest.raises(InvalidArgument, match=r"^max_error: of 0.01 is passed at rank 2, where 0\.\d+ is lost; allow more, or leave "):
        merged([_lora("a", 1), _lora("b", 2)], (1, 1), "m", rank=2, max_error=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_one_lacks_is_zero_there(method: Method) -> None:
    both, one = _lora("a", 1), _lora("b", 1)
    lacking = Adapter(one.manifest, {name: tensor for name, tensor in one.tensors.items() if PATHS[1] not in name})
    explicit = Adapter(one.manifest, {name: tensor * (PATHS[1] not in name) for name, tensor in one.tensors.items()})
    found, wanted = (merged([both, other], (1, 3), "m", method=method, density=1.0, rank=10).adapter for other in (lacking, explicit))
    for left, right in zip(_dense(found), _dense(wanted), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_a_child_has_no_more_tags_than_an_adapter_may() -> None:
    adapters = [
        Adapter(dataclasses.replace(one.manifest, tags=tuple(f"{n}-{k}" for k in range(40))), one.tensors)
        for n, one in enumerate((_lora_xs("a", 1), _lora_xs("b", 2)))
    ]
    assert len(decode(encode(merged(adapters, (1, 1), "m").adapter)).manifest.tags) == 64
