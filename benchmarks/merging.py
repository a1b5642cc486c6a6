"""Merge maths against a dense SVD: the error it leaves by the least that is possible, and its time by the dense one's.

Random: four `lora` adapters of rank 16 on one linear layer of a width, unlike or variations of one. Real: four adapters of the example
library on a layer of the base model, with their bases multiplied out, merged into half their rank. The two ways take turns; medians.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from services.executor.models.base_model import DEFAULT_BASE_MODEL, fingerprint, resolve
from services.executor.models.lora_xs_bases import LoraXsBases
from services.optimizer.policy.merging import merged
from smoa.adapter import Adapter, Manifest, decode, new_adapter_id
from smoa.tensor_file import Array

T = TypeVar("T")
Matrix = NDArray[np.float32]
PATH = "model.layers.0.self_attn.q_proj"
RANK = 16


def lora(a: Matrix, b: Matrix, scaling: float = 1.0) -> Adapter:
    """An adapter of one layer: a [rank, in], b [out, rank]."""
    tensors: dict[str, Array] = {f"{PATH}.lora_A": a, f"{PATH}.lora_B": b}
    manifest = Manifest(
        adapter_id=new_adapter_id(),
        name="one",
        kind="lora",
        base_model="b",
        rank=len(a),
        modules=("q_proj",),
        layers=(0,),
        scaling=scaling,
    )
    return Adapter(manifest, tensors)


def random_adapters(width: int, spread: float) -> list[Adapter]:
    """Four variations of one adapter: its factors and `spread` times others."""
    rng = np.random.default_rng(0)
    falling = np.geomspace(1, 0.1, RANK).astype(np.float32)
    drawn = rng.standard_normal((5, 2, RANK, width)).astype(np.float32)
    return [
        lora((drawn[0, 0] + spread * drawn[n, 0]) * falling[:, None], ((drawn[0, 1] + spread * drawn[n, 1]) * falling[:, None]).T)
        for n in range(1, 5)
    ]


def real_adapters() -> list[Adapter]:
    """Four of the example library, on the first layer they change."""
    folder = resolve(DEFAULT_BASE_MODEL)
    bases = LoraXsBases(folder, fingerprint(folder))
    found = []
    for file in sorted((Path("examples") / "library" / "adapters").glob("*.safetensors"))[:4]:
        adapter = decode(file.read_bytes())
        module, rank = min(adapter.manifest.modules), adapter.manifest.rank
        left, right = next(
            pair for name, pair in sorted(bases.items()) if name.endswith(f"layers.{adapter.manifest.layers[0]}.self_attn.{module}")
        )
        core = adapter.tensors[module][0].astype(np.float32)
        found.append(lora(right.numpy()[:, :rank].T.copy(), left.numpy()[:, :rank] @ core, adapter.manifest.scaling))
    return found


def dense(adapter: Adapter) -> Matrix:
    """DW [out, in]."""
    return np.asarray(adapter.manifest.scaling * adapter.tensors[f"{PATH}.lora_B"] @ adapter.tensors[f"{PATH}.lora_A"], np.float32)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """(seconds, what it returns)."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def compare(adapters: list[Adapter], rank: int, repeats: int) -> dict[str, float]:
    """Ours and a dense SVD in turns."""
    weights = [float(place + 1) for place in range(len(adapters))]
    wanted = np.asarray(sum(w * dense(one) for w, one in zip(weights, adapters, strict=True)) / sum(weights), np.float32)
    ours, theirs = [], []
    for _ in range(repeats):
        seconds, child = timed(lambda: merged(adapters, weights, "m", rank=rank))
        ours.append(seconds)
        seconds, (u, s, vt) = timed(lambda: np.linalg.svd(wanted, full_matrices=False))
        theirs.append(seconds)
    norm = float(np.linalg.norm(wanted))
    found = float(np.linalg.norm(wanted - dense(child.adapter))) / norm
    least = float(np.linalg.norm(wanted - (u[:, :rank] * s[:rank]) @ vt[:rank])) / norm
    return {
        "width": float(wanted.shape[1]),
        "error": found,
        "least_error": least,
        "error_by_least": found / least,
        "ours_s": median(ours),
        "dense_s": median(theirs),
        "time_by_dense": median(ours) / median(theirs),
    }


@click.command()
@click.option("--width", "widths", multiple=True, type=int, default=(1024, 4096), show_default=True, help="Widths of the random layer.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here.")
def main(widths: tuple[int, ...], repeats: int, json_path: Path | None) -> None:
    """Compare."""
    real = real_adapters()
    results = {"example library": compare(real, real[0].manifest.rank // 2, repeats)}
    for width in widths:
        results[f"unlike, {width} wide"] = compare(random_adapters(width, 10.0), RANK, repeats)
        results[f"alike, {width} wide"] = compare(random_adapters(width, 0.2), RANK, repeats)
    table = Table("four adapters", "error", "least", "by least", "ours ms", "dense ms", "time by dense", title=f"merging on {machine()}")
    for name, row in results.items():
        errors = (f"{row['error']:.4f}", f"{row['least_error']:.4f}", f"{row['error_by_least']:.5f}")
        table.add_row(name, *errors, f"{row['ours_s'] * 1e3:.1f}", f"{row['dense_s'] * 1e3:,.0f}", f"1/{1 / row['time_by_dense']:,.0f}")
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine(), "merges": results}, indent=2))


if __name__ == "__main__":
    main()
