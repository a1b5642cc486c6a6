"""Scaling: routing among 57 adapters, a thousand, and so on, and the arithmetic to a billion. Needs a router only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.demo.session import Session
from services.demo.showing import show_table, write_plot
from services.demo.vectors import GrowingLibrary, environment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = (57, 1_000, 10_000, 100_000, 1_000_000)
QUERIES, RECALL_QUERIES = 500, 50
BILLION = 1_000_000_000
RESIDENT_KB, DISK_KB, EXAMPLES_KB = 0.8, 1.4, 4.0
"""Of an adapter in one shard of Qdrant's engine, codes of 4 bits, measured at 100,000: docs/decisions/0008. Examples are optional."""
SHARD_MS, SHARD_FILL_PER_S = 1.05, 3_000
"""A search in that shard at recall@10 0.99, and its filling by one writer: the same measurement."""
REPLICAS, NODE_GB, SHARDS = 2, 100, 64
"""Copies of everything, memory that a node of 128 GB gives to it, and shards by a hash of the pool's name."""


async def run(session: Session) -> dict[str, Any]:
    """Returns what was measured."""
    sizes = sorted({size for size in SIZES if size < session.adapters} | {session.adapters})
    points: list[dict[str, float]] = []
    async with session.stack("router", **environment()) as running:
        library = await GrowingLibrary.make(session.console, running, session.adapters)
        for size in sizes:
            grown = await library.grow(size)
            latency = await library.latency(QUERIES)
            point = {"adapters": size, "p50_ms": latency["p50"], "p99_ms": latency["p99"], "per_s": round(grown["per_s"])}
            point |= {"recall_at_10": round(await library.recall(RECALL_QUERIES), 3)}
            point |= {"resident_mb": round(library.resident_mb()), "disk_mb": round(library.disk_mb())}
            points.append(point)
    billion = arithmetic(BILLION)
    _show(session, points, billion)
    write_plot(session.console, session.plot, lambda axes: _draw(axes, points), panels=2)
    return {"points": points, "billion": billion}


def arithmetic(adapters: int) -> dict[str, float]:
    """What so many need on a Qdrant cluster, from figures measured of one shard."""
    resident_gb, disk_gb = adapters * RESIDENT_KB / 1e6, adapters * DISK_KB / 1e6
    nodes = -(-resident_gb * REPLICAS // NODE_GB)
    return {
        "adapters": adapters,
        "resident_gb": resident_gb,
        "disk_gb": disk_gb,
        "disk_with_examples_gb": disk_gb + adapters * EXAMPLES_KB / 1e6,
        "nodes": nodes,
        "adapters_a_shard": adapters / SHARDS,
        "fill_hours_one_writer": adapters / SHARD_FILL_PER_S / 3600,
        "fill_hours_a_writer_a_node": adapters / SHARD_FILL_PER_S / 3600 / nodes,
    }


def _show(session: Session, points: Sequence[dict[str, float]], billion: dict[str, float]) -> None:
    show_table(
        session.console,
        "Measured: one router process",
        f"The same router grows; after each step {QUERIES} queries that nobody asked before are timed, text in and decision out over gRPC, "
        "one after the other. Recall: how many of the true ten nearest are among the ten found.",
        (">adapters", ">p50 ms", ">p99 ms", ">recall at 10", ">imported a second", ">memory MB", ">disk MB"),
        [
            (
                f"{point['adapters']:,}",
                f"{point['p50_ms']}",
                f"{point['p99_ms']}",
                f"{point['recall_at_10']:.3f}",
                f"{point['per_s']:,}",
                f"{point['resident_mb']:,}",
                f"{point['disk_mb']:,}",
            )
            for point in points
        ],
    )
    show_table(
        session.console,
        "Arithmetic, not measured: a billion on a Qdrant cluster",
        f"From one shard of Qdrant's engine as the router configures it, measured at 100,000 adapters (docs/decisions/0008): {RESIDENT_KB} "
        f"KB of memory and {DISK_KB} KB of disk an adapter, {EXAMPLES_KB:.0f} KB more with examples; {SHARD_FILL_PER_S:,} a second.",
        ("what", "how", ">comes to"),
        [
            ("memory", f"1,000,000,000 x {RESIDENT_KB} KB", f"{billion['resident_gb'] / 1000:.2f} TB"),
            ("disk, without / with examples", f"x {DISK_KB} / {DISK_KB + EXAMPLES_KB} KB", _terabytes(billion)),
            ("nodes of 128 GB", f"{REPLICAS} copies of the memory, {NODE_GB} GB a node", f"{billion['nodes']:.0f}"),
            ("adapters a shard", f"{SHARDS} shards, by a hash of the tenant's pool", f"{billion['adapters_a_shard'] / 1e6:.1f} million"),
            (
                "hours to fill",
                "one writer / one a node",
                f"{billion['fill_hours_one_writer']:.0f} / {billion['fill_hours_a_writer_a_node']:.0f}",
            ),
        ],
    )
    first, last = points[0], points[-1]
    session.heading("What this shows")
    session.say(
        f"From {first['adapters']:,} to {last['adapters']:,} adapters, {last['adapters'] / first['adapters']:,.0f} times as many, a "
        f"decision went from {first['p50_ms']} to {last['p50_ms']} ms, {last['p50_ms'] / first['p50_ms']:.1f} times, at a recall of "
        f"{last['recall_at_10']:.2f} and {last['resident_mb']:,} MB in one process. A query asks its own tenant's pool and the shared one, "
        f"so a billion are {SHARDS} shards of which a query sees two: about {SHARD_MS * 1.4:.1f} ms of search, by the growth of a graph's "
        f"depth, on {billion['nodes']:.0f} nodes."
    )


def _terabytes(billion: dict[str, float]) -> str:
    return f"{billion['disk_gb'] / 1000:.1f} / {billion['disk_with_examples_gb'] / 1000:.1f} TB"


def _draw(axes: Sequence[Axes], points: Sequence[dict[str, float]]) -> None:
    sizes = [point["adapters"] for point in points]
    for name in ("p50_ms", "p99_ms"):
        axes[0].plot(sizes, [point[name] for point in points], marker="o", label=name.partition("_")[0])
    axes[0].set(xscale="log", xlabel="adapters", ylabel="milliseconds a decision")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    axes[1].plot(sizes, [point["resident_mb"] for point in points], marker="o", label="memory")
    axes[1].plot(sizes, [point["disk_mb"] for point in points], marker="o", label="disk")
    axes[1].set(xscale="log", xlabel="adapters", ylabel="MB of one router")
    axes[1].set_ylim(bottom=0)
    axes[1].legend()
