"""Merge maths on adapter files, in numpy and in factored form: no base model, and a dense dW only where TIES or DARE is asked for.

The weighted average of `lora_xs` adapters is exact: their cores average, for they share their bases. That of `lora` adapters has up to the
sum of their ranks; the best approximation of a rank comes from QR of the stacked factors and an SVD of the small product (Eckart and Young
1936). Adapters are taken in the order of their ids, so the order in which they are given does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from ulid import ULID

from smoa.adapter import SINGULAR_VALUES, Adapter, Manifest
from smoa.errors import InvalidArgument
from smoa.identifiers import chosen_word
from smoa.limits import MAX_RANK, MAX_TAGS
from smoa.tensor_file import Array

Matrix = NDArray[np.float64]
Method = Literal["average", "ties", "dare"]
METHODS: Final[tuple[Method, ...]] = ("average", "ties", "dare")
SKETCH_SIDE: Final = 16
SKETCH_VERSION: Final = 2
"""Of how a sketch is made: those of one version compare."""
_KEPT_BYTES: Final = 64 * 2**20
"""Of random directions: all of a model of 8 billion parameters."""
_kept_directions: dict[tuple[str, int], NDArray[np.int8]] = {}
MOST_RANK: Final = 64
"""Highest rank that a merge takes to keep within an error, unless a parent's is higher."""
_EXTRA_DIRECTIONS: Final = 10  # of the randomised range, and its rounds (Halko et al. 2011)
_POWER_ROUNDS: Final = 3


@dataclass(frozen=True)
class Child:
    """What a merge makes, and its relative error: |dW of it - dW wanted| / |dW wanted|, over all modules, before the file's rounding."""

    adapter: Adapter
    error: float


class _Factors(NamedTuple):
    """A module's wanted dW as (left [out, k] * s [k]) @ right [k, in], s falling, and how much of |dW|^2 is not in it."""

    left: Matrix
    s: Matrix
    right: Matrix
    missing: float = 0.0


def sketch(adapter: Adapter) -> Matrix:
    """A vector whose inner products are those of the deltas, for `lora_xs` adapters of one base, rank and modules.

    <U S R V^T, U S R' V^T> = sum_ij s_i^2 R_ij R'_ij because U and V are orthonormal; the file carries s.
    """
    return np.concatenate([_weighed_cores(adapter, module).ravel() for module in sorted(adapter.manifest.modules)])


def random_sketch(adapter: Adapter) -> NDArray[np.float32]:
    """Unit vector [256] whose cosine with another adapter's is about that of their deltas; the same for the same file.

    Every module's delta is projected from both sides, P dW Q with P and Q of 16 directions of random signs that follow from the module's
    name and size (a two-sided Johnson-Lindenstrauss sketch; signs do as well as normal numbers: Achlioptas 2003), and the modules are
    added: E<sketch, sketch'> = <dW, dW'>, but for their lengths. In factored form that is (P B)(A Q). `lora_xs` cores are projected in the
    coordinates of their bases. Adapters that differ in kind or base do not compare.
    """
    total = np.zeros((SKETCH_SIDE, SKETCH_SIDE))
    tensors = adapter.tensors
    if adapter.manifest.kind == "lora_xs":
        for module in sorted(adapter.manifest.modules):
            for layer, core in zip(adapter.manifest.layers, _weighed_cores(adapter, module), strict=True):
                name = f"{module}/{layer}"
                total += _projected(f"{name}/out", core) @ _directions(f"{name}/in", core.shape[1]).T
    else:
        for path in _paths([adapter]):
            a, b = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"]
            total += adapter.manifest.scaling_of(path) * (_projected(f"{path}/out", b) @ _projected(f"{path}/in", a.T).T)
    length = float(np.linalg.norm(total))
    return (total.ravel() / length if length else total.ravel()).astype(np.float32)


def lora_inner(first: Adapter, second: Adapter) -> float:
    """<dW, dW'> of two `lora` adapters: the sum over modules of tr((B^T B') (A' A^T))."""
    total = 0.0
    for name, a in first.tensors.items():
        if name.endswith(".lora_A") and name in second.tensors:
            path = name.removesuffix(".lora_A")
            b, other_a, other_b = first.tensors[f"{path}.lora_B"], second.tensors[name], second.tensors[f"{path}.lora_B"]
            left, right = b.astype(np.float64).T @ other_b, other_a.astype(np.float64) @ a.T
            total += float(np.sum(left * right.T)) * first.manifest.scaling_of(path) * second.manifest.scaling_of(path)
    return total


