"""The executor against its peers and its own floor, in one run, interleaved, median of several.

Decode rate: steps in which every row decodes, so nobody's prompts count. Ours are timed from the first step after all prompts to the
first row's end; a peer, which answers whole batches, by a long run less a short one. Each row of ours has a mixture of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import os
import platform
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.peers import MODULES, PROMPT_TOKENS, VLLM_PYTHON, LinearFloor, Peer, Transformers, Vllm, save_loras
from services.executor.adapters.leases import AdapterRef
from services.executor.app import Executor, load
from services.executor.backends.native.library import VARIANTS, processor_variants
from services.executor.engine.pipeline import Generation
from services.executor.models.base_model import DEFAULT_BASE_MODEL, fingerprint, resolve
from services.executor.models.config import ModelConfig
from services.executor.models.prompt import user_turn
from services.executor.settings import MIB, ExecutorSettings
from smoa.adapter import Adapter, Kind, encode
from smoa.store import AdapterStore
from tests.model_support import random_adapter

BATCHES = (1, 8, 16, 32)
SLOTS = 32
CHAT_TEMPLATE = Path(__file__).with_name("chatml.jinja")
console = Console(stderr=True)


class World:
    """Our engine, a store of random adapters, and prompts that nobody has seen."""

    def __init__(self, folder: Path, store: Path, threads: int) -> None:
        self.folder, self.store = folder, AdapterStore(str(store))
        self.config, self.base_model = ModelConfig.from_folder(folder), fingerprint(folder)
        settings = ExecutorSettings(
            store=str(store), rows=32, slots=SLOTS * 8, slot_bytes=512 * MIB, context=256, max_waiting=512, threads=threads
        )
        self.executor = self.make(settings)
        self._prompts = random.Random(0)

    def make(self, settings: ExecutorSettings) -> Executor:
        """One that never ends an answer early, and adds no system turn, whose blocks all prompts would share; not started yet."""
        made = load(dataclasses.replace(settings, chat_template=str(CHAT_TEMPLATE)))
        made.requests.tokenizer.eos_ids = frozenset()
        return made

    def adapter(self, seed: int, kind: Kind = "lora_xs") -> Adapter:
        """A NANO adapter: `lora_xs` of rank 8 or `lora` of rank 2 on q and v of every layer."""
        rank = 8 if kind == "lora_xs" else 2
        return random_adapter(self.config, self.base_model, seed=seed, kind=kind, rank=rank, modules=MODULES, size=0.01, dtype=np.float16)

    async def adapters(self, count: int, kind: Kind = "lora_xs", store: AdapterStore | None = None) -> list[AdapterRef]:
        """New adapters in the store."""
        made = [self.adapter(seed, kind) for seed in range(count)]
        return [AdapterRef(one.manifest.adapter_id, 1, await (store or self.store).put(encode(one)), 0.3) for one in made]

    def prompt(self, words: int = PROMPT_TOKENS - 8) -> str:
        """A text of about so many tokens; the chat template adds eight."""
        return " ".join(self._prompts.choice(("the", "sea", "and", "a", "of", "rain", "house", "is", "red", "go")) for _ in range(words))

    async def answer(self, executor: Executor, refs: Sequence[AdapterRef], tokens: int, words: int = PROMPT_TOKENS - 8) -> list[float]:
        """Seconds from the request to each of its tokens."""
        request = Generation(tenant="public", messages=user_turn(self.prompt(words)), adapters=tuple(refs), max_tokens=tokens)
        began = time.perf_counter()
        return [time.perf_counter() - began async for piece in executor.requests.generate(request) for _ in range(piece.tokens)]

    async def decode(self, mixtures: Sequence[Sequence[AdapterRef]], tokens: int) -> tuple[float, float]:
        """(tokens a second while all rows decode, mean seconds to the first token) of one batch."""
        answers = await asyncio.gather(*(self.answer(self.executor, refs, tokens) for refs in mixtures))
        begin, end = max(times[0] for times in answers), min(times[-1] for times in answers)
        count = sum(begin < at <= end for times in answers for at in times)
        return count / (end - begin), statistics.mean(times[0] for times in answers)


def peer_decode(peer: Peer, name: str, batch: int, tokens: int) -> tuple[float, float]:
    """What `World.decode` answers, of a peer. The floor has no prompt, so its first token is one step."""
    if isinstance(peer, Vllm):
        peer.lora = name == "vllm_lora"
    short, long = peer.seconds(batch, 1), peer.seconds(batch, tokens)
    return batch * (tokens - 1) / max(long - short, 1e-9), short


async def measure_batches(world: World, peers: dict[str, Peer], repeats: int, tokens: int) -> dict[str, dict[str, float]]:
    """`{batch: {contender_tok_s, ..., contender_ttft_ms}}`: every contender once a round, medians over rounds."""
    results: dict[str, dict[str, float]] = {}
    widest = max(BATCHES)
    pools = {"lora_xs": await world.adapters(widest * 8), "lora": await world.adapters(widest * 3, "lora")}
    with Progress(console=console) as progress:
        task = progress.add_task("batches", total=len(BATCHES) * repeats)
        for batch in BATCHES:
            ours: dict[str, list[Sequence[AdapterRef]]] = {"base": [() for _ in range(batch)]}
            for name, kind, k in (
                ("lora_xs_k1", "lora_xs", 1),
                ("lora_xs_k3", "lora_xs", 3),
                ("lora_xs_k8", "lora_xs", 8),
                ("lora_k3", "lora", 3),
            ):
                ours[name] = [pools[kind][row * k : (row + 1) * k] for row in range(batch)]
            rates: dict[str, list[float]] = {}
            for round_number in range(repeats + 1):
                # Ours before and after the peers, there and back, each round beginning with another one: what drifts, and what a peer
                # leaves running for a while, falls on all of ours alike.
                names = [*ours][round_number % len(ours) :] + [*ours][: round_number % len(ours)]
                for name in [*names, *peers, *reversed(names)]:
                    if name in ("vllm_lora", "peft") and round_number > 3:
                        continue  # slow: fewer rounds
                    await asyncio.sleep(0.5)
                    if name in ours:
                        speed, first = await world.decode(ours[name], tokens)
                    else:
                        speed, first = await asyncio.to_thread(peer_decode, peers[name], name, batch, tokens)
                    if round_number:  # the first warms up and loads
                        rates.setdefault(f"{name}_tok_s", []).append(speed)
                        rates.setdefault(f"{name}_ttft_ms", []).append(first * 1000)
                progress.advance(task, bool(round_number))
            results[str(batch)] = {name: statistics.median(values) for name, values in rates.items()}
    return results


async def throughput(
    world: World, executor: Executor, pick: Callable[[], Sequence[AdapterRef]], requests: int, clients: int = 16
) -> dict[str, float]:
    """Closed loop: so many clients, each with one request of 16 new tokens at a time."""
    waits: list[float] = []
    tokens = 0
    left = iter(range(requests))

    async def client() -> None:
        nonlocal tokens
        for _ in left:
            times = await world.answer(executor, pick(), 16)
            tokens += len(times)
            waits.append(times[0])

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    elapsed = time.perf_counter() - began
    waits.sort()
    return {
        "tok_s": tokens / elapsed,
        "first_token_p50_ms": waits[len(waits) // 2] * 1000,
        "first_token_p99_ms": waits[min(len(waits) - 1, int(len(waits) * 0.99))] * 1000,
    }


def pickers(refs: Sequence[AdapterRef], seed: int) -> dict[str, Callable[[], Sequence[AdapterRef]]]:
    """Mixtures of three, chosen evenly or by Zipf's law (exponent 1)."""
    rng = np.random.default_rng(seed)
    zipf = 1 / np.arange(1, len(refs) + 1)

    def of(weights: np.ndarray) -> Callable[[], Sequence[AdapterRef]]:
        probabilities = weights / weights.sum()
        return lambda: [refs[i] for i in rng.choice(len(refs), 3, replace=False, p=probabilities)]

    return {"uniform": of(np.ones(len(refs))), "zipf": of(zipf)}


