"""A library: 57 adapters with their files, and as many again as is asked of vectors only. Needs a router only."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from examples.library.jobs import DECOY_JOBS, JOBS
from services.demo.adapters import COPIES, library_of_57
from services.demo.caller import Caller
from services.demo.session import Session
from services.demo.showing import show_table
from services.demo.vectors import BASE_MODEL, GrowingLibrary, environment
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

TAG = "medical"


async def run(session: Session) -> dict[str, Any]:
    """Returns what was measured."""
    async with session.stack("router", **environment()) as running:
        caller = Caller(running.client, running.store, session.console)
        library = library_of_57()
        started = time.perf_counter()
        with session.console.status("registering 57 adapters"):
            await caller.register(library)
        small: dict[str, Any] = {"adapters": len(library), "register_s": round(time.perf_counter() - started, 2)}
        records = await caller.library()
        tagged = [record async for record in running.client.list_all(tags=[TAG])]
        small |= {"file_bytes": sum(record.file_bytes for record in records), "tagged": len(tagged)}
        _show_small(session, records, small)

        large = await GrowingLibrary.make(session.console, running, session.adapters)
        empty_mb = large.disk_mb()
        grown = await large.grow(session.adapters)
        latency, recall = await large.latency(300), await large.recall(50)
        started = time.perf_counter()
        request = registry_pb2.ListAdaptersRequest(base_model=BASE_MODEL, tags=["domain-1"], page_size=100)
        page = await running.client.registry.ListAdapters(request, timeout=60)
        big = {
            "adapters": large.size,
            **{name: round(value, 2) for name, value in grown.items()},
            "route_ms": latency,
            "recall_at_10": round(recall, 3),
            "list_page_ms": round((time.perf_counter() - started) * 1000, 1),
            "listed": len(page.adapters),
            "resident_mb": round(large.resident_mb()),
            "disk_mb": round(large.disk_mb()),
            "disk_kb_an_adapter": round((large.disk_mb() - empty_mb) * 2**20 / large.size / 1000, 2),
        }
    _show_large(session, big)
    _conclude(session, small, big)
    return {"small": small, "large": big}


def _show_small(session: Session, records: list[registry_pb2.Adapter], small: dict[str, Any]) -> None:
    kinds = {"trained": 0, "near-duplicate": 0, "random weights": 0}
    for record in records:
        kinds["near-duplicate" if "-copy" in record.name else "random weights" if record.name in DECOY_JOBS else "trained"] += 1
    meaning = {
        "trained": f"one for each of {len(JOBS)} jobs, {records[0].parameter_count:,} parameters",
        "near-duplicate": f"planted: {COPIES} with a tenth of noise, what a second team trains",
        "random weights": "planted: decoys, registered for jobs that nobody trained",
    }
    show_table(
        session.console,
        "A library of 57",
        "Each is a file in the adapter store, named by its content, and a record and a vector in the router's catalogue; the vector is "
        "the mean of its example inputs.",
        ("what", ">adapters", "which"),
        [(kind, str(count), meaning[kind]) for kind, count in kinds.items()],
    )
    counts = Counter(common.Granularity.Name(record.granularity).removeprefix("GRANULARITY_") for record in records)
    sizes = ", ".join(f"{count} {size}" for size, count in counts.items())
    example = next(record for record in records if record.name == "med_department")
    session.say(
        f"Registered in {small['register_s']} s; {small['file_bytes'] / 1000:.0f} KB of files, {sizes} by size. "
        f"{small['tagged']} of them carry the tag {TAG}. One record: {example.name}, {example.adapter_id}, rank {example.rank}, "
        f"found by {example.example_count} examples, tags {', '.join(dict.fromkeys(example.tags))}."
    )


def _show_large(session: Session, big: dict[str, Any]) -> None:
    show_table(
        session.console,
        f"A library of {big['adapters']:,}, vectors only",
        "Made-up customers' adapters of made-up jobs, imported in batches while queries are answered; there are no weights, so it shows "
        "the catalogue and the search. Recall: how many of the true ten nearest are among the ten found.",
        ("measure", ">value"),
        [
            ("imported, adapters a second", f"{big['per_s']:,.0f}"),
            ("until durable and searchable / until the search is trained", f"{big['import_s']:.0f} / {big['ready_s']:.0f} s"),
            ("a query meanwhile, p50 / slowest", f"{big['while_importing_p50_ms']:.1f} / {big['while_importing_max_ms']:.0f} ms"),
            ("a query afterwards, p50 / p99", f"{big['route_ms']['p50']} / {big['route_ms']['p99']} ms"),
            ("recall at 10", f"{big['recall_at_10']:.3f}"),
            (f"first {big['listed']} of a tag listed", f"{big['list_page_ms']} ms"),
            ("router's memory / its catalogue on disk", f"{big['resident_mb']:,} / {big['disk_mb']:,} MB"),
        ],
    )


def _conclude(session: Session, small: dict[str, Any], big: dict[str, Any]) -> None:
    file_kb = small["file_bytes"] / small["adapters"] / 1000
    session.heading("What this shows")
    session.say(
        f"An adapter here is {file_kb:.1f} KB of weights in the store and {big['disk_kb_an_adapter']:.1f} KB in the catalogue. "
        f"{big['adapters']:,} were imported in {big['import_s']:.0f} s without stopping a query, and then one is found in "
        f"{big['route_ms']['p50']} ms. Their weights, were they there, would be {big['adapters'] * file_kb / 1e6:.1f} GB of files."
    )