def cosines(adapters: Sequence[Adapter]) -> dict[tuple[str, str], float]:
    """Delta cosine of every pair of one family, by (lower id, higher id)."""
    ordered = sorted(adapters, key=lambda adapter: adapter.manifest.adapter_id)
    if ordered and ordered[0].manifest.kind == "lora_xs":
        stack = np.stack([sketch(adapter) for adapter in ordered])
        gram = stack @ stack.T
    else:
        gram = np.array([[lora_inner(first, second) for second in ordered] for first in ordered])
    norms = np.sqrt(np.maximum(np.diag(gram), 1e-30))
    names = [adapter.manifest.adapter_id for adapter in ordered]
    likeness = gram / norms[:, None] / norms[None, :]
    return {(names[i], names[j]): float(likeness[i, j]) for i in range(len(names)) for j in range(i + 1, len(names))}


def checked_method(name: str) -> Method:
    """The method of a name.

    Raises:
        InvalidArgument: there is none.
    """
    return chosen_word(name, METHODS, "merge_method")


def merged(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    merge_id: str,
    *,
    method: Method = "average",
    rank: int | None = None,
    max_error: float | None = None,
    density: float = 0.2,
) -> Child:
    """One adapter in the place of two or more of one family; its id follows from the merge id.

    `average` is the weighted average of the deltas. `ties` (Yadav et al. 2023, arXiv 2306.01708) keeps the largest `density` of each delta,
    elects each number's sign by weight and averages those that agree. `dare` (Yu et al. 2024, arXiv 2311.03099) drops all but `density` of
    each delta at random, scales up the rest and averages. A `lora` child has at most the first's rank, or `rank`, or the least that keeps
    the relative error within `max_error`, up to `rank` or the highest of 64 and its parents'; `lora_xs` children keep theirs, and TIES and
    DARE work in the coordinates of their bases.

    Raises:
        InvalidArgument: fewer than two adapters, weights that do not fit, a rank, error or density that cannot be, or an error that is
            passed at every rank.
    """
    _check(adapters, weights, rank, max_error, density)
    pairs = sorted(zip(adapters, weights, strict=True), key=lambda pair: pair[0].manifest.adapter_id)
    ordered = [adapter for adapter, _ in pairs]
    shares = np.array([weight for _, weight in pairs], np.float64) / sum(weights)
    scalings = {scaling for one in ordered for scaling in (one.manifest.scaling, *one.manifest.scalings.values())}
    scaling = scalings.pop() if len(scalings) == 1 else 1.0  # kept where it can be: then a merge with itself is itself to the last bit
    combine = _combiner(method, density, merge_id)
    if ordered[0].manifest.kind == "lora_xs":
        tensors, error, rank = _merged_cores(ordered, shares, scaling, combine), 0.0, ordered[0].manifest.rank
    else:
        tensors, error, rank = _merged_pairs(ordered, shares, scaling, None if method == "average" else combine, rank, max_error)
    return Child(Adapter(_manifest(ordered, merge_id, scaling, rank), tensors), error)


Combine = Callable[[Sequence[Matrix], Matrix], Matrix]


def child_of(merge_id: str) -> str:
    """The adapter id of a merge's child."""
    return str(ULID.from_bytes(hashlib.sha256(merge_id.encode()).digest()[:16]))


def _combiner(method: Method, density: float, merge_id: str) -> Combine:
    if method == "ties":
        return lambda deltas, shares: _ties(deltas, shares, density)
    if method == "dare":
        generator = np.random.default_rng(int.from_bytes(hashlib.sha256(merge_id.encode()).digest()[:8]))
        return lambda deltas, shares: _dare(deltas, shares, density, generator)
    return _average


def _average(deltas: Sequence[Matrix], shares: Matrix) -> Matrix:
    first = deltas[0]  # as the first and differences from it: of equal ones the average is themselves, to the last bit
    return sum((share * (delta - first) for share, delta in zip(shares[1:], deltas[1:], strict=True)), first.copy())


def _ties(deltas: Sequence[Matrix], shares: Matrix, density: float) -> Matrix:
    trimmed = []
    for delta in deltas:
        kept = max(1, round(density * delta.size))
        least = np.partition(np.abs(delta), delta.size - kept, axis=None)[delta.size - kept]
        trimmed.append(np.where(np.abs(delta) >= least, delta, 0.0))
    elected = np.sign(sum(share * delta for share, delta in zip(shares, trimmed, strict=True)))
    agreeing = [(np.sign(delta) == elected) & (elected != 0) for delta in trimmed]
    total = sum(share * delta * agrees for share, delta, agrees in zip(shares, trimmed, agreeing, strict=True))
    weight = sum(share * agrees for share, agrees in zip(shares, agreeing, strict=True))
    return np.asarray(total / np.where(weight > 0, weight, 1.0))


