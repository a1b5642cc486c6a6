"""Merge maths on adapter files, in numpy and in factored form: no dense dW, no base model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from ulid import ULID

from smoa.adapter import SINGULAR_VALUES, Adapter, Manifest

Matrix = NDArray[np.float64]


def sketch(adapter: Adapter) -> Matrix:
    """A vector whose inner products are those of the deltas, for `lora_xs` adapters of one base, rank and modules.

    <U S R V^T, U S R' V^T> = sum_ij s_i^2 R_ij R'_ij because U and V are orthonormal; the file carries s.
    """
    parts: list[Matrix] = []
    for module in sorted(adapter.manifest.modules):
        cores = adapter.tensors[module].astype(np.float64) * adapter.manifest.scaling
        parts.append((cores * adapter.tensors[f"{module}{SINGULAR_VALUES}"].astype(np.float64)[:, :, None]).ravel())
    return np.concatenate(parts)


def lora_inner(first: Adapter, second: Adapter) -> float:
    """<dW, dW'> of two `lora` adapters: the sum over modules of tr((B^T B') (A' A^T))."""
    total = 0.0
    for name, a in first.tensors.items():
        if name.endswith(".lora_A") and name in second.tensors:
            path = name.removesuffix(".lora_A")
            b, other_a, other_b = first.tensors[f"{path}.lora_B"], second.tensors[name], second.tensors[f"{path}.lora_B"]
            left, right = b.astype(np.float64).T @ other_b, other_a.astype(np.float64) @ a.T
            total += float(np.sum(left * right.T))
    return total * first.manifest.scaling * second.manifest.scaling


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


def merged(first: Adapter, second: Adapter, weights: tuple[float, float], merge_id: str) -> Adapter:
    """The weighted average of two adapters' deltas, as an adapter of the same kind and rank.

    Exact for `lora_xs` (cores average). For `lora` the sum has up to twice the rank; the best approximation of the same rank comes
    from QR of the stacked factors and an SVD of the small product (Eckart-Young). The child's id follows from the merge id.
    """
    total = sum(weights)
    shares = (weights[0] / total * first.manifest.scaling, weights[1] / total * second.manifest.scaling)
    if first.manifest.kind == "lora_xs":
        tensors = {
            name: tensor
            if name.endswith(SINGULAR_VALUES)
            else (shares[0] * tensor.astype(np.float64) + shares[1] * second.tensors[name].astype(np.float64)).astype(tensor.dtype)
            for name, tensor in first.tensors.items()
        }
    else:
        tensors = {}
        for path in sorted({name.rpartition(".")[0] for name in (*first.tensors, *second.tensors)}):
            pairs = [
                (adapter, share) for adapter, share in zip((first, second), shares, strict=True) if f"{path}.lora_A" in adapter.tensors
            ]
            a = np.concatenate([adapter.tensors[f"{path}.lora_A"].astype(np.float64) for adapter, _ in pairs])
            b = np.concatenate([adapter.tensors[f"{path}.lora_B"].astype(np.float64) * share for adapter, share in pairs], 1)
            tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"] = _recompressed(a, b, first.manifest.rank)
    manifest = first.manifest
    child = Manifest(
        adapter_id=str(ULID.from_bytes(hashlib.sha256(merge_id.encode()).digest()[:16])),
        name=manifest.name,
        kind=manifest.kind,
        base_model=manifest.base_model,
        rank=manifest.rank,
        modules=manifest.modules,
        layers=tuple(sorted({*manifest.layers, *second.manifest.layers})),
        tenant=manifest.tenant,
        shared=manifest.shared and second.manifest.shared,
        tags=tuple(dict.fromkeys((*manifest.tags, *second.manifest.tags))),
        specialization=manifest.specialization,
        parents=(manifest.adapter_id, second.manifest.adapter_id),
    )
    return Adapter(child, tensors)


def _recompressed(a: Matrix, b: Matrix, rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    left, left_small = np.linalg.qr(b)
    right, right_small = np.linalg.qr(a.T)
    u, s, vt = np.linalg.svd(left_small @ right_small.T, full_matrices=False)
    root = np.sqrt(s[:rank])
    new_b, new_a = left @ u[:, :rank] * root, (right @ vt[:rank].T * root).T
    missing = rank - len(root)  # a rank over the module's size: the rest is zeros
    padded_a, padded_b = np.pad(new_a, ((0, missing), (0, 0))), np.pad(new_b, ((0, 0), (0, missing)))
    return padded_a.astype(np.float32), padded_b.astype(np.float32)
