"""Merging on the real model: a library of near-duplicates before and after, and planted bad merges that are rolled back.

The example library's adapters, each with a near-duplicate (a tenth of noise in its weights), behind a running stack. The optimizer merges
the pairs, each as a canary that real answers promote; exact match of routed queries is taken before and after, on the same queries, so
that those whose answer changed can be counted. Then two adapters get a child of random weights, as a merge that went wrong would, and two
others one that is the first of them, and so is bad for the second alone; traffic goes on until the optimizer has rolled each back.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from examples.library.jobs import JOBS
from services.demo.adapters import SEED, described, near_duplicate, random_copy, trained
from services.demo.caller import Caller, Query
from services.demo.showing import run_all
from services.local import LocalStack, StackSettings, free_port
from services.optimizer.control.gate import Gate
from services.optimizer.stream.effects import key_of
from smoa.adapter import decode, encode
from smoa.client import SmoaClient
from smoa.events import LIFECYCLE
from smoa.reader import read_topic
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.events_pb2 import Example, LifecycleEvent

A_ROUND = 15
"""Queries of each job whose trial is open, again and again until it is closed."""
MOST_ROUNDS = 60
"""Of those: a child has about three hundred outcomes by then, and what was not shown by them counts as not merged."""


def _ref(adapter: registry_pb2.Adapter) -> common.WeightedAdapter:
    return common.WeightedAdapter(adapter_id=adapter.adapter_id, version=adapter.version, digest=adapter.digest, weight=1.0)


class Library(Caller):
    """The demonstration's driver, over a library of twins."""

    gate_loss = 0.0
    """Of the planted child; it goes on trial all the same."""

    async def register_twins(self, jobs: Sequence[str]) -> None:
        """Each job's adapter and its near-duplicate."""
        rng = np.random.default_rng(SEED)
        for name in jobs:
            original = trained(name)
            pair = (original, near_duplicate(original, rng))
            await self.register([described(adapter, JOBS[name], seed) for seed, adapter in enumerate(pair)])

    async def active(self, *states: common.AdapterState) -> list[registry_pb2.Adapter]:
        """Those in these states; by default, active ones."""
        return [one async for one in self.client.list_all(states=states or (common.ADAPTER_STATE_ACTIVE,))]

    async def ask_each(self, label: str, queries: Sequence[Query]) -> tuple[set[Query], Counter[str]]:
        """Route, answer and report; which were answered rightly, and how often each adapter was chosen."""
        right: set[Query] = set()
        seen: Counter[str] = Counter()

        async def one(query: Query) -> None:
            decision = await self.client.route(query.text, base_model=self.base_model)
            answer = await self.answer(query.text, decision.adapters, decision.decision_id)
            await self.client.report(decision, success=answer == query.answer, input_text=query.text, output=answer)
            if answer == query.answer:
                right.add(query)
            seen.update({adapter.adapter_id for adapter in decision.adapters})

        await run_all(self.console, label, [lambda query=query: one(query) for query in queries])  # type: ignore[misc]
        return right, seen

    async def plant_bad_merge(self, first: int, *, for_one: bool) -> registry_pb2.Adapter:
        """A child on trial for two adapters that do well, the `first` by name and the next: of random weights or, bad `for_one` of them,
        the first's.
        """
        tried = {parent for one in await self.active(common.ADAPTER_STATE_CANARY) for parent in one.canary_baseline}
        free = [one for one in await self.active() if one.adapter_id not in tried]
        parents = sorted(free, key=lambda one: one.name)[first : first + 2]
        model = decode(await self.store.get(parents[0].digest))
        bad = (
            near_duplicate(model, np.random.default_rng(SEED))
            if for_one
            else random_copy(model, "planted", np.random.default_rng(SEED), ())
        )
        manifest = bad.manifest.__class__(**{**vars(bad.manifest), "parents": tuple(parent.adapter_id for parent in parents)})
        digest = await self.store.put(encode(type(bad)(manifest, bad.tensors)))
        child = common.WeightedAdapter(adapter_id=manifest.adapter_id, version=manifest.version, digest=digest, weight=1.0)
        self.gate_loss = (await self._gate(parents).compare("public", [_ref(one) for one in parents], child)).worst[1]
        return await self.client.apply_merge("public", f"planted-{first}", digest, list(manifest.parents), "planted", 0.2)

    def _gate(self, parents: Sequence[registry_pb2.Adapter]) -> Gate:
        """The optimizer's, on the jobs' own training examples."""
        given = {
            key_of(one.adapter_id, "public"): [
                Example(input=pair.input, output=pair.output) for pair in JOBS[one.name.removesuffix("-copy")].generate("train", 8, SEED)
            ]
            for one in parents
        }

        async def examples(key: str) -> list[Example]:
            return given[key]

        return Gate(self.client, examples)


async def run(jobs: Sequence[str], queries_per_job: int, console: Console, folder: Path) -> dict[str, Any]:
    """The whole of it."""
    settings = StackSettings(
        data=folder,
        router_port=free_port(),
        executor_port=free_port(),
        gateway_port=free_port(),
        environment={
            "SMOA_OPTIMIZER_CANARY_SHARE": "0.2",
            "SMOA_OPTIMIZER_INTERVAL_S": "0",
            "SMOA_OPTIMIZER_MIN_AGE_S": "0",
            "SMOA_OPTIMIZER_OBSERVE_FIRST_S": "0",
            "SMOA_STORE": str(folder / "store"),
        },
    )
    with (folder / "log").open("w") as log:
        stack = LocalStack(settings, log)
        await stack.start()
        try:
            # A batch: how long an answer takes is nothing that it measures, and a small machine takes 8 s with sixteen at once.
            async with SmoaClient(router=settings.router, executor=settings.executor, timeout_s=300.0) as client:
                library = Library(client, AdapterStore(settings.store), console)
                return await _measure(library, client, stack, jobs, queries_per_job)
        finally:
            await stack.stop()