def _dare(deltas: Sequence[Matrix], shares: Matrix, density: float, generator: np.random.Generator) -> Matrix:
    kept = [delta * (generator.random(delta.shape) < density) / density for delta in deltas]
    return np.asarray(sum(share * delta for share, delta in zip(shares, kept, strict=True)))


def _weighed_cores(adapter: Adapter, module: str) -> Matrix:
    """[layers, rank, rank] deltas of a `lora_xs` module in the coordinates of its bases: scaling * diag(s) R."""
    cores = adapter.tensors[module].astype(np.float64) * adapter.manifest.scaling
    return np.asarray(cores * adapter.tensors[f"{module}{SINGULAR_VALUES}"].astype(np.float64)[:, :, None])


def _merged_cores(adapters: Sequence[Adapter], shares: Matrix, scaling: float, combine: Combine) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for name, tensor in adapters[0].tensors.items():
        if name.endswith(SINGULAR_VALUES):
            tensors[name] = tensor
            continue
        factors = [adapter.manifest.scaling / scaling for adapter in adapters]
        cores = [adapter.tensors[name].astype(np.float64) * factor for adapter, factor in zip(adapters, factors, strict=True)]
        if combine is _average:
            tensors[name] = _average(cores, shares).astype(tensor.dtype)
        else:  # as large as they are in dW
            s = adapters[0].tensors[f"{name}{SINGULAR_VALUES}"].astype(np.float64)[:, :, None]
            tensors[name] = (combine([core * s for core in cores], shares) / np.where(s > 0, s, 1.0)).astype(tensor.dtype)
    return tensors


def _merged_pairs(
    adapters: Sequence[Adapter], shares: Matrix, scaling: float, combine: Combine | None, rank: int | None, max_error: float | None
) -> tuple[dict[str, Array], float, int]:
    """(tensors, relative error, rank) of a `lora` child."""
    highest = max(MOST_RANK, *(one.manifest.rank for one in adapters))
    most = rank or (highest if max_error is not None else adapters[0].manifest.rank)
    factors = {path: _wanted(path, adapters, shares / scaling, combine, most) for path in _paths(adapters)}
    total = sum(float(one.s @ one.s) + one.missing for one in factors.values())
    longest = max(len(one.s) for one in factors.values())

    def error_at(tried: int) -> float:
        left_out = sum(float(one.s[tried:] @ one.s[tried:]) + one.missing for one in factors.values())
        return float(np.sqrt(left_out / total)) if total else 0.0

    if max_error is not None:
        within = [tried for tried in range(1, min(most, longest) + 1) if error_at(tried) <= max_error]
        if not within:
            problem = f"of {max_error:g} is passed at rank {min(most, longest)}, where {error_at(most):.3f} is lost"
            raise InvalidArgument("max_error", problem, "allow more, or leave these adapters as they are")
        most = within[0]
    tensors: dict[str, Array] = {}
    for path, one in factors.items():
        root = np.sqrt(one.s[:most])
        tensors[f"{path}.lora_B"] = (one.left[:, :most] * root).astype(np.float32)
        tensors[f"{path}.lora_A"] = (one.right[:most].T * root).T.astype(np.float32)
    return tensors, error_at(most), min(most, longest)


def _wanted(path: str, adapters: Sequence[Adapter], shares: Matrix, combine: Combine | None, rank: int) -> _Factors:
    """What the child's delta at a path is to be; an adapter that has none there adds zero."""
    if combine is None:
        named = [(one, share) for one, share in zip(adapters, shares, strict=True) if f"{path}.lora_A" in one.tensors]
        a = [one.tensors[f"{path}.lora_A"].astype(np.float64) for one, _ in named]
        b = [one.tensors[f"{path}.lora_B"].astype(np.float64) * (one.manifest.scaling_of(path) * share) for one, share in named]
        return _small_svd(np.concatenate(b, 1), np.concatenate(a), rank)
    total = float(shares.sum())
    return _dense_svd(combine([_dense_delta(path, one, adapters) for one in adapters], shares / total) * total, rank)


def _dense_delta(path: str, adapter: Adapter, like: Sequence[Adapter]) -> Matrix:
    if f"{path}.lora_A" in adapter.tensors:
        b = adapter.tensors[f"{path}.lora_B"].astype(np.float64) * adapter.manifest.scaling_of(path)
        return np.asarray(b @ adapter.tensors[f"{path}.lora_A"].astype(np.float64))
    there = next(one for one in like if f"{path}.lora_A" in one.tensors)
    return np.zeros((len(there.tensors[f"{path}.lora_B"]), there.tensors[f"{path}.lora_A"].shape[1]))


