"""What a pass of the optimizer costs by the size of the library: the first, and one after little changed.

A router process on its own data with so many adapters of one family, none of them alike, and their files; the optimizer's passes in this
process, over gRPC. Between passes the counts of some adapters change, as traffic would do it. Nobody asks for the others, so they are not
sketched; what a sketch costs is measured by itself, of LoRA files of a small model's size: made of the file, as once, and read from beside
it, as by every worker that starts later.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.router import BATCH
from benchmarks.router_processes import BASE, RouterProcess
from examples.generated import Library, generate, imported
from services.demo.showing import progress
from services.optimizer.control.likeness import Member
from services.optimizer.control.passes import Optimizer
from services.optimizer.control.sketches import HasFile, Refuse, Sketches
from services.optimizer.policy.library_policy import Rules
from smoa.adapter import Adapter, Manifest, decode, encode, new_adapter_id
from smoa.client import SmoaClient
from smoa.store import AdapterStore
from smoa.v1 import registry_pb2
from tests.reports_support import report_one

PASSES = 3
SETTLE_S = 70.0
"""Until what was imported is not read again as new: a listing of what changed looks back a minute."""
MODULES = ("q_proj", "v_proj")
console = Console(stderr=True)


async def measure(size: int, changed: int) -> dict[str, float]:
    """Everything about one size."""
    library, _ = generate(size)
    ids = [new_adapter_id() for _ in range(size)]
    with tempfile.TemporaryDirectory(dir=Path("build")) as folder:
        router = RouterProcess(Path(folder), {})
        try:
            await router.start()
            async with SmoaClient(router=router.address, timeout_s=600.0) as client:
                await _import(client, AdapterStore(str(Path(folder) / "store")), library, ids)
                await asyncio.sleep(SETTLE_S)
                optimizer = Optimizer(client, AdapterStore(str(Path(folder) / "store")), Rules(), lambda _: 0, 100_000)
                first_s = await _timed(optimizer)
                later = []
                for turn in range(PASSES):
                    counts = registry_pb2.AdapterStatistics(uses=turn + 1, recent_uses=1.0, recent_at_us=time.time_ns() // 1000)
                    for adapter_id in ids[turn * changed : (turn + 1) * changed]:
                        await report_one(client, "public", adapter_id, counts)
                    later.append(await _timed(optimizer))
        finally:
            router.stop()
    return {"first_pass_s": first_s, "later_pass_s": sorted(later)[PASSES // 2]}


async def _import(client: SmoaClient, store: AdapterStore, library: Library, ids: Sequence[str]) -> None:
    rng = np.random.default_rng(5)

    async def one(number: int) -> registry_pb2.ImportedAdapter:
        manifest = Manifest(adapter_id=ids[number], name=str(number), kind="lora_xs", base_model=BASE, rank=8, modules=MODULES, layers=(0,))
        tensors: dict[str, NDArray[np.float32]] = {}
        for module in MODULES:
            tensors |= {module: rng.standard_normal((1, 8, 8)).astype(np.float32), f"{module}.s": np.ones((1, 8), np.float32)}
        made = imported(library, number, ids[number], BASE)
        made.adapter.digest = await store.put(encode(Adapter(manifest, tensors)))
        made.adapter.name = str(number)
        return made

    with progress(console, "import", len(ids)) as advance:
        for start in range(0, len(ids), BATCH):
            batch = await asyncio.gather(*(one(number) for number in range(start, min(start + BATCH, len(ids)))))
            async for _ in client.import_adapters(iter([batch]), files_unchecked=True):
                advance(len(batch))


async def sketches(count: int) -> dict[str, float]:
    """Milliseconds of a sketch that is made, and of one that is read, of so many rank-8 LoRA files for two modules of 30 layers."""
    rng = np.random.default_rng(6)
    paths = [f"model.layers.{layer}.self_attn.{module}" for layer in range(30) for module in MODULES]
    shapes = {f"{path}.{name}": shape for path in paths for name, shape in (("lora_A", (8, 576)), ("lora_B", (576, 8)))}
    with tempfile.TemporaryDirectory(dir=Path("build")) as folder:
        store, members = AdapterStore(folder), list[Member]()
        for number in range(count):
            manifest = Manifest(
                adapter_id=new_adapter_id(),
                name=str(number),
                kind="lora",
                base_model=BASE,
                rank=8,
                modules=MODULES,
                layers=tuple(range(30)),
            )
            tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
            members.append(Member(manifest.adapter_id, await store.put(encode(Adapter(manifest, tensors))), 0.0))

        async def read(one: HasFile, refuse: Refuse) -> Adapter:
            return decode(await store.get(one.digest))

        found = {}
        for what in ("made", "kept"):
            began_s = time.perf_counter()
            await Sketches(store, read).find(members, console.print)
            found[f"sketch_{what}_ms"] = 1e3 * (time.perf_counter() - began_s) / count
    return found


async def _timed(optimizer: Optimizer) -> float:
    started = time.perf_counter()
    await optimizer.run_pass()
    return time.perf_counter() - started


@click.command(help=__doc__)
@click.option("--adapters", type=click.IntRange(1), multiple=True, default=(10_000, 100_000), show_default=True, help="May repeat.")
@click.option("--changed", default=200, show_default=True, help="Adapters whose counts change between two passes.")
@click.option("--sketches", "sketched", default=500, show_default=True, help="Files of which sketches are made, and read.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def main(adapters: tuple[int, ...], changed: int, sketched: int, json_path: Path | None) -> None:
    """See the module."""
    Path("build").mkdir(exist_ok=True)
    of_sketches = asyncio.run(sketches(sketched))
    Console().print(", ".join(f"{name} {value:.2f}" for name, value in of_sketches.items()))
    found = {f"{size:,}": asyncio.run(measure(size, changed)) for size in adapters}
    table = Table("adapters", *next(iter(found.values())), title=f"a pass, {machine()}")
    for size, values in found.items():
        table.add_row(size, *(f"{value:.2f}" for value in values.values()))
    Console().print(table)
    if json_path is not None:
        json_path.write_text(
            json.dumps({"machine": machine(), "command": " ".join(sys.argv), "sketches": of_sketches, "sizes": found}, indent=2)
        )


if __name__ == "__main__":
    main()
