"""The optimizer's stream: events a second beside a plain Faust table, what one event costs at each step, and exactness under faults.

Throughput: Kafka is filled first, then one worker empties it; rounds take turns on a fresh broker each, and the median counts. An event is
a decision or an outcome: ours are joined, spread over their adapters and counted, with both changelogs on. The plain table counts one
adapter outcome a message. Needs SMOA_TEST_KAFKA_HOME, as the tests with a real Kafka do.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from aiokafka import TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.plain_faust import GROUP, TOPIC
from services.optimizer.stream.counting import CountPartition
from services.optimizer.stream.joining import JoinPartition, segment_of
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, OUTCOMES, Event, headers, unpack
from smoa.outbox import Outbox, Record, records_of
from smoa.topics import Topic, ensure_topics, partition_of
from smoa.v1.events_pb2 import AdapterOutcome
from tests.kafka_support import HOME, ApacheKafka, EmbeddedBroker, broker_of, until
from tests.stream_support import PARTITIONS, ChaosReport, Faults, Progress, Traffic, Watch, Worker, chaos, counted, difference

_SAY = Console(stderr=True)
_BATCH_BYTES = 32 * 1024  # what a router's publisher makes of 500 events a batch, four partitions


@asynccontextmanager
async def kafka(nodes: int = 1) -> AsyncIterator[tuple[ApacheKafka | EmbeddedBroker, Path]]:
    """A broker, or several, or, for 0, the embedded one, and a folder for what uses them."""
    with TemporaryDirectory() as name:
        broker = broker_of(nodes, Path(name) / "kafka")
        try:
            await broker.start()
            yield broker, Path(name)
        finally:
            await broker.stop()


class Filled:
    """Records in Kafka, and how many events come before each offset."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.events = 0
        self._before: defaultdict[TopicPartition, list[int]] = defaultdict(lambda: [0])
        for one in records:
            held = len(unpack(one.topic, 0, 0, one.key, one.value, one.headers)) if one.topic != TOPIC else 1
            before = self._before[TopicPartition(one.topic, one.partition)]
            before.append(before[-1] + held)
            self.events += held

    def done(self, progress: Progress) -> int:
        """Events that are committed."""
        return sum(before[progress.committed.get(where, 0)] for where, before in self._before.items())


async def send_all(bootstrap: str, records: Sequence[Record]) -> None:
    """Send in slices that a producer's buffer takes."""
    outbox = Outbox(bootstrap, 60)
    try:
        for start in range(0, len(records), 5_000):
            await outbox.send(records[start : start + 5_000])
    finally:
        await outbox.close()


async def rate(watch: Watch, filled: Filled, keep: Callable[[], None]) -> float:
    """Events a second, from the first commit to the last."""
    first: tuple[float, int] | None = None
    deadline = time.monotonic() + 300
    while True:
        found = await watch.progress()
        now = time.monotonic()
        assert now < deadline, "the worker did not finish"
        keep()
        if found is not None and filled.done(found):
            if first is None:
                first = now, filled.done(found)
            if not found.behind() and filled.done(found) == filled.events:
                assert now > first[0], "too few events to time"
                return (filled.events - first[1]) / (now - first[0])
        await asyncio.sleep(0.05)


async def ours(traffic: Traffic, events: Sequence[Event], packed: bool) -> float:
    """A worker of ours; checks its counts."""
    async with kafka() as (broker, folder):
        records = records_of(
            [(one, 0) for one in events], dict.fromkeys((DECISIONS, OUTCOMES), PARTITIONS), "", _BATCH_BYTES if packed else 0
        )
        filled = Filled(records)
        await send_all(broker.bootstrap, records)
        watch = Watch(broker.bootstrap)
        worker = Worker(broker.bootstrap, folder, "worker")
        try:
            found = await rate(watch, filled, worker.keep)
            assert difference(traffic.truth, await counted(broker.bootstrap)) == (0, 0), "counts differ"
            return found
        finally:
            worker.stop()
            await watch.close()


