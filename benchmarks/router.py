"""The router end to end: real text over gRPC into a router process, beside an echo RPC, at library sizes up to a million.

Every size is one router process on its own data, an embedded broker that takes its decisions, and an echo server that answers the same
request with the same kind of decision without deciding anything. Echo and router calls alternate. Uncached means a text that nobody asked
before; handler times come from the router's own metrics and hold everything but gRPC: the decision's way to the spool too.

`--library memory` and `--library qdrant` keep the library on the Qdrant server of `--qdrant`, and search it in memory or there. Then the
bare search is timed, too: the client's own call, with the filter and parameters that the router uses.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.router_processes import BASE, Bare, RouterProcess, echo_server, library_on, serve_echo
from examples.generated import Library, generate, imported
from services.router.catalogue.port import Vector
from smoa.adapter import new_adapter_id
from smoa.client import SmoaClient
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2, router_pb2

SIZES = (57, 1_000, 10_000, 100_000, 1_000_000)
BATCH = 500
console = Console(stderr=True)
_TIMED = ("echo_p50_ms", "echo_p99_ms", "p50_ms", "p99_ms", "cached_p50_ms", "hinted_p50_ms", "broadly_hinted_p50_ms", "bare_search_p50_ms")


def handler_p50_ms(before: tuple[Vector, Vector], after: tuple[Vector, Vector]) -> float:
    """Median of what came between two readings, straight within its bucket."""
    bounds, counts = after[0], after[1] - before[1]
    half = counts[-1] / 2
    place = int(np.searchsorted(counts, half))
    low, under = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    return float(low + (bounds[place] - low) * (half - under) / max(counts[place] - under, 1))


def messages(library: Library, ids: Sequence[str], start: int) -> list[registry_pb2.ImportedAdapter]:
    """A batch to import."""
    return [imported(library, number, ids[number], BASE) for number in range(start, min(start + BATCH, len(ids)))]


async def import_all(router: RouterProcess, client: SmoaClient, library: Library, ids: Sequence[str], kill_at: int = 0) -> dict[str, float]:
    """Import everything, asking for a known adapter all the while; wait until the pools are trained.

    With `kill_at`, the router is killed once that many are acknowledged, and started again; the import is sent again from the last answer.
    """
    started, done, waits, missed = time.perf_counter(), 0, [], 0
    restart_s = 0.0

    async def ask() -> None:
        nonlocal missed
        rng = np.random.default_rng(1)
        while True:
            await asyncio.sleep(0.25)
            if done < BATCH:
                continue
            number = int(rng.integers(0, done))
            text = library.texts(np.array([number]), seed=number)[0]
            asked = time.perf_counter()
            try:
                decision = await client.route(text, base_model=BASE, strategy="ROUTING_STRATEGY_SEMANTIC", top_k=1, score_threshold=-1)
            except grpc.aio.AioRpcError:
                if not kill_at:
                    raise
                continue
            waits.append(time.perf_counter() - asked)
            missed += not decision.adapters

    asking = asyncio.create_task(ask())
    with Progress(console=console) as progress:
        task = progress.add_task("import", total=len(ids))
        while done < len(ids):
            base = done
            batches = (messages(library, ids, start) for start in range(base, len(ids), BATCH))
            try:
                async for response in client.import_adapters(batches, files_unchecked=True):
                    done = base + response.durable
                    progress.update(task, completed=done)
                    if kill_at and done >= kill_at:
                        router.kill(signal.SIGKILL)
                        kill_at = 0
                        restart_s = await router.start()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
    imported_s = time.perf_counter() - started - restart_s
    while await router.metric("pools_in_training"):
        await asyncio.sleep(0.2)
    asking.cancel()
    ready_s = time.perf_counter() - started - restart_s
    return {
        "import_per_s": len(ids) / ready_s,
        "import_s": ready_s,
        "import_accepted_s": imported_s,
        "query_while_importing_p50_ms": float(np.median(waits)) * 1000 if waits else 0.0,
        "query_while_importing_max_ms": max(waits, default=0.0) * 1000,
        "unanswered_while_importing": missed,
    }


async def measure_recall(client: SmoaClient, library: Library, ids: Sequence[str], embed: Any, queries: int) -> float:
    """Share of the true ten nearest among the ten of a decision."""
    asked = np.random.default_rng(3).integers(0, len(ids), queries)
    number_of = {adapter_id: number for number, adapter_id in enumerate(ids)}
    texts, wanted = library.texts(asked, seed=3), min(10, len(ids))
    found = []
    for text in texts:
        decision = await client.route(text, base_model=BASE, strategy="ROUTING_STRATEGY_SEMANTIC", top_k=10, score_threshold=-1)
        found.append([number_of[item.adapter_id] for item in decision.adapters])
    shares = []
    for start in range(0, queries, 50):
        vectors = np.stack([embed(text) for text in texts[start : start + 50]])
        cosines = vectors @ library.vectors.T
        least = -np.partition(-cosines, wanted - 1, 1)[:, wanted - 1]
        shares += [np.mean(cosines[row, found[start + row]] >= least[row] - 1e-5) for row in range(len(vectors))]
    return float(np.mean(shares))


async def measure_latency(
    router: RouterProcess,
    client: SmoaClient,
    echo: SmoaClient,
    texts: Sequence[str],
    rounds: int,
    bare: Callable[[str], Awaitable[None]] | None = None,
) -> dict[str, float]:
    """Echo, uncached, hinted (by a tag of a fiftieth, and by what all of them are) and cached, one after the other, in rounds; `bare`
    beside them, if it is given; medians of the rounds' percentiles.
    """
    repeated, fresh, per_round = texts[:20], iter(texts[20:]), (len(texts) - 20) // (3 * rounds)

    async def timed(one: SmoaClient, text: str, **hints: Any) -> float:
        request = router_pb2.RouteRequest(tenant="public", base_model=BASE, query=text, **hints)
        started = time.perf_counter()
        await one.router.Route(request, timeout=10)
        return (time.perf_counter() - started) * 1000

    for text in repeated:
        await timed(echo, text)
        await timed(client, text)
    results: dict[str, list[float]] = {name: [] for name in _TIMED}
    before = await router.route_buckets()
    uncached = []
    for _ in range(rounds):
        times: dict[str, list[float]] = {"echo": [], "fresh": [], "hinted": [], "broad": [], "bare": []}
        for number in range(per_round):
            times["echo"].append(await timed(echo, repeated[number % 20]))
            times["fresh"].append(await timed(client, next(fresh)))
            times["hinted"].append(await timed(client, next(fresh), tags=[f"domain-{number % 50}"]))
            times["broad"].append(await timed(client, next(fresh), specialization=common.SPECIALIZATION_TASK))
            if bare is not None:
                started = time.perf_counter()
                await bare(repeated[number % 20])
                times["bare"].append((time.perf_counter() - started) * 1000)
        results["echo_p50_ms"].append(float(np.percentile(times["echo"], 50)))
        results["echo_p99_ms"].append(float(np.percentile(times["echo"], 99)))
        results["p50_ms"].append(float(np.percentile(times["fresh"], 50)))
        results["p99_ms"].append(float(np.percentile(times["fresh"], 99)))
        results["hinted_p50_ms"].append(float(np.percentile(times["hinted"], 50)))
        results["broadly_hinted_p50_ms"].append(float(np.percentile(times["broad"], 50)))
        results["bare_search_p50_ms"].append(float(np.percentile(times["bare"], 50)) if times["bare"] else 0.0)
        uncached += times["fresh"]
    after = await router.route_buckets()
    cached_echo = []
    for _ in range(rounds):
        echoes, hits = [], []
        for number in range(per_round):
            echoes.append(await timed(echo, repeated[number % 20]))
            hits.append(await timed(client, repeated[number % 20]))
        cached_echo.append(float(np.percentile(echoes, 50)))
        results["cached_p50_ms"].append(float(np.percentile(hits, 50)))
    measured = {name: float(np.median(values)) for name, values in results.items()}
    measured["handler_p50_ms"] = handler_p50_ms(before, after)
    measured["p50_over_echo"] = measured["p50_ms"] / measured["echo_p50_ms"]
    measured["hinted_over_echo"] = measured["hinted_p50_ms"] / measured["echo_p50_ms"]
    measured["broadly_hinted_over_echo"] = measured["broadly_hinted_p50_ms"] / measured["echo_p50_ms"]
    measured["over_bare_search_in_echos"] = (measured["p50_ms"] - measured["bare_search_p50_ms"]) / measured["echo_p50_ms"]
    measured["p99_over_echo_p50"] = measured["p99_ms"] / measured["echo_p50_ms"]
    measured["cached_over_echo"] = measured["cached_p50_ms"] / float(np.median(cached_echo))
    return measured


async def measure_rate(client: SmoaClient, texts: Sequence[str], callers: int, seconds: float) -> float:
    """Uncached queries a second with so many callers at once."""
    waiting, done, until = iter(texts), 0, time.perf_counter() + seconds

    async def call() -> None:
        nonlocal done
        for text in waiting:
            if time.perf_counter() > until:
                return
            await client.router.Route(router_pb2.RouteRequest(base_model=BASE, query=text), timeout=10)
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return done / (time.perf_counter() - started)


async def measure(size: int, calls: int, kill: bool, settings: Mapping[str, str], bare: Bare | None) -> dict[str, float]:
    """Everything about one size."""
    console.print(f"[bold]{size:,} adapters[/]: generating")
    library, vector_of = generate(size)
    ids = [new_adapter_id() for _ in range(size)]
    rng = np.random.default_rng(7)
    with tempfile.TemporaryDirectory(dir=Path("build")) as folder:
        router = RouterProcess(Path(folder), settings)
        try:
            await router.start()
            async with echo_server() as echo_address, SmoaClient(router=router.address) as client, SmoaClient(router=echo_address) as echo:
                kill_at = int(rng.integers(size // 4, size * 3 // 4)) if kill and size > 10 * BATCH else 0
                result = await import_all(router, client, library, ids, kill_at)
                result["rss_after_import_mb"] = router.rss_mb()
                result["recall_at_10"] = await measure_recall(client, library, ids, vector_of, 500)
                texts = library.texts(rng.integers(0, size, 3 * calls + 20), seed=11)
                if bare is not None:
                    await bare.settled()
                search = None if bare is None else lambda text: bare.search(vector_of(text))
                result |= await measure_latency(router, client, echo, texts, 5, search)
                texts = library.texts(rng.integers(0, size, 30_000), seed=13)
                result["qps_1"] = await measure_rate(client, texts[:10_000], 1, 3)
                result["qps_16"] = await measure_rate(client, texts[10_000:], 16, 3)
                result["rss_mb"] = router.rss_mb()
                router.kill(signal.SIGKILL)
                result["restart_s"] = await router.start()
            async with SmoaClient(router=router.address) as client:
                result["recall_at_10_after_kill"] = await measure_recall(client, library, ids, vector_of, 200)
                result["rss_after_restart_mb"] = router.rss_mb()
        finally:
            router.stop()
    return result


SHOWN = (
    "import_per_s", "query_while_importing_p50_ms", "query_while_importing_max_ms", "recall_at_10", "echo_p50_ms", "p50_ms",
    "p50_over_echo", "hinted_over_echo", "broadly_hinted_over_echo", "bare_search_p50_ms", "over_bare_search_in_echos",
    "p99_over_echo_p50", "handler_p50_ms", "cached_over_echo", "qps_1", "qps_16", "rss_mb", "restart_s",
    "recall_at_10_after_kill",
)  # fmt: skip


@click.command()
@click.option("--adapters", type=click.IntRange(1), multiple=True, help="Only this size; may repeat.")
@click.option("--calls", type=click.IntRange(100), default=5000, show_default=True, help="Uncached calls a size.")
@click.option("--kill", is_flag=True, help="Kill the router with SIGKILL at a random moment of an import of over 5,000, and go on.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write every figure here.")
@click.option(
    "--library",
    "libraries",
    type=click.Choice(["sqlite", "memory", "qdrant"]),
    multiple=True,
    default=("sqlite",),
    show_default=True,
    help="Where it is, and where it is searched; may repeat: each at every size.",
)
@click.option("--qdrant", default="http://127.0.0.1:6333", show_default=True, help="A Qdrant server, for --library memory and qdrant.")
@click.option("--qdrant-grpc-port", default=6334, show_default=True, help="Port of its gRPC API.")
@click.option("--serve-echo", "echo_address", hidden=True)
def main(
    adapters: tuple[int, ...],
    calls: int,
    kill: bool,
    json_path: Path | None,
    libraries: tuple[str, ...],
    qdrant: str,
    qdrant_grpc_port: int,
    echo_address: str | None,
) -> None:
    """Measure the router beside an echo RPC at several library sizes."""
    if echo_address:
        return asyncio.run(serve_echo(echo_address))
    Path("build").mkdir(exist_ok=True)
    sizes: dict[str, dict[str, float]] = {}

    async def one(size: int, kind: str) -> dict[str, float]:
        async with library_on(kind, qdrant, qdrant_grpc_port) as (settings, client, prefix):
            return await measure(size, calls, kill, settings, None if client is None else Bare(client, f"{prefix}_adapters"))

    for size, kind in product(adapters or SIZES, libraries):
        sizes[f"{size:,}" if kind == "sqlite" else f"{size:,} {kind}"] = asyncio.run(one(size, kind))
        if json_path is not None:
            json_path.write_text(json.dumps({"machine": machine(), "command": " ".join(sys.argv), "sizes": sizes}, indent=2))
    table = Table("", *sizes, title=f"router on {machine()}, by adapters")
    for row in SHOWN:
        table.add_row(row.replace("_", " "), *(_shown(result[row]) for result in sizes.values()))
    return Console().print(table)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value > 100 else f"{value:.3f}"


if __name__ == "__main__":
    main()
