"""The torch backend: what a decode step launches, what it takes beside its linear layers, and prompts together beside one by one.

Launches are counted on any machine: without a GPU the Triton kernels run in Triton's interpreter. Times of decode steps need a GPU, where
they are captured steps in turn with a captured step of nothing but the linear layers. The model is the one that ships with SMoA.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

ROWS = (1, 16, 64)
PROMPTS = 16
LENGTHS = (8, 16, 64)
CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from services.executor.adapters.mixture import load_adapter  # noqa: E402
from services.executor.backends.port import BLOCK_TOKENS, Batch, Chunk  # noqa: E402
from services.executor.backends.torch.backend import TorchBackend  # noqa: E402
from services.executor.backends.torch.model import Llama, training_dtype  # noqa: E402
from services.executor.backends.torch.ranks import TorchMixture  # noqa: E402
from services.executor.models.base_model import DEFAULT_BASE_MODEL, resolve  # noqa: E402
from services.executor.models.lora_xs_bases import LoraXsBases  # noqa: E402
from tests.model_support import random_adapter  # noqa: E402

_WITHOUT_KERNEL = ("empty", "new_empty", "_unsafe_view", "lift_fresh", "detach")


def make_backend(folder: Path, device: str, rows: int, fused: bool) -> TorchBackend:
    """A backend with three adapters of each kind a row: `lora_xs` of rank 8, and `lora` of rank 2, on q and v of every layer."""
    model = Llama.load(folder, training_dtype(device), device)
    bases = LoraXsBases(folder, model.fingerprint)
    slot_bytes = max(64, 12 * rows) * 2**20
    backend = TorchBackend(model, bases, blocks=rows * 8, context=8 * BLOCK_TOKENS, rows=rows, slot_bytes=slot_bytes, fused=fused)
    for row in range(rows):
        for one in range(3):
            for kind, rank in (("lora_xs", 8), ("lora", 2)):
                adapter = random_adapter(model.config, model.fingerprint, seed=row * 3 + one, kind=kind, rank=rank, size=0.01)  # type: ignore[arg-type]
                backend.place(f"{kind}/{row}/{one}", load_adapter(adapter, model.config, model.fingerprint, 8, model.dtype))
    return backend


def mixtures_of(backend: TorchBackend, rows: int) -> Mapping[str, Sequence[TorchMixture]]:
    """A mixture of its own for each row, by what it is made of."""
    made = {kind: [backend.mix([(f"{kind}/{row}/{one}", 0.3) for one in range(3)]) for row in range(rows)] for kind in ("lora_xs", "lora")}
    return {"base": [backend.mix([])] * rows} | made


def decoding(mixtures: Sequence[TorchMixture], position: int = 40) -> Batch[TorchMixture]:
    """One token of each row."""
    return Batch.of([Chunk([7 + row], position, range(row * 8, row * 8 + 8), one, 1) for row, one in enumerate(mixtures)])


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operations but for views and allocations. Those of Triton's interpreter are one a kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not self.paused and not views and not func.overloadpacket.__name__.startswith(_WITHOUT_KERNEL):
            self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_launches() -> Iterator[Counter[str]]:
    """Kernels by name, of what runs within."""
    from triton.runtime import interpreter

    launches, run = Launches(), interpreter.GridExecutor.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        launches.names[f"triton {self.fn.__name__}"] += 1
        launches.paused = True
        try:
            run(self, *args, **kwargs)
        finally:
            launches.paused = False

    interpreter.GridExecutor.__call__ = counted
    try:
        with launches:
            yield launches.names
    finally:
        interpreter.GridExecutor.__call__ = run


def profiled_launches(step: Callable[[], object]) -> Counter[str]:
    """Kernels by name, as a GPU's profiler has them."""
    from torch.profiler import ProfilerActivity, profile

    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    return Counter({event.key: event.count for event in trace.key_averages() if not event.key.startswith(("cuda", "Lazy", "Activity"))})


def measure_launches(folder: Path, device: str) -> dict[str, dict[str, int]]:
    """`{base or kind: {kernel: launches}}` of one decode step, of two rows: their number does not change it."""
    backend = make_backend(folder, device, 2, fused=True)
    results: dict[str, dict[str, int]] = {}
    for name, mixtures in mixtures_of(backend, 2).items():
        batch = decoding(mixtures)
        if CUDA:
            results[name] = dict(profiled_launches(partial(backend.forward, batch)))
        else:
            backend.forward(batch)  # what is written when the mixtures change is not the step's
            with counted_launches() as names:
                backend.forward(batch)
            results[name] = dict(names)
    return results