async def plain(events: int) -> float:
    """A worker of the plain kind."""
    rng = random.Random(1)
    names = [f"adapter-{number:020d}" for number in range(500)]
    records = []
    for _ in range(events):
        name = names[int(rng.paretovariate(0.7)) % len(names)]
        value = AdapterOutcome(adapter_id=name, tenant="t", used=True, weight=1.0).SerializeToString()
        records.append(Record(TOPIC, partition_of(name.encode(), PARTITIONS), name.encode(), value, headers("smoa.v1.AdapterOutcome")))
    async with kafka() as (broker, folder):
        await ensure_topics(broker.bootstrap, [Topic(TOPIC)], PARTITIONS)
        filled = Filled(records)
        await send_all(broker.bootstrap, records)
        command = [sys.executable, "-m", "benchmarks.plain_faust", broker.bootstrap, str(folder / "faust")]
        with (folder / "plain.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        watch = Watch(broker.bootstrap, GROUP, [TOPIC])
        try:
            return await rate(watch, filled, lambda: None)
        finally:
            process.kill()
            process.wait(10)
            await watch.close()


def steps(events: Sequence[Event]) -> dict[str, float]:
    """Microseconds an event takes in each step of a worker, without Kafka."""
    spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def step(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        spent[name] += time.perf_counter() - began

    joins, counts = JoinPartition[int](0, 1, []), CountPartition(1e6, {})
    with step("pack"):
        records = records_of([(one, 0) for one in events], dict.fromkeys((DECISIONS, OUTCOMES), 1), "", _BATCH_BYTES)
    for offset, one in enumerate(records):
        with step("unpack"):
            received = unpack(one.topic, 0, offset, one.key, one.value, one.headers)
        with step("join"):
            plan = joins.plan(received, 1)
        with step("join state"):
            entries = list(plan.entries.values())
            segment_of(entries)
            joins.apply(offset, entries)
        with step("pack effects"):
            effects = records_of([(effect, 0) for effect in plan.effects], {ADAPTER_OUTCOMES: PARTITIONS})
        for effect in effects:
            with step("unpack effects"):
                back = unpack(effect.topic, 0, offset * PARTITIONS + effect.partition, effect.key, effect.value, effect.headers)
            with step("count"):
                counting = counts.plan(back, 1)
            with step("count state"):
                counts.apply(counting)
    return {name: 1e6 * seconds / len(events) for name, seconds in spent.items()}


async def faulty(nodes: int, events: int, faults: int) -> ChaosReport:
    """Two workers, and faults of workers and brokers; 0 nodes: the embedded broker."""
    async with AsyncExitStack() as stack:
        broker, folder = await stack.enter_async_context(kafka(nodes))
        bootstrap, chosen = broker.bootstrap, random.Random(nodes)

        async def restart() -> None:
            broker.kill(chosen.randint(1, max(nodes, 1)))
            await broker.start()

        workers: list[Worker] = []
        try:
            for name in ("first", "second"):
                workers.append(worker := Worker(bootstrap, folder, name))
                await until(f"the {name} worker", 60, worker.is_ready)
            trouble = Faults(workers, restart, random.Random(nodes))
            return await chaos(bootstrap, Traffic(nodes), trouble, events, faults, events / 400)
        finally:
            for worker in workers:
                worker.stop()


@click.command(help=__doc__)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of throughput; the median counts.")
@click.option("--events", default=400_000, show_default=True, help="Events of one round; a plain one has a sixth.")
@click.option("--chaos-events", default=200_000, show_default=True, help="Events sent while faults happen; 0 leaves them out.")
@click.option("--faults", default=21, show_default=True, help="How many, one after another.")
@click.option("--nodes", default="0,1,3", show_default=True, help="Sizes of the Kafka clusters that faults happen on; 0: embedded broker.")
def main(json_path: Path | None, rounds: int, events: int, chaos_events: int, faults: int, nodes: str) -> None:
    """See the module."""
    if not HOME:
        raise click.ClickException("SMOA_TEST_KAFKA_HOME is not set: name the folder whose `serve` starts a real Apache Kafka")
    result: dict[str, Any] = {"machine": machine(), "command": " ".join(sys.argv)}
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        traffic = Traffic(number)
        made = traffic.make(events) + traffic.rest()
        few = Traffic(number)
        fewer = few.make(events // 6) + few.rest()
        rates["events_per_s"].append(asyncio.run(ours(traffic, made, packed=True)))
        rates["unpacked_events_per_s"].append(asyncio.run(ours(few, fewer, packed=False)))
        rates["plain_faust_events_per_s"].append(asyncio.run(plain(events // 6)))
        _SAY.print(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items()))
    if rounds:
        result |= {name: statistics.median(values) for name, values in rates.items()}
        result["rounds"] = dict(rates)
        costs = [steps(made[:100_000]) for _ in range(3)]
        result["step_us"] = {step: statistics.median(one[step] for one in costs) for step in costs[0]}
    if chaos_events:
        reports = {}
        for size in map(int, nodes.split(",")):
            reports[size] = report = asyncio.run(faulty(size, chaos_events, faults))
            _SAY.print(f"{size} broker(s): {report}")
        took = [seconds for report in reports.values() for _, seconds in report.recovery_s]
        result |= {
            "lost": sum(report.lost for report in reports.values()),
            "duplicated": sum(report.duplicated for report in reports.values()),
            "recovery_p50_s": float(np.percentile(took, 50)),
            "recovery_p99_s": float(np.percentile(took, 99)),
            "chaos": {size: asdict(report) for size, report in reports.items()},
        }
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=2))
    table = Table("", "", title=f"optimizer on {machine()}")
    for name, value in result.items():
        if isinstance(value, int | float):
            table.add_row(name, f"{value:,.1f}")
    for step, micros in result.get("step_us", {}).items():
        table.add_row(f"{step}, us an event", f"{micros:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