async def _measure(library: Library, client: SmoaClient, stack: LocalStack, jobs: Sequence[str], queries_per_job: int) -> dict[str, Any]:
    await library.register_twins(jobs)
    asked_of = {name: [Query(name, one.input, one.output) for one in JOBS[name].generate("test", queries_per_job, SEED)] for name in jobs}
    queries = [query for ones in asked_of.values() for query in ones]
    random.Random(SEED).shuffle(queries)
    adapters_before = len(await library.active())
    before, _ = await library.ask_each("before", queries)
    os.kill(stack.pid("optimizer"), signal.SIGUSR1)
    library.console.print(f"before: {len(before)} of {len(queries)} right")
    await _until(lambda: library.active(common.ADAPTER_STATE_CANARY), len, 900)
    rounds = 0
    while (open_now := await library.active(common.ADAPTER_STATE_CANARY)) and rounds < MOST_ROUNDS:
        rounds += 1
        wanted = sorted({one.name.removesuffix("-copy") for one in open_now})
        await library.ask_each(f"trials, {len(open_now)} open", [query for name in wanted for query in asked_of[name][:A_ROUND]])
    adapters_after = len(await library.active())
    after, _ = await library.ask_each("after", queries)
    library.console.print(f"after: {len(after)} of {len(queries)} right, {adapters_before} adapters are {adapters_after}")

    told = [LifecycleEvent.FromString(one.value) async for one in read_topic(stack.kafka_bootstrap, LIFECYCLE) if one.value]
    gated = [one.evidence for one in told if one.evidence.get("gate_examples")]
    bad = await _undone(library, client, stack, asked_of, first=0, for_one=False)
    bad_for_one = await _undone(library, client, stack, asked_of, first=2, for_one=True)
    return {
        "adapters_before": adapters_before,
        "adapters_after": adapters_after,
        "fewer": 1 - adapters_after / adapters_before,
        "exact_match_before": len(before) / len(queries),
        "exact_match_after": len(after) / len(queries),
        "points_lost": 100 * (len(before) - len(after)) / len(queries),
        "right_before_only": len(before - after),
        "right_after_only": len(after - before),
        "queries": len(queries),
        "trial_rounds": rounds,
        "gated_merges": len(gated),
        "gate_examples_median": median([one["gate_examples"] for one in gated] or [0.0]),
        "gate_loss_median": median([one["gate_loss"] for one in gated] or [0.0]),
        "gate_loss_most": max((one["gate_loss"] for one in gated), default=0.0),
        **{f"bad_merge_{name}": value for name, value in bad.items()},
        **{f"bad_for_one_{name}": value for name, value in bad_for_one.items()},
    }


async def _undone(
    library: Library, client: SmoaClient, stack: LocalStack, asked_of: dict[str, list[Query]], *, first: int, for_one: bool
) -> dict[str, Any]:
    """Plant a bad merge, and ask its parents' queries until it is rolled back: how many it answered, of those that it is bad for."""
    child = await library.plant_bad_merge(first, for_one=for_one)
    os.kill(stack.pid("optimizer"), signal.SIGUSR1)  # it was not the optimizer that opened this trial: a pass shows it
    spoilt = [(await client.get(parent)).name.removesuffix("-copy") for parent in child.parents]
    broken = asked = requests = 0
    while (await client.get(child.adapter_id)).state == common.ADAPTER_STATE_CANARY and asked < 2000:
        for name in spoilt:
            _, chosen = await library.ask_each("bad merge", asked_of[name][:A_ROUND])
            asked, requests = asked + A_ROUND, requests + chosen[child.adapter_id]
            broken += chosen[child.adapter_id] if name == spoilt[-1] or not for_one else 0
    end = await client.get(child.adapter_id)
    return {
        "gate_loss": library.gate_loss,
        "requests": requests,
        "requests_of_those_it_is_bad_for": broken,
        "state": common.AdapterState.Name(end.state),
        "reason": end.state_reason,
    }


async def _until(look: Callable[[], Awaitable[list[Any]]], good: Callable[[list[Any]], int], within_s: float) -> list[Any]:
    """Look until the same good thing is seen for half a minute: each merge is made, and tried on examples, before the next."""
    deadline, last, since = time.monotonic() + within_s, 0, time.monotonic()
    while True:
        found = await look()
        if good(found) != last:
            last, since = good(found), time.monotonic()
        if last and time.monotonic() > since + 30:
            return found
        assert time.monotonic() < deadline, "no merge was put on trial"
        await asyncio.sleep(0.2)


@click.command(help=__doc__)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--jobs", default=len(JOBS), show_default=True, help="Jobs of the example library.")
@click.option("--queries-per-job", default=40, show_default=True, help="Asked before merging and after it.")
def main(json_path: Path | None, jobs: int, queries_per_job: int) -> None:
    """See the module."""
    with TemporaryDirectory() as folder:
        result = asyncio.run(run(sorted(JOBS)[:jobs], queries_per_job, Console(stderr=True), Path(folder)))
    table = Table("", "", title=f"merging on the real model, {machine()}")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps({"machine": machine(), **result}, indent=2))


if __name__ == "__main__":
    main()