def _small_svd(b: Matrix, a: Matrix, rank: int) -> _Factors:
    """The first `rank` of b [out, k] @ a [k, in], without making it."""
    left, left_small = np.linalg.qr(b)
    right, right_small = np.linalg.qr(a.T)
    u, s, vt = np.linalg.svd(left_small @ right_small.T, full_matrices=False)
    return _Factors(left @ u[:, :rank], s[:rank], vt[:rank] @ right.T, float(np.sum(s[rank:] ** 2)))


def _dense_svd(delta: Matrix, rank: int) -> _Factors:
    """The first `rank` of a dense delta, by a randomised range; exactly, where it is no larger than that."""
    wanted = rank + _EXTRA_DIRECTIONS
    if wanted >= min(delta.shape):
        u, s, vt = np.linalg.svd(delta, full_matrices=False)
        return _Factors(u, s, vt)
    found = np.linalg.qr(delta @ np.random.default_rng(0).standard_normal((delta.shape[1], wanted)))[0]
    for _ in range(_POWER_ROUNDS):
        found = np.linalg.qr(delta @ np.linalg.qr(delta.T @ found)[0])[0]
    u, s, vt = np.linalg.svd(found.T @ delta, full_matrices=False)
    return _Factors(found @ u, s, vt, max(0.0, float(np.sum(delta * delta) - s @ s)))


def _projected(name: str, matrix: Array) -> NDArray[np.float32]:
    """A matrix [size, n] in the directions of a name: [16, n]."""
    return np.asarray(_directions(name, len(matrix)).astype(np.float32) @ matrix.astype(np.float32))


def _directions(name: str, size: int) -> NDArray[np.int8]:
    """[16, size] random signs that follow from a name."""
    if (known := _kept_directions.get((name, size))) is not None:
        return known
    seed = int.from_bytes(hashlib.sha256(f"smoa sketch {SKETCH_VERSION}|{name}|{size}".encode()).digest()[:8])
    made = 2 * np.random.default_rng(seed).integers(0, 2, (SKETCH_SIDE, size), np.int8) - 1
    if sum(one.nbytes for one in _kept_directions.values()) + made.nbytes <= _KEPT_BYTES:
        _kept_directions[name, size] = made  # the first stay: of files that are read in the same order the last to come are the first to go
    return made


def _paths(adapters: Sequence[Adapter]) -> list[str]:
    return sorted({name.rpartition(".")[0] for adapter in adapters for name in adapter.tensors})


def _manifest(adapters: Sequence[Adapter], merge_id: str, scaling: float, rank: int) -> Manifest:
    manifests = [adapter.manifest for adapter in adapters]
    first = manifests[0]
    return Manifest(
        adapter_id=child_of(merge_id),
        name=first.name,
        kind=first.kind,
        base_model=first.base_model,
        base_model_name=first.base_model_name,
        rank=rank,
        modules=first.modules,
        layers=tuple(sorted({layer for one in manifests for layer in one.layers})),
        scaling=scaling,
        tenant=first.tenant,
        shared=all(one.shared for one in manifests),
        tags=tuple(dict.fromkeys(tag for one in manifests for tag in one.tags))[:MAX_TAGS],
        specialization=first.specialization,
        parents=tuple(one.adapter_id for one in manifests),
    )


def _check(adapters: Sequence[Adapter], weights: Sequence[float], rank: int | None, max_error: float | None, density: float) -> None:
    if len(adapters) < 2 or len(weights) != len(adapters):
        raise InvalidArgument("adapters", f"are {len(adapters)} with {len(weights)} weights", "give two or more, and a weight for each")
    if not all(np.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise InvalidArgument("weights", "hold a negative or infinite one, or nothing but zeros", "give what each adapter succeeded")
    families = {(a.manifest.kind, a.manifest.base_model, a.manifest.tenant, frozenset(a.manifest.modules)) for a in adapters}
    if len(families) > 1 or len({(a.manifest.rank, a.manifest.layers) for a in adapters if a.manifest.kind == "lora_xs"}) > 1:
        raise InvalidArgument("adapters", "differ in kind, base model, tenant or modules", "merge adapters of one family")
    if rank is not None and not 1 <= rank <= MAX_RANK:
        raise InvalidArgument("rank", f"{rank} is outside 1..{MAX_RANK}", "choose one inside it")
    if max_error is not None and not 0 <= max_error < 1:
        raise InvalidArgument("max_error", f"{max_error} is outside 0..1", "give the share of |dW| that may be lost")
    if not 0 < density <= 1:
        raise InvalidArgument("density", f"{density} is outside 0..1", "give the share of numbers to keep")
