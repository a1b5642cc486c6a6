"""One shard of the Qdrant engine, loaded as `ServerIndex` loads it: what it takes in memory and disk, how fast and how right it is.

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

from benchmarks.libraries import generate
from benchmarks.router import BASE, machine
from services.router.index import point_id
from services.router.index_server import payload_of
from services.router.library import AdapterRecord, Reach, pool_of
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


def measure(quantization: str, points: int) -> dict[str, float]:
    """Fill a shard, let it build its graph, open it again, and ask it."""
    library, embedder = generate(points)
    config = EdgeConfig(
        vectors=EdgeVectorParams(size=embedder.dimension, distance=Distance.Cosine, memory=Memory.Cold),
        hnsw_config=HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=2),
        quantization_config=QUANTIZATIONS[quantization],
        on_disk_payload=True,
        max_search_threads=1,
    )
    ids = [new_adapter_id() for _ in range(points)]
    queries = np.stack([embedder.embed(text) for text in library.texts(np.random.default_rng(1).integers(0, points, QUERIES), seed=77)])
    truth = [set(np.argpartition(-row, 10)[:10].tolist()) for row in queries @ library.vectors.T]
    place = {point_id(adapter_id): number for number, adapter_id in enumerate(ids)}
    with tempfile.TemporaryDirectory(dir=Path("build")) as folder:
        shard = EdgeShard.create(folder, config)
        shard.update(UpdateOperation.create_field_index("pool", KeywordIndexParams(is_tenant=True)))
        started = time.perf_counter()
        for start in track(range(0, points, BATCH), f"{quantization}: filling", console=console):
            batch = range(start, min(start + BATCH, points))
            records = [_record(ids[number], number) for number in batch]
            made = [Point(point_id(r.adapter_id), library.vectors[n].tolist(), payload_of(r)) for r, n in zip(records, batch, strict=True)]
            shard.update(UpdateOperation.upsert_points(made))
        filled = time.perf_counter()
        shard.optimize()
        built = time.perf_counter()
        shard.close()
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        before = _anonymous_mb()
        shard = EdgeShard.load(folder, config)
        pool = Filter(must=[FieldCondition("pool", match=MatchAny(list(Reach(tenant="public", base_model=BASE).pools)))])
        result = {"points": points, "import_per_s": points / (filled - started), "build_s": built - filled, "disk_gb": disk / 1e9}
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
        result["memory_mb"] = _anonymous_mb() - before
        shard.close()
    return result


def _record(adapter_id: str, number: int) -> AdapterRecord:
    made = AdapterRecord(
        adapter_id=adapter_id, version=1, digest=f"{number:064x}", tenant="public", name=f"adapter-{number}", kind="lora_xs",
        granularity="NANO", specialization="task", base_model=BASE, rank=8, modules=("q_proj", "v_proj"), parameter_count=3840,
        file_bytes=9000, tags=(f"domain-{number % 50}",),
    )  # fmt: skip
    assert pool_of(made)
    return made


def _anonymous_mb() -> float:
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@click.command()
@click.option("--points", type=click.IntRange(1000), default=100_000, show_default=True, help="Adapters in the shard.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write every figure here.")
@click.option("--only", hidden=True)
def main(points: int, json_path: Path | None, only: str | None) -> None:
    """Measure one Qdrant shard under several quantisations."""
    Path("build").mkdir(exist_ok=True)
    if only:
        return print(json.dumps(measure(only, points)))
    results = {}
    for name in QUANTIZATIONS:
        command = [sys.executable, "-m", "benchmarks.qdrant_shard", "--only", name, "--points", str(points)]
        results[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine(), "shards": results}, indent=2))
    table = Table("quantisation", *(name.replace("_", " ") for name in results["none"] if name != "points"), title=f"{points:,} adapters")
    for name, result in results.items():
        table.add_row(name, *(f"{value:,.3f}" if value < 100 else f"{value:,.0f}" for key, value in result.items() if key != "points"))
    return Console(width=160).print(table)


if __name__ == "__main__":
    main()
