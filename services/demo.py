"""`smoa demo`: the whole loop on the example library, with decoys and controls, measured and shown."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from examples.library import ADAPTERS
from examples.library.jobs import DECOY_JOBS, JOBS, Job
from services.local import LocalStack, StackSettings, free_port
from smoa.adapter import SINGULAR_VALUES, Adapter, decode, encode, new_adapter_id
from smoa.client import SmoaClient
from smoa.errors import Unavailable
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

SEED = 7
FAILING, UNNEEDED = ("recipe_cuisine", "sports_result"), ("star_sign", "garden_task")
DUPLICATED = ("med_department", "support_intent")
MAX_EXAMPLES = 50
CONTROL_EVERY = 3
EVERY_STATE = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_RETIRED)


@dataclass(frozen=True)
class Query:
    """A test query; the job is known to the referee only."""

    job: str
    text: str
    answer: str


@dataclass
class Tally:
    """What the driver itself counted."""

    decisions: int = 0
    cached: int = 0
    sent: int = 0
    adapter_hits: int = 0
    adapter_misses: int = 0
    top1: int = 0
    top3: int = 0
    routed: dict[Query, bool] = field(default_factory=dict)
    """Of the first time that a query came, whether its answer was right."""
    route_ms: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)


def random_copy(adapter: Adapter, name: str, rng: np.random.Generator, tags: tuple[str, ...]) -> Adapter:
    """Random weights of the same shapes and spread as a trained adapter's."""
    tensors = {
        k: v if k.endswith(SINGULAR_VALUES) else (rng.standard_normal(v.shape) * v.std()).astype(v.dtype)
        for k, v in adapter.tensors.items()
    }
    return Adapter(dataclasses.replace(adapter.manifest, adapter_id=new_adapter_id(), name=name, tags=tags), tensors)


def near_duplicate(adapter: Adapter, rng: np.random.Generator) -> Adapter:
    """The same weights with a tenth of noise, under another id: what a second team would have trained."""
    tensors = {
        k: v if k.endswith(SINGULAR_VALUES) else (v + 0.1 * v.std() * rng.standard_normal(v.shape)).astype(v.dtype)
        for k, v in adapter.tensors.items()
    }
    return Adapter(dataclasses.replace(adapter.manifest, adapter_id=new_adapter_id(), name=f"{adapter.manifest.name}-copy"), tensors)


def job_of(name: str) -> str:
    """The job an adapter's name stands for; a near-duplicate does its original's job."""
    return name.removesuffix("-copy")