def measure_prompts(folder: Path, device: str, repeats: int) -> dict[str, dict[str, float]]:
    """`{tokens: {alone_ms, together_ms, ratio}}`: prompts of so many tokens each, with a mixture of its own, in turns."""
    backend = make_backend(folder, device, PROMPTS, fused=CUDA)
    mixtures = mixtures_of(backend, PROMPTS)["lora_xs"]
    results: dict[str, dict[str, float]] = {}
    for length in LENGTHS:
        chunks = [Chunk(list(range(9, 9 + length)), 0, range(row * 8, row * 8 + 8), one, 1) for row, one in enumerate(mixtures)]
        alone: list[float] = []
        together: list[float] = []
        for turn in range(repeats + 1):
            began = time.perf_counter()
            for chunk in chunks:
                backend.forward(Batch.of([chunk]))
            middle = time.perf_counter()
            backend.forward(Batch.of(chunks))
            if turn:  # the first warms up
                alone.append(middle - began)
                together.append(time.perf_counter() - middle)
        ratio = statistics.median(one / both for one, both in zip(alone, together, strict=True))
        results[str(length)] = {
            "alone_ms": 1000 * statistics.median(alone),
            "together_ms": 1000 * statistics.median(together),
            "ratio": ratio,
        }
    return results


def captured_linears(backend: TorchBackend, rows: int) -> Callable[[], None]:
    """A captured run of every linear module of the model and its head, on inputs of its own: the floor of a step."""
    model = backend.model
    inputs = {
        linear.weight.shape[1]: torch.randn(rows, linear.weight.shape[1], device=model.device, dtype=model.dtype)
        for linear in model.layers[0].linears
    }

    def run() -> None:
        for layer in model.layers:
            for linear in layer.linears:
                linear(inputs[linear.weight.shape[1]])
        torch.nn.functional.linear(inputs[model.config.hidden], model.head)

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@torch.inference_mode()
def measure_steps(folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """`{rows: {linears_ms, base_ms, lora_xs_ms, lora_ms}}` of captured decode steps on a GPU, in turns."""
    results: dict[str, dict[str, float]] = {}
    for rows in ROWS:
        backend = make_backend(folder, "cuda", rows, fused=True)
        ways: dict[str, Callable[[], object]] = {"linears": captured_linears(backend, rows)}
        for name, mixtures in mixtures_of(backend, rows).items():
            ways[name] = partial(backend.forward, decoding(mixtures))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(repeats + 1):
            for name, way in ways.items():
                way()  # writes what changes with the mixtures
                for _ in range(4):
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                    way()
                    torch.cuda.synchronize()
                    if turn:  # the first round captures
                        seconds[name].append(time.perf_counter() - began)
        results[str(rows)] = {f"{name}_ms": 1000 * statistics.median(values) for name, values in seconds.items()}
    return results


@click.command()
@click.option("--json", "json_path", type=Path, help="Write every figure here.")
@click.option("--repeats", default=10, show_default=True, help="Rounds; the median counts.")
@click.option("--only", type=click.Choice(["launches", "prompts", "steps"]), help="Measure nothing else.")
def main(json_path: Path | None, repeats: int, only: str | None) -> None:
    """Measure the torch backend on the base model that ships with SMoA; decode steps on a GPU alone."""
    torch.set_num_threads(os.cpu_count() or 1)
    folder, device, console = resolve(DEFAULT_BASE_MODEL), "cuda" if CUDA else "cpu", Console()
    results: dict[str, object] = {"device": torch.cuda.get_device_name() if CUDA else "cpu"}
    if only in (None, "launches"):
        results["launches"] = launches = measure_launches(folder, device)
        table = Table("kernel", *launches, title="launches of a decode step")
        for kernel in dict.fromkeys(kernel for of in launches.values() for kernel in of):
            table.add_row(kernel[:60], *(str(of.get(kernel, "")) for of in launches.values()))
        table.add_row("all", *(str(sum(of.values())) for of in launches.values()))
        console.print(table)
    if only in (None, "prompts"):
        results["prompts"] = prompts = measure_prompts(folder, device, repeats)
        table = Table("tokens each", "one by one ms", "together ms", "times as fast", title=f"{PROMPTS} prompts")
        for length, row in prompts.items():
            table.add_row(length, f"{row['alone_ms']:.1f}", f"{row['together_ms']:.1f}", f"{row['ratio']:.1f}")
        console.print(table)
    if CUDA and only in (None, "steps"):
        results["steps"] = steps = measure_steps(folder, repeats)
        table = Table("rows", *next(iter(steps.values())), title="a captured decode step")
        for rows, of in steps.items():
            table.add_row(rows, *(f"{value:.3f}" for value in of.values()))
        console.print(table)
    if json_path:
        json_path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