async def measure_working_sets(world: World, store: str, requests: int) -> dict[str, dict[str, float]]:
    """Active adapters as a multiple of the slots; 16 rows of three want up to 48 slots at once."""
    results: dict[str, dict[str, float]] = {}
    refs = await world.adapters(SLOTS * 10)
    for multiple in (0.5, 1, 2, 10):
        for traffic, pick in pickers(refs[: int(SLOTS * multiple)], 1).items():
            executor = world.make(ExecutorSettings(store=store, slots=SLOTS, context=256, host_bytes=MIB))
            await executor.engine.start()
            await throughput(world, executor, pick, 16)
            results[f"{multiple:g}x_{traffic}"] = await throughput(world, executor, pick, requests)
            state = executor.engine.state()
            hit_rate = state.adapter_hits / max(1, state.adapter_hits + state.adapter_misses)
            results[f"{multiple:g}x_{traffic}"]["hit_rate"] = hit_rate
            await executor.engine.stop()
    return results


async def measure_libraries(world: World, sizes: Sequence[int], requests: int, repeats: int) -> dict[str, float]:
    """Tokens a second with a working set of ten, by the number of adapters in the store; the sizes take turns."""
    executors: dict[int, tuple[Executor, Callable[[], Sequence[AdapterRef]], tempfile.TemporaryDirectory[str]]] = {}
    for size in sizes:
        folder = tempfile.TemporaryDirectory(prefix=f"smoa-library-{size}-")
        store = AdapterStore(folder.name)
        refs = await world.adapters(10, store=store)
        data = encode(world.adapter(0))
        with Progress(console=console) as progress:
            for number in progress.track(range(size - 10), description=f"library of {size:,}"):
                await store.put(data[:-4] + number.to_bytes(4, "little"))  # other content, other name: weights nobody asks for
        executor = world.make(ExecutorSettings(store=folder.name, slots=SLOTS, context=256))
        await executor.engine.start()
        executors[size] = (executor, pickers(refs, 2)["uniform"], folder)
        await throughput(world, executor, executors[size][1], 32)
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size, (executor, pick, _) in executors.items():
            rates[size].append((await throughput(world, executor, pick, requests))["tok_s"])
    for executor, _, folder in executors.values():
        await executor.engine.stop()
        folder.cleanup()
    return {str(size): statistics.median(values) for size, values in rates.items()}


