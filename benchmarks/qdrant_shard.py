"""One shard of the Qdrant engine, loaded as a router loads it: what it takes in memory and disk, how fast and how right it is.

The engine runs in a process of its own for each kind of quantisation (`qdrant-edge-py`: the server's engine without the server), on one
thread, filtering on the pool as every search does. docs/decisions/0008 multiplies these figures out to a cluster for a billion adapters.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

import click
import numpy as np
from qdrant_edge import (
    BinaryQuantizationConfig,
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    HnswIndexConfig,
    KeywordIndexParams,
    MatchAny,
    Memory,
    Point,
    QuantizationSearchParams,
    Query,
    QueryRequest,
    ScalarQuantizationConfig,
    ScalarType,
    SearchParams,
    TurboQuantBitSize,
    TurboQuantQuantizationConfig,
    UpdateOperation,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.router_processes import BASE
from examples.generated import generate
from services.router.catalogue.qdrant_catalogue import payload_of
from services.router.catalogue.records import AdapterRecord, Reach
from smoa.adapter import new_adapter_id

QUANTIZATIONS = {
    "none": None,
    "int8": ScalarQuantizationConfig(ScalarType.Int8, memory=Memory.Pinned),
    "4 bits": TurboQuantQuantizationConfig(bits=TurboQuantBitSize.Bits4, memory=Memory.Pinned),
    "2 bits": TurboQuantQuantizationConfig(bits=TurboQuantBitSize.Bits2, memory=Memory.Pinned),
    "1 bit": BinaryQuantizationConfig(memory=Memory.Pinned),
}
QUERIES, BATCH = 300, 1000
SEARCHES = ((64, 1.0), (128, 2.0), (256, 4.0))
"""(ef, oversampling); what was found is scored again with the full vectors, which lie on disk."""
console = Console(stderr=True)


def config_of(quantization: str, dimension: int) -> EdgeConfig:
    """Vectors and payload on disk, the graph and the codes in memory."""
    return EdgeConfig(
        vectors=EdgeVectorParams(size=dimension, distance=Distance.Cosine, memory=Memory.Cold),
        hnsw_config=HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=2),
        quantization_config=QUANTIZATIONS[quantization],
        on_disk_payload=True,
        max_search_threads=1,
    )


def fill(quantization: str, points: int, folder: Path) -> dict[str, float]:
    """Fill a shard and let it build its graph."""
    library, _ = generate(points)
    shard = EdgeShard.create(str(folder), config_of(quantization, library.vectors.shape[1]))
    shard.update(UpdateOperation.create_field_index("pool", KeywordIndexParams(is_tenant=True)))
    started = time.perf_counter()
    for start in track(range(0, points, BATCH), f"{quantization}: filling", console=console):
        batch = range(start, min(start + BATCH, points))
        made = [Point(_id(n), library.vectors[n].tolist(), payload_of(_record(n))) for n in batch]
        shard.update(UpdateOperation.upsert_points(made))
    filled = time.perf_counter()
    shard.optimize()
    built = time.perf_counter()
    shard.close()
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and "wal" not in file.parts)
    return {"import_per_s": points / (filled - started), "build_s": built - filled, "disk_mb": disk / 1e6}


def ask(quantization: str, points: int, folder: Path) -> dict[str, float]:
    """Open a filled shard and ask it."""
    library, vector_of = generate(points)
    queries = np.stack([vector_of(text) for text in library.texts(np.random.default_rng(1).integers(0, points, QUERIES), seed=77)])
    truth = [set(np.argpartition(-row, 10)[:10].tolist()) for row in queries @ library.vectors.T]
    place = {_id(number): number for number in range(points)}
    dimension = library.vectors.shape[1]
    del library
    before = _resident_mb()
    shard = EdgeShard.load(str(folder), config_of(quantization, dimension))
    pool = Filter(must=[FieldCondition("pool", match=MatchAny(list(Reach(tenant="public", base_model=BASE).pools)))])
    result = {}
    for ef, oversampling in SEARCHES:
        params = SearchParams(hnsw_ef=ef, quantization=QuantizationSearchParams(rescore=True, oversampling=oversampling))
        times, recalls = [], []
        for query, wanted in zip(queries, truth, strict=True):
            request = QueryRequest(10, query=Query.Nearest(query.tolist()), filter=pool, params=params)
            asked = time.perf_counter()
            found = shard.query(request)
            times.append(time.perf_counter() - asked)
            recalls.append(len(wanted & {place[str(point.id)] for point in found}) / 10)
        result[f"ef_{ef}_ms"] = float(np.median(times)) * 1000
        result[f"ef_{ef}_recall_at_10"] = float(np.mean(recalls))
    result["resident_mb"] = _resident_mb() - before
    shard.close()
    return result


def _id(number: int) -> str:
    return str(UUID(int=(number + 1) << 64))


def _record(number: int) -> AdapterRecord:
    return AdapterRecord(
        adapter_id=new_adapter_id(), version=1, digest=f"{number:064x}", tenant="public", name=f"adapter-{number}", kind="lora_xs",
        granularity="NANO", specialization="task", base_model=BASE, rank=8, modules=("q_proj", "v_proj"), parameter_count=3840,
        file_bytes=9000, tags=(f"domain-{number % 50}",),
    )  # fmt: skip


def _resident_mb() -> float:
    """Anonymous memory, and the pages of mapped files that are in memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@click.command()
@click.option("--points", type=click.IntRange(1000), default=100_000, show_default=True, help="Adapters in the shard.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write every figure here.")
@click.option("--phase", type=(str, str, Path), hidden=True)
def main(points: int, json_path: Path | None, phase: tuple[str, str, Path] | None) -> None:
    """Measure one Qdrant shard under several quantisations."""
    if phase is not None:
        name, quantization, folder = phase
        return print(json.dumps({"fill": fill, "ask": ask}[name](quantization, points, folder)))
    Path("build").mkdir(exist_ok=True)
    results: dict[str, dict[str, float]] = {}
    for quantization in QUANTIZATIONS:
        with tempfile.TemporaryDirectory(dir=Path("build")) as made:
            shard = Path(made) / "shard"
            shard.mkdir()
            results[quantization] = {}
            for name in ("fill", "ask"):  # each in a process of its own, so that what is resident is the opened shard alone
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.qdrant_shard",
                    "--points",
                    str(points),
                    "--phase",
                    name,
                    quantization,
                    str(shard),
                ]
                results[quantization] |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine(), "points": points, "shards": results}, indent=2))
    table = Table("", *results, title=f"one shard of {points:,} adapters")
    for row in results["none"]:
        table.add_row(row.replace("_", " "), *(f"{one[row]:,.3f}" if one[row] < 10 else f"{one[row]:,.0f}" for one in results.values()))
    return Console().print(table)


if __name__ == "__main__":
    main()
