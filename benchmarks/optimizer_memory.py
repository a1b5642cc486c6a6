"""What an optimizer worker holds, and how long it looks, for a million adapters.

One process, without Kafka and without a registry: the entries that a registry would list are made here, as protobuf messages of the size
that real ones have, and given to the worker's own `Library` one after the other; the counts go through its own `CountPartition`, as the
effects of that many decisions. Then a pass looks over the library, before and after little changed. Memory is the process's, less what it
took before.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from services.demo.showing import progress
from services.optimizer.control.library import Library
from services.optimizer.policy.library_policy import Rules
from services.optimizer.policy.screening import screened
from services.optimizer.stream.changelog import stamp_of
from services.optimizer.stream.count_agent import Stamps
from services.optimizer.stream.counting import CountPartition
from smoa.adapter import new_adapter_id
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, OUTCOMES, Received
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.events_pb2 import AdapterOutcome
from tests.stream_support import PARTITIONS

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
AT_ONCE = 10_000
DAY_US = 86400 * 10**6
console = Console(stderr=True)


class _Registry:
    """Lists what it is told to."""

    def __init__(self) -> None:
        self.listed: Iterator[registry_pb2.Adapter] = iter(())

    async def list_all(self, **_: Any) -> AsyncIterator[registry_pb2.Adapter]:
        for number, one in enumerate(self.listed):
            if not number % 1000:
                await asyncio.sleep(0)
            yield one


def _entry(adapter_id: str, number: int, tenants: int, asked: float) -> registry_pb2.Adapter:
    """As the registry would list it: a month old, and asked of late by that chance."""
    now_us, rng = time.time_ns() // 1000, random.Random(number)
    uses = rng.randrange(1, 500)
    fresh = rng.random() < asked
    one = registry_pb2.Adapter(
        adapter_id=adapter_id,
        version=1,
        digest=f"{rng.getrandbits(256):064x}",
        tenant=f"tenant-{number % tenants}",
        name=f"support-answers-{number}",
        kind=common.ADAPTER_KIND_LORA,
        base_model="9b1a5d3f7c",
        rank=8,
        modules=MODULES,
        parameter_count=1_000_000,
        tags=["team:support"],
        example_count=20,
        state=common.ADAPTER_STATE_ACTIVE,
        created_at_us=now_us - 30 * DAY_US,
        updated_at_us=now_us,
        file_bytes=2_000_000,
        examples_digest=f"{rng.getrandbits(256):064x}",
    )
    counts = registry_pb2.AdapterStatistics(
        uses=uses,
        verdicts=uses,
        outcomes=uses,
        successes=uses * 0.8,
        recent_uses=uses / 10 if fresh else 0.1,
        recent_outcomes=uses / 10 if fresh else 0.1,
        recent_successes=uses / 12 if fresh else 0.08,
        recent_at_us=now_us,
        last_used_at_us=now_us - (0 if fresh else 13 * DAY_US),
        longest_gap_us=3 * DAY_US,
        epoch="01ARZ3NDEKTSV4RRFFQ69G5FAV",
        counted_since_us=now_us - 60 * DAY_US,
    )
    counts.epochs[counts.epoch].CopyFrom(registry_pb2.EpochCounts(uses=uses, outcomes=uses, successes=uses * 0.8, verdicts=uses))
    one.statistics.CopyFrom(counts)
    return one


def _used(ids: list[str], tenants: int) -> Iterator[Received]:
    """A decision and an outcome for each."""
    at_us = time.time_ns() // 1000
    for number, adapter_id in enumerate(ids):
        for topic in (DECISIONS, OUTCOMES):
            effect = AdapterOutcome(
                adapter_id=adapter_id,
                tenant=f"tenant-{number % tenants}",
                source_topic=topic,
                source_partition=number % PARTITIONS,
                source_position=number,
                occurred_at_us=at_us,
                used=topic == DECISIONS,
            )
            if topic == OUTCOMES:
                effect.success = True
            yield Received(ADAPTER_OUTCOMES, 0, number, 0, adapter_id.encode(), effect.SerializeToString(), "", 0)


def _held_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure(size: int, tenants: int, asked: float, changed: int) -> dict[str, float]:
    """Everything about one size."""
    ids = [new_adapter_id() for _ in range(size)]
    before = _held_bytes()
    registry, rules = _Registry(), Rules()
    library = Library(registry, rules.half_life_s)  # type: ignore[arg-type]
    with progress(console, "list", size) as advance:

        def listed() -> Iterator[registry_pb2.Adapter]:
            for number, adapter_id in enumerate(ids):
                yield _entry(adapter_id, number, tenants, asked)
                if number % AT_ONCE == AT_ONCE - 1:
                    advance(AT_ONCE)

        registry.listed = listed()
        await library.refresh()
    of_library = _held_bytes() - before
    looks = [_look(library, rules) for _ in range(4)]
    library.versions()
    of_pass = _held_bytes() - before
    registry.listed = (_entry(ids[number], number, tenants, asked) for number in range(changed))
    started = time.perf_counter()
    await library.refresh()
    refresh_s = time.perf_counter() - started
    before = _held_bytes()
    counts, stamps, stamp = CountPartition(rules.half_life_s, {}), dict[str, Stamps](), (stamp_of(1, 0),)
    with progress(console, "count", size) as advance:
        for start in range(0, size, AT_ONCE):
            plan = counts.plan(list(_used(ids[start : start + AT_ONCE], tenants)), time.time_ns() // 1000)
            counts.apply(plan)
            stamps.update((name, stamp) for name in plan.values)
            advance(AT_ONCE)
    return {
        "library_bytes_each": of_library / size,
        "after_looks_bytes_each": of_pass / size,
        "counts_bytes_each": (_held_bytes() - before) / size,
        "look_s": sorted(looks)[1],
        "refresh_s": refresh_s,
        "process_bytes": float(_held_bytes()),
    }


def _look(library: Library, rules: Rules) -> float:
    started = time.perf_counter()
    screen = screened(library.blocks, library.families, rules, time.time_ns() // 1000, 0.0)
    assert len(screen.tenants) > 0
    return time.perf_counter() - started


@click.command(help=__doc__)
@click.option("--adapters", default=1_000_000, show_default=True, type=click.IntRange(1))
@click.option("--tenants", default=1000, show_default=True, type=click.IntRange(1), help="That own them.")
@click.option("--asked", default=0.1, show_default=True, type=click.FloatRange(0, 1), help="Share that was asked of late.")
@click.option("--changed", default=200, show_default=True, type=click.IntRange(0), help="Adapters that are listed again.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def main(adapters: int, tenants: int, asked: float, changed: int, json_path: Path | None) -> None:
    """See the module."""
    found = asyncio.run(measure(adapters, tenants, asked, changed))
    table = Table("", "", title=f"{adapters:,} adapters, {machine()}")
    for name, value in found.items():
        table.add_row(name, f"{value:,.3f}" if name.endswith("_s") else f"{value:,.0f}")
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine(), "command": " ".join(sys.argv), "adapters": adapters, **found}, indent=2))


if __name__ == "__main__":
    main()
