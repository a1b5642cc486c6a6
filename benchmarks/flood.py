"""What one tenant that takes all it can leaves to another: the other's route and first token, with each flood and without, in turns.

The floods come from a process of the lowest priority, for they stand for other machines; what they cost here is the services' own time.

python -m benchmarks.flood
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import click
import grpc
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.router import import_all
from benchmarks.router_processes import BASE, RouterProcess
from examples.generated import generate
from services.local import free_port, is_serving
from smoa.access.channels import Channels, ConnectionSettings
from smoa.adapter import new_adapter_id
from smoa.client import SmoaClient
from smoa.v1 import common_pb2 as common
from smoa.v1 import executor_pb2, registry_pb2, router_pb2
from tests.access_support import caller, callers_file

GREEDY: Final = "greedy"
ROUNDS, SETTLE_S = 3, 2.0
PROMPT: Final = "name three fruits"
_LONG: Final = "word " * 1600


class Greedy:
    """A tenant that takes all it can."""

    def __init__(self, client: SmoaClient, executor: grpc.aio.Channel) -> None:
        self._client, self._number = client, 0
        self._unread = executor.unary_stream(
            "/smoa.v1.ExecutorService/Generate", executor_pb2.GenerateRequest.SerializeToString, executor_pb2.GenerateResponse.FromString
        )
        self.adapter_id = ""

    async def prepare(self) -> None:
        """An adapter of its own."""
        self.adapter_id = new_adapter_id()
        async for _ in self._client.import_adapters([[self._adapter(self.adapter_id)]], GREEDY, files_unchecked=True):
            pass

    def _adapter(self, adapter_id: str) -> registry_pb2.ImportedAdapter:
        made = registry_pb2.Adapter(adapter_id=adapter_id, version=1, digest="0" * 64, name=f"g{adapter_id}", base_model=BASE)
        made.kind, made.specialization = common.ADAPTER_KIND_LORA_XS, common.SPECIALIZATION_GENERAL
        made.rank, made.parameter_count, made.modules[:] = 4, 16, ["q_proj"]

        return registry_pb2.ImportedAdapter(adapter=made, examples=[f"{adapter_id} {number}" for number in range(5)])

    def _text(self) -> str:
        self._number += 1
        return f"{self._number} of what a greedy tenant asks"

    async def routes(self) -> None:
        """A query that nobody asked before."""
        await self._client.route(self._text(), base_model=BASE, tenant=GREEDY)

    async def batches(self) -> None:
        """256 of 8,000 characters each."""
        asked = [router_pb2.RouteRequest(tenant=GREEDY, base_model=BASE, query=f"{self._text()} {_LONG}") for _ in range(256)]
        await self._client.router.RouteBatch(router_pb2.RouteBatchRequest(requests=asked), timeout=120)

    async def long_texts(self) -> None:
        """One of 8,000 characters, with as many before it as count."""
        turns = [f"{self._text()} {_LONG}" for _ in range(8)]
        await self._client.route(f"{self._text()} {_LONG}", base_model=BASE, tenant=GREEDY, turns=turns)

    async def updates(self) -> None:
        """Fifty new examples for its adapter."""
        examples = [f"{self._text()} {_LONG}"[:8000] for _ in range(50)]
        request = registry_pb2.UpdateAdapterRequest(tenant=GREEDY, adapter_id=self.adapter_id, examples=examples)
        await self._client.registry.UpdateAdapter(request, timeout=60)

    async def imports(self) -> None:
        """A thousand adapters."""
        async for _ in self._client.import_adapters([[self._adapter(new_adapter_id()) for _ in range(1000)]], GREEDY):
            pass

    async def listings(self) -> None:
        """All that it has, by a thousand."""
        _ = [one async for one in self._client.list_all(GREEDY)]

    async def streams(self) -> None:
        """An import that is opened and left alone."""
        async for _ in self._client.registry.ImportAdapters(_never(), timeout=60):
            pass

    async def answers(self) -> None:
        """An answer of 300 tokens."""
        request = executor_pb2.GenerateRequest(tenant=GREEDY, prompt=f"{self._text()}: {PROMPT}", max_tokens=300, ignore_eos=True)
        async for _ in self._client.executor.Generate(request, timeout=120):
            pass

    async def unread(self) -> None:
        """The same, and read by nobody."""
        request = executor_pb2.GenerateRequest(tenant=GREEDY, prompt=f"{self._text()}: {PROMPT}", max_tokens=300, ignore_eos=True)
        call: Any = self._unread(request, timeout=120)
        await call.initial_metadata()
        await asyncio.sleep(60)


async def _never() -> AsyncIterator[registry_pb2.ImportAdaptersRequest]:
    await asyncio.sleep(3600)
    yield registry_pb2.ImportAdaptersRequest()


FLOODS: Final[Mapping[str, tuple[Callable[[Greedy], Awaitable[None]], int]]] = {
    "routes": (Greedy.routes, 300),
    "batches": (Greedy.batches, 8),
    "long texts": (Greedy.long_texts, 64),
    "updates": (Greedy.updates, 32),
    "imports": (Greedy.imports, 4),
    "listings": (Greedy.listings, 16),
    "streams": (Greedy.streams, 1000),
    "answers": (Greedy.answers, 200),
    "unread": (Greedy.unread, 200),
}
"""By name: what is done again and again, and by how many at once."""


async def _attack(name: str, router: str, executor: str, token: str) -> None:
    """Flood until the process is ended; says when it begins."""
    connection = ConnectionSettings(token_file=token)
    options = (("grpc.http2.lookahead_bytes", 0),)
    async with (
        SmoaClient(router=router, executor=executor, connection=connection) as client,
        Channels(connection).to(executor, options) as bare,
    ):
        greedy = Greedy(client, bare)
        await greedy.prepare()
        once, at_once = FLOODS[name]

        async def flood() -> None:
            while True:
                try:
                    await once(greedy)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)  # refused: it has all that it may have

        flooding = [asyncio.create_task(flood()) for _ in range(at_once)]
        print("begun", flush=True)
        await asyncio.gather(*flooding)


@contextmanager
def _flooded(name: str, router: str, executor: str, token: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.flood", "--attack", name, router, executor, token]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=lambda: os.nice(19))
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Victim:
    """Another tenant, which asks now and then."""

    def __init__(self, client: SmoaClient, texts: list[str]) -> None:
        self._client, self._texts = client, texts

    async def route_ms(self) -> float:
        """Of a new query."""
        began = time.perf_counter()
        await self._client.route(self._texts.pop(), base_model=BASE)
        return (time.perf_counter() - began) * 1000

    async def first_token_ms(self) -> float:
        """Of an answer."""
        request = executor_pb2.GenerateRequest(prompt=f"{len(self._texts)} {PROMPT}", max_tokens=4)
        began, first = time.perf_counter(), 0.0
        async for _ in self._client.executor.Generate(request, timeout=60):
            first = first or (time.perf_counter() - began) * 1000
        self._texts.pop()
        return first

    async def window(self, calls: int) -> tuple[list[float], list[float]]:
        """Times of so many routes, and of a tenth as many answers."""
        routes, firsts = list[float](), list[float]()
        for number in range(calls):
            routes.append(await self.route_ms())
            if number % 10 == 0:
                firsts.append(await self.first_token_ms())
            await asyncio.sleep(0.005)
        return routes, firsts


def _figures(quiet: tuple[list[float], list[float]], flooded: tuple[list[float], list[float]]) -> dict[str, float]:
    found = dict[str, float]()
    for what, before, after in (("route p50", *_at(0, 50, quiet, flooded)), ("route p99", *_at(0, 99, quiet, flooded))):
        found |= {f"{what} quiet, ms": before, f"{what} flooded, ms": after, f"{what} ratio": after / before}
    before, after = _at(1, 50, quiet, flooded)
    return found | {"first token p50 quiet, ms": before, "first token p50 flooded, ms": after, "first token p50 ratio": after / before}


def _at(which: int, percentile: float, quiet: Any, flooded: Any) -> tuple[float, float]:
    return float(np.percentile(quiet[which], percentile)), float(np.percentile(flooded[which], percentile))


async def measure(adapters: int, calls: int, floods: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """For each flood, the victim's times beside those of quiet windows around it."""
    library, _ = generate(adapters)
    ids = [new_adapter_id() for _ in range(adapters)]
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path("build"))))
        callers = folder / "callers.json"
        keys = callers_file(callers, caller("victim", "public", "infer library operate"), caller(GREEDY, GREEDY, "infer library"))
        for name, key in keys.items():
            (folder / name).write_text(key)
        connection = ConnectionSettings(token_file=str(folder / "victim"))
        router = RouterProcess(folder, {"SMOA_CALLERS": str(callers)})
        stack.callback(router.stop)
        await router.start(connection)
        executor = f"127.0.0.1:{free_port()}"
        settings = {
            "SMOA_EXECUTOR_ADDRESS": executor,
            "SMOA_EXECUTOR_DATA_FOLDER": str(folder / "executor"),
            "SMOA_STORE": str(folder / "store"),
        }
        environment = {**os.environ, **settings, "SMOA_CALLERS": str(callers), "SMOA_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
        process = subprocess.Popen([sys.executable, "-m", "services.executor"], env=environment, stderr=subprocess.DEVNULL)
        stack.callback(process.kill)
        while not await is_serving(executor, connection):
            await asyncio.sleep(0.05)
        client = await stack.enter_async_context(SmoaClient(router=router.address, executor=executor, connection=connection))
        await import_all(router, client, library, ids)
        rng = np.random.default_rng(7)
        wanted = (len(floods) + 1) * ROUNDS * 3 * calls
        victim = Victim(client, list(library.texts(rng.integers(0, adapters, wanted), seed=1)))
        await victim.window(20)
        found: dict[str, dict[str, float]] = {}
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task("floods", total=len(floods) * ROUNDS)
            for name in floods:
                quiet, flooded = (list[float](), list[float]()), (list[float](), list[float]())
                for _ in range(ROUNDS):
                    for into, times in zip(quiet, await victim.window(calls), strict=True):
                        into.extend(times)
                    with _flooded(name, router.address, executor, str(folder / GREEDY)):
                        await asyncio.sleep(SETTLE_S)
                        for into, times in zip(flooded, await victim.window(calls), strict=True):
                            into.extend(times)
                    await _quiet(client)
                    progress.advance(bar)
                found[name] = _figures(quiet, flooded)
    return found


async def _quiet(client: SmoaClient) -> None:
    """Wait until what the flood left is done."""
    with suppress(grpc.aio.AioRpcError):
        while (status := await client.status()).running or status.queued:
            await asyncio.sleep(0.2)
    await asyncio.sleep(1)


@click.command()
@click.option("--adapters", default=10_000, show_default=True)
@click.option("--calls", default=100, show_default=True, help=f"Routes in each of {ROUNDS} windows, with and without a flood.")
@click.option("--flood", "floods", multiple=True, type=click.Choice(list(FLOODS)), help="Only these; left out, all.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here, too.")
@click.option("--attack", type=(click.Choice(list(FLOODS)), str, str, str), hidden=True)
def main(adapters: int, calls: int, floods: tuple[str, ...], json_path: Path | None, attack: tuple[str, str, str, str] | None) -> None:
    """Measure what a flood by one tenant leaves to another."""
    if attack is not None:
        asyncio.run(_attack(*attack))
        return
    Path("build").mkdir(exist_ok=True)
    found = asyncio.run(measure(adapters, calls, floods or tuple(FLOODS)))
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine(), "adapters": adapters, "floods": found}, indent=2))
    columns = list(next(iter(found.values())))
    table = Table("flood", *columns, title=f"{adapters:,} adapters on {machine()}")
    for name, row in found.items():
        table.add_row(name, *(f"{row[column]:.2f}" for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