class Demo:
    """One run."""

    def __init__(self, client: SmoaClient, store: AdapterStore, console: Console, queries_per_job: int) -> None:
        self._client, self._store, self._console = client, store, console
        self._queries_per_job = queries_per_job
        self._names: dict[str, str] = {}
        self._refs: dict[str, common.WeightedAdapter] = {}
        self.tally = Tally()
        self.base_model = ""

    async def register_library(self) -> None:
        """The example library and its decoys."""
        rng = np.random.default_rng(SEED)
        self.base_model = (await self._client.status()).base_model
        trained = {name: decode((ADAPTERS / f"{name}.safetensors").read_bytes()) for name in JOBS}
        model = trained["med_department"]
        everything: list[tuple[Adapter, Job, int]] = [(trained[name], job, 0) for name, job in JOBS.items()]
        everything += [(near_duplicate(trained[name], rng), JOBS[name], 1) for name in DUPLICATED]
        everything += [(random_copy(model, name, rng, (job.domain,)), job, 0) for name, job in DECOY_JOBS.items()]
        for adapter, job, seed in everything:
            examples = [example.input for example in job.generate("train", 50, seed)[:MAX_EXAMPLES]]
            found = await self._client.register(await self._store.put(encode(adapter)), examples)
            self._names[found.adapter_id] = found.name
            self._refs[found.name] = common.WeightedAdapter(
                adapter_id=found.adapter_id, version=found.version, digest=found.digest, weight=1.0
            )

    async def traffic(self) -> list[Query]:
        """Route, generate and report every test query, in shuffled order, jobs unnamed; a quarter of them come twice."""
        scope = [Query(job.name, e.input, e.output) for job in JOBS.values() for e in job.generate("test", self._queries_per_job, SEED)]
        outside = [
            Query(name, e.input, e.output) for name in FAILING for e in DECOY_JOBS[name].generate("test", self._queries_per_job, SEED)
        ]
        order = [*scope, *outside]
        random.Random(SEED).shuffle(order)
        repeated = [query for query in order if query.job in JOBS][: len(scope) // 4]
        await self._all("routed queries", [lambda q=q: self._one(q, first=True) for q in order])  # type: ignore[misc]
        await self._all("repeated queries", [lambda q=q: self._one(q, first=False) for q in repeated])  # type: ignore[misc]
        return scope

    async def control(self, label: str, queries: Sequence[Query], pick: Callable[[Query], Sequence[common.WeightedAdapter]]) -> float:
        """Exact match with adapters forced."""
        right: list[bool] = []

        async def one(query: Query) -> None:
            right.append(await self._answer(query, pick(query), "") == query.answer)

        await self._all(f"control: {label}", [lambda q=q: one(q) for q in queries])  # type: ignore[misc]
        return sum(right) / len(right)

    async def controls(self, queries: Sequence[Query], some: Sequence[Query]) -> dict[str, float]:
        """base, oracle, random and uniform; all but the oracle, which are near 0, on `some` of the queries."""
        share = 1.0 / len(self._refs)
        uniform = [_weighted(ref, share) for ref in self._refs.values()]
        return {
            "base": await self.control("base model alone", some, lambda q: ()),
            "oracle": await self.control("right adapter forced", queries, lambda q: (self._refs[q.job],)),
            "random": await self.control("random weights", some, lambda q: (self._refs[FAILING[0]],)),
            "uniform": await self.control("all adapters equally", some, lambda q: uniform),
        }

    async def routed_again(self, queries: Sequence[Query]) -> float:
        """Exact match of routed queries once the optimizer has acted."""
        right: list[bool] = []

        async def one(query: Query) -> None:
            decision = await self._client.route(query.text, base_model=self.base_model)
            right.append(await self._answer(query, decision.adapters, "") == query.answer)

        await self._all("after optimising", [lambda q=q: one(q) for q in queries])  # type: ignore[misc]
        return sum(right) / len(right)

    async def library(self) -> list[registry_pb2.Adapter]:
        """Every adapter, retired ones too."""
        return [adapter async for adapter in self._client.list_all(states=EVERY_STATE)]

    async def counted(self) -> int:
        """Uses and outcomes the optimizer has counted."""
        return sum(adapter.statistics.uses + adapter.statistics.outcomes for adapter in await self.library())

    async def _one(self, query: Query, first: bool) -> None:
        tally, started = self.tally, time.perf_counter()
        decision = await self._client.route(query.text, base_model=self.base_model)
        tally.route_ms.append((time.perf_counter() - started) * 1000)
        answer = await self._answer(query, decision.adapters, decision.decision_id)
        await self._client.report(decision, success=answer == query.answer)
        tally.decisions += 1
        tally.cached += decision.cached
        tally.sent += 2 * len(decision.adapters)
        if first and query.job in JOBS:
            jobs = [job_of(self._names.get(item.adapter_id, "")) for item in decision.adapters]
            tally.top1 += jobs[:1] == [query.job]
            tally.top3 += query.job in jobs[:3]
            tally.routed[query] = answer == query.answer

    async def _answer(self, query: Query, adapters: Sequence[common.WeightedAdapter], decision_id: str) -> str:
        text = ""
        async for response in self._client.stream(query.text, adapters, decision_id=decision_id, max_tokens=10):
            text += response.text
            if response.HasField("usage"):
                self.tally.ttft_ms.append(response.usage.first_token_us / 1000)
                self.tally.adapter_hits += response.usage.adapter_hits
                self.tally.adapter_misses += response.usage.adapter_misses
        return text.strip()

    async def _all(self, label: str, jobs: Sequence[Callable[[], Awaitable[None]]], at_once: int = 16) -> None:
        gate = asyncio.Semaphore(at_once)
        columns = TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task(label, total=len(jobs))

            async def gated(job: Callable[[], Awaitable[None]]) -> None:
                async with gate:
                    await job()
                bar.advance(task)

            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(gated(job))


def _weighted(ref: common.WeightedAdapter, weight: float) -> common.WeightedAdapter:
    return common.WeightedAdapter(adapter_id=ref.adapter_id, version=ref.version, digest=ref.digest, weight=weight)


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2)}


