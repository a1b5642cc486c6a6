"""Libraries of vectors only, of any size: adapters that a router knows and whose weights nobody has."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from examples.generated import Library, generate, imported
from services.demo.session import Running
from services.demo.showing import percentiles, progress, until
from services.local import free_port
from smoa.adapter import new_adapter_id
from smoa.embedding.port import Vector
from smoa.errors import Unavailable
from smoa.v1 import registry_pb2

BASE_MODEL = "b" * 64
BATCH = 500
ASK_EVERY_S = 0.25


def environment() -> dict[str, str]:
    """Of the router: with metrics, and so that a decision on ten holds ten whatever their weights."""
    return {
        "SMOA_ROUTER_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
        "SMOA_ROUTER_MIN_WEIGHT": "0",
        "SMOA_ROUTER_TEMPERATURE": "1",
    }


class GrowingLibrary:
    """Made-up adapters, imported into a running router as far as is asked, and what can be measured of that router."""

    def __init__(self, console: Console, running: Running, library: Library, vector_of: Callable[[str], Vector]) -> None:
        self._console, self._running, self._library, self._vector_of = console, running, library, vector_of
        self._random = np.random.default_rng(7)
        self.size = 0
        self._ids = [new_adapter_id() for _ in library.jobs]
        self._number_of = {adapter_id: number for number, adapter_id in enumerate(self._ids)}

    @classmethod
    async def make(cls, console: Console, running: Running, most: int) -> GrowingLibrary:
        """Make up so many adapters, on a thread, so that Ctrl-C is heard meanwhile."""
        stopped = threading.Event()
        with progress(console, "making them up", most) as advance:

            def made(more: int) -> None:
                if stopped.is_set():
                    raise Unavailable("demo: was stopped")
                advance(more)

            try:
                return cls(console, running, *await asyncio.to_thread(generate, most, made=made))
            finally:
                stopped.set()

    async def grow(self, size: int) -> dict[str, float]:
        """Import up to so many, while queries are asked all the time; returns once the router has made its search ready for them.

        `import_s` is until all are durable and searchable, `ready_s` until what is searched has been trained on them too.
        """
        begun, before, asked_ms = time.perf_counter(), self.size, list[float]()

        async def ask() -> None:
            while True:
                await asyncio.sleep(ASK_EVERY_S)
                if self.size:
                    asked_ms.extend(await self._times(1))

        asking = asyncio.create_task(ask())
        try:
            with progress(self._console, f"import to {size:,}", size - before) as advance:
                async for answer in self._running.client.import_adapters(self._batches(before, size), files_unchecked=True):
                    advance(before + answer.durable - self.size)
                    self.size = before + answer.durable
            import_s = time.perf_counter() - begun
            with self._console.status("the router trains its search for that many"):
                await until("training", 1200, self._trained)
        finally:
            asking.cancel()
        return {
            "import_s": import_s,
            "ready_s": time.perf_counter() - begun,
            "per_s": (size - before) / import_s,
            "while_importing_p50_ms": float(np.median(asked_ms)) if asked_ms else 0.0,
            "while_importing_max_ms": max(asked_ms, default=0.0),
        }

    async def latency(self, queries: int) -> dict[str, float]:
        """Milliseconds of a call, p50 and p99, of queries that nobody asked before, one after the other."""
        await self._times(20)
        return percentiles(await self._times(queries))

    async def recall(self, queries: int) -> float:
        """Share of the true ten nearest among the ten that a decision names."""
        asked = self._random.integers(0, self.size, queries)
        wanted, shares = min(10, self.size), []
        for text in self._library.texts(asked, seed=3):
            decision = await self._running.client.route(
                text, base_model=BASE_MODEL, strategy="ROUTING_STRATEGY_SEMANTIC", top_k=10, score_threshold=-1
            )
            cosines = self._library.vectors[: self.size] @ self._vector_of(text)
            least = np.partition(cosines, -wanted)[-wanted]
            found = [self._number_of[item.adapter_id] for item in decision.adapters]
            shares.append(sum(cosines[number] >= least - 1e-5 for number in found) / wanted)
        return float(np.mean(shares))

    def resident_mb(self) -> float:
        """Memory of the router's process."""
        status = Path(f"/proc/{self._running.stack.pid('router')}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024

    def disk_mb(self) -> float:
        """What the router's catalogue takes."""
        folder = self._running.stack.settings.data / "router"
        return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file() and "spool" not in path.name) / 2**20

    async def _times(self, queries: int) -> list[float]:
        asked = self._random.integers(0, self.size, queries)
        taken_ms = []
        for text in self._library.texts(asked, seed=int(self._random.integers(1, 2**31))):
            started = time.perf_counter()
            await self._running.client.route(text, base_model=BASE_MODEL)
            taken_ms.append((time.perf_counter() - started) * 1000)
        return taken_ms

    async def _trained(self) -> bool:
        address = self._running.stack.settings.environment["SMOA_ROUTER_METRICS_ADDRESS"]

        def read() -> str:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                return str(answer.read().decode())

        lines = (await asyncio.to_thread(read)).splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("smoa_router_pools_in_training "))) == 0

    def _batches(self, start: int, end: int) -> Iterator[list[registry_pb2.ImportedAdapter]]:
        for first in range(start, end, BATCH):
            yield [imported(self._library, number, self._ids[number], BASE_MODEL) for number in range(first, min(first + BATCH, end))]