async def measure_memory(world: World, store: str, requests: int) -> dict[str, float]:
    """Resident memory before and after `requests` that touch 1,000 adapters."""
    refs = await world.adapters(1000)
    executor = world.make(ExecutorSettings(store=store, slots=SLOTS, context=256, host_bytes=4 * MIB))
    await executor.engine.start()
    rng = random.Random(3)
    rss: list[float] = []
    for part in range(11):
        left = iter(range(requests // 10 if part else 1000))  # the first thousand warms up

        async def client(left: Sequence[int] = left) -> None:  # type: ignore[assignment]
            for _ in left:
                await world.answer(executor, rng.sample(refs, 2), 1, words=2)

        async with asyncio.TaskGroup() as group:
            for _ in range(32):
                group.create_task(client())
        rss.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB)
    loads = executor.engine.state().store_loads
    await executor.engine.stop()
    return {"rss_mib_before": rss[0], "rss_mib_after": rss[-1], "rss_mib_most": max(rss), "requests": requests, "store_loads": loads}


async def adapter_bytes(world: World) -> int:
    """Memory of 100 resident NANO adapters."""
    for ref in await world.adapters(100):
        await world.answer(world.executor, [ref], 1, words=2)
    residents = world.executor.engine.state().residents[-100:]
    return sum(one.nbytes for one in residents)


def show(results: dict[str, dict[str, float]], title: str) -> None:
    """A table: a row a measurement, a column a figure."""
    names = list(dict.fromkeys(name for row in results.values() for name in row))
    table = Table("", *names, title=title)
    for key, row in results.items():
        table.add_row(key, *(f"{row[name]:,.{0 if row[name] > 10 else 2}f}" if name in row else "" for name in names))
    Console(width=max(100, 14 * len(names))).print(table)


def plot(batches: dict[str, dict[str, float]], path: Path) -> None:
    """Tokens a second over batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = {
        "base": ("SMoA, no adapters", "tab:blue", "o:"),
        "lora_xs_k3": ("SMoA, 3 lora_xs a row", "tab:blue", "o-"),
        "lora_k3": ("SMoA, 3 lora a row", "tab:cyan", "o-"),
        "vllm": ("vLLM, no adapters", "tab:orange", "s:"),
        "vllm_lora": ("vLLM, 1 LoRA a row", "tab:orange", "s-"),
        "hf": ("transformers, no adapters", "tab:gray", "^:"),
        "peft": ("PEFT, 1 LoRA a row", "tab:gray", "^-"),
        "floor": ("linear layers alone, torch", "black", "--"),
    }
    figure, axes = pyplot.subplots(figsize=(7.5, 4.4))
    for name, (label, colour, style) in labels.items():
        if all(f"{name}_tok_s" in row for row in batches.values()):
            speeds = [row[f"{name}_tok_s"] for row in batches.values()]
            axes.plot([int(b) for b in batches], speeds, style, color=colour, label=label)
    axes.set(xlabel="rows, each with adapters of its own", ylabel="decoded tokens a second", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def processor() -> str:
    """Name of the processor and the best of the instructions that matter here."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), platform.machine())
    variants = {flags: kind for kind, flags in VARIANTS.items()}
    return f"{name} ({', '.join(variants[flags] for flags in processor_variants()[:1]) or 'no AVX2'})"


async def run(repeats: int, tokens: int, quick: bool, library: int, with_vllm: bool, ours: bool) -> dict[str, object]:
    """Everything, in order; see the functions above."""
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    folder = resolve(DEFAULT_BASE_MODEL)
    with tempfile.TemporaryDirectory(prefix="smoa-bench-") as scratch:
        store = f"{scratch}/store"
        world = World(folder, Path(store), threads)
        await world.executor.engine.start()
        peers: dict[str, Peer] = {}
        if not ours:
            peers = {
                "floor": LinearFloor(folder, torch.bfloat16),
                "hf": Transformers(folder, torch.bfloat16),
                "peft": Transformers(folder, torch.bfloat16, rank=6, adapters=max(BATCHES)),  # one of rank 6 for our three of rank 2
            }
        vllm: Vllm | None = None
        if with_vllm:
            save_loras(folder, Path(scratch) / "loras", 6, max(BATCHES))
            console.print("starting vLLM, two minutes")
            vllm = Vllm(folder, Path(scratch) / "loras", threads)
            peers |= {"vllm": vllm, "vllm_lora": vllm}
        try:
            batches = await measure_batches(world, peers, repeats, tokens)
        finally:
            if vllm:
                vllm.close()
        peers.clear()
        gc.collect()
        names = dict.fromkeys(name for row in batches.values() for name in row)
        show({name: {f"batch {b}": row[name] for b, row in batches.items() if name in row} for name in names}, "decode")
        result: dict[str, object] = {
            "machine": f"{processor()}, {threads} threads, torch {torch.__version__}",
            "batch": batches,
            "adapter_bytes_100": await adapter_bytes(world),
        }
        if not quick:
            result["working_set"] = sets = await measure_working_sets(world, store, 200)
            show(sets, f"active adapters / {SLOTS} slots")
            result["library"] = libraries = await measure_libraries(world, (10, 1000, library), 200, 9)
            show({"": libraries}, "adapters on disk")
            result["memory"] = memory = await measure_memory(world, store, 10_000)
            show({"": memory}, "memory")
        await world.executor.engine.stop()
        result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return result


@click.command()
@click.option("--json", "json_path", type=Path, help="Write every figure here.")
@click.option("--plot", "plot_path", type=Path, help="Write the plot of decode speed here.")
@click.option("--repeats", default=5, show_default=True, help="Rounds; the median counts.")
@click.option("--tokens", default=33, show_default=True, help="New tokens a request.")
@click.option("--quick", is_flag=True, help="Only the batches.")
@click.option("--library", default=100_000, show_default=True, help="The largest number of adapters on disk.")
@click.option("--ours", is_flag=True, help="Only our own contenders, for a fine comparison.")
@click.option("--vllm/--no-vllm", default=VLLM_PYTHON.exists(), help="Measure vLLM too; by default if `make bench-peers` was run.")
def main(
    json_path: Path | None, plot_path: Path | None, repeats: int, tokens: int, quick: bool, library: int, ours: bool, vllm: bool
) -> None:
    """Measure the executor: our base and mixtures, transformers, PEFT, vLLM, and the linear layers alone."""
    result = asyncio.run(run(repeats, tokens, quick or ours, library, vllm and not ours, ours))
    if json_path:
        json_path.write_text(json.dumps(result, indent=2) + "\n")
    if plot_path:
        plot(result["batch"], plot_path)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