async def _until(what: str, within_s: float, done: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + within_s
    while not await done():
        if time.monotonic() > deadline:
            raise Unavailable(f"demo: {what} did not happen within {within_s:.0f} s; see the log")
        await asyncio.sleep(0.2)


async def _optimise(demo: Demo, stack: LocalStack) -> list[registry_pb2.Adapter]:
    """Ask the optimizer for a pass, wait until it has changed the library and come to rest; returns the library."""
    os.kill(stack.pid("optimizer"), signal.SIGUSR1)
    seen: list[int] = []

    async def at_rest() -> bool:
        seen.append(sum(adapter.state == common.ADAPTER_STATE_RETIRED for adapter in await demo.library()))
        return seen[-1] > 0 and len(seen) > 10 and len(set(seen[-10:])) == 1

    await _until("an optimizer pass", 60, at_rest)
    return await demo.library()


async def run(data: Path, log: Path, queries_per_job: int, kafka: str, console: Console) -> dict[str, Any]:
    """The whole demonstration; returns what it measured."""
    settings = StackSettings(
        data=data,
        router_port=free_port(),
        executor_port=free_port(),
        kafka_bootstrap=kafka,
        environment={
            "SMOA_OPTIMIZER_CANARY_SHARE": "0",  # its traffic is too short for a trial
            "SMOA_OPTIMIZER_INTERVAL_S": "0",
            "SMOA_OPTIMIZER_MIN_AGE_S": "1",
            "SMOA_STORE": str(data / "store"),
        },
    )
    started = time.monotonic()
    with log.open("w") as log_file:
        stack = LocalStack(settings, log_file)
        with console.status(f"starting broker, router, executor and optimizer (log: {log})"):
            await stack.start()
        try:
            async with SmoaClient(router=settings.router, executor=settings.executor) as client:
                demo = Demo(client, AdapterStore(settings.store), console, queries_per_job)
                await demo.register_library()
                queries = await demo.traffic()
                tally = demo.tally

                async def all_counted() -> bool:
                    return await demo.counted() >= tally.sent

                with console.status("waiting until the optimizer has counted every event"):
                    await _until("the count of every event", 60, all_counted)
                some = queries[::CONTROL_EVERY]
                controls = await demo.controls(queries, some)
                counted = await demo.counted()
                before = await demo.library()
                with console.status("the optimizer merges and prunes"):
                    library = await _optimise(demo, stack)
                touched = [query for query in queries if query.job in DUPLICATED]
                after = await demo.routed_again(touched)
        finally:
            with console.status("draining"):
                await stack.stop()
    retired = [adapter for adapter in library if adapter.state == common.ADAPTER_STATE_RETIRED]
    parents = {parent for adapter in library if adapter.merge_id for parent in adapter.parents}
    names = {adapter.adapter_id: adapter.name for adapter in library}
    pruned = sorted(adapter.name for adapter in retired if adapter.adapter_id not in parents)
    _show_library(console, before, library, parents)
    answered = tally.adapter_hits + tally.adapter_misses
    return {
        "queries": len(queries),
        "control_queries": len(some),
        "decisions": tally.decisions,
        "route_top1": round(tally.top1 / len(queries), 4),
        "route_top3": round(tally.top3 / len(queries), 4),
        "exact_match": {
            "base": round(controls["base"], 4),
            "routed": round(sum(tally.routed.values()) / len(tally.routed), 4),
            "oracle": round(controls["oracle"], 4),
            "random": round(controls["random"], 4),
            "uniform": round(controls["uniform"], 4),
        },
        "exact_match_before_merge": round(sum(tally.routed[query] for query in touched) / len(touched), 4),
        "exact_match_after_merge": round(after, 4),
        "route_ms": _percentiles(tally.route_ms),
        "ttft_ms": _percentiles(tally.ttft_ms),
        "router_cache_hit_rate": round(tally.cached / tally.decisions, 4),
        "adapter_cache_hit_rate": round(tally.adapter_hits / answered, 4),
        "events": {"sent": tally.sent, "counted": counted},
        "pruned": pruned,
        "merged": sorted([names[parent] for parent in adapter.parents] for adapter in library if adapter.merge_id),
        "useful_pruned": sorted(set(pruned) & set(JOBS)),
        "adapters": {"before": len(before), "after": len(library) - len(retired)},
        "seconds": round(time.monotonic() - started, 1),
        "avx512": "avx512f" in Path("/proc/cpuinfo").read_text(),
    }


def _show_library(
    console: Console, before: Sequence[registry_pb2.Adapter], library: Sequence[registry_pb2.Adapter], parents: set[str]
) -> None:
    counts = {adapter.adapter_id: adapter.statistics for adapter in before}
    table = Table(title="the library after the optimizer")
    for column in ("adapter", "uses", "success", "what happened"):
        table.add_column(column, overflow="fold")
    for adapter in sorted(library, key=lambda a: (a.state, a.name)):
        seen = counts.get(adapter.adapter_id, adapter.statistics)
        rate = f"{seen.successes / seen.outcomes:.0%}" if seen.outcomes else "-"
        story = "child of a merge" if adapter.merge_id else "kept"
        if adapter.state == common.ADAPTER_STATE_RETIRED:
            story = "merged" if adapter.adapter_id in parents else f"pruned: {adapter.state_reason}"
        table.add_row(adapter.name, str(seen.uses), rate, story)
    console.print(table)


def _show(console: Console, result: dict[str, Any]) -> None:
    table = Table(title=f"{result['queries']} test queries, no job named, {result['seconds']} s")
    table.add_column("measure")
    table.add_column("value", justify="right")
    rows = [
        ("right adapter first / among three", f"{result['route_top1']:.1%} / {result['route_top3']:.1%}"),
        *(
            (f"exact match, {name}" + ("" if name in ("routed", "oracle") else f" (of {result['control_queries']})"), f"{value:.1%}")
            for name, value in result["exact_match"].items()
        ),
        (
            "exact match of merged jobs, before / after",
            f"{result['exact_match_before_merge']:.1%} / {result['exact_match_after_merge']:.1%}",
        ),
        ("route p50 / p99", f"{result['route_ms']['p50']} / {result['route_ms']['p99']} ms"),
        ("first token p50 / p99", f"{result['ttft_ms']['p50']} / {result['ttft_ms']['p99']} ms"),
        ("routing cache / adapter cache hits", f"{result['router_cache_hit_rate']:.1%} / {result['adapter_cache_hit_rate']:.1%}"),
        ("events sent / counted", f"{result['events']['sent']} / {result['events']['counted']}"),
        ("adapters before / after", f"{result['adapters']['before']} / {result['adapters']['after']}"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)


@click.command("demo")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write what was measured here.")
@click.option("--queries-per-job", type=click.IntRange(1, 40), default=14, show_default=True)
@click.option(
    "--kafka", envvar="SMOA_KAFKA_BOOTSTRAP", default="", help="A real Kafka [SMOA_KAFKA_BOOTSTRAP]; left out, an embedded broker."
)
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="Where the services' log goes; default: a temporary file.")
def demo(json_path: Path | None, queries_per_job: int, kafka: str, log: Path | None) -> None:
    """Start the stack, register the example library and decoys, send queries, report outcomes, let the optimizer act.

    It runs on free ports in a temporary folder and leaves nothing behind but its log. Takes a few minutes on two cores.
    """
    console = Console()
    with contextlib.ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smoa-demo-")))
        log = log or Path(tempfile.gettempdir()) / f"smoa-demo-{os.getpid()}.log"
        result = asyncio.run(run(data, log, queries_per_job, kafka, console))
    _show(console, result)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=2) + "\n")
        click.echo(f"wrote {json_path}")
