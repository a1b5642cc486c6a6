"""What the gateway costs: the same requests by gRPC and through it, in turns, on one stack.

    python -m benchmarks.gateway --json build/gateway.json

First token, and tokens a second from there on, at one row and at sixteen; then the memory that open streams take which wait for a row.
The floor is an HTTP request that is answered at once (`/healthz`) and one call by gRPC (`ListExecutors`): a first token through the gateway
has one more of each than by gRPC alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from services.local import LocalStack, StackSettings, free_port
from smoa.client import SmoaClient

PROMPT = "Please tell me a story about order {}"
TOKENS = 32
ROUNDS, REQUESTS = 11, 6
IDLE = 1000
ROWS = 16

Asked = Callable[[int], AsyncIterator[float]]
"""Times (s, monotonic) at which texts of an answer came."""


class Ways:
    """The two ways to ask."""

    def __init__(self, client: SmoaClient, http: aiohttp.ClientSession, url: str) -> None:
        self._client, self._http, self._url = client, http, url

    async def direct(self, number: int) -> AsyncIterator[float]:
        """Route, then generate, by gRPC."""
        prompt = PROMPT.format(number)
        decision = await self._client.route(prompt)
        async for _ in self._client.carry_out(prompt, decision, max_tokens=TOKENS, ignore_eos=True):
            yield time.monotonic()

    async def gateway(self, number: int) -> AsyncIterator[float]:
        """One request by HTTP."""
        async with self._http.post(self._url, json=self.body(number)) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b'data: {"id"'):
                    yield time.monotonic()

    @staticmethod
    def body(number: int) -> dict[str, Any]:
        """Of a request."""
        messages = [{"role": "user", "content": PROMPT.format(number)}]
        return {"model": "smoa-auto", "messages": messages, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}


async def _timed(asked: Asked, number: int) -> tuple[float, float]:
    """(ms to the first text, texts a second from there on)."""
    began_s, at_s = time.monotonic(), list[float]()
    async for one in asked(number):
        at_s.append(one)
    return 1000 * (at_s[0] - began_s), (len(at_s) - 1) / (at_s[-1] - at_s[0])


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def compared(ways: Ways, rows: int, pid: int, console: Console) -> dict[str, Any]:
    """Both ways in turns, so many requests at once."""
    first: dict[str, list[float]] = {"direct": [], "gateway": []}
    rates: dict[str, list[float]] = {"direct": [], "gateway": []}
    number, used_s = 0, 0.0
    for round_number in range(ROUNDS):
        order: Sequence[tuple[str, Asked]] = (("direct", ways.direct), ("gateway", ways.gateway))
        for name, asked in order if round_number % 2 else order[::-1]:
            before_s, told = cpu_s(pid), list[tuple[float, float]]()
            for _ in range(max(1, REQUESTS // rows)):
                numbers = range(number, number + rows)
                number += rows
                told += await asyncio.gather(*(_timed(asked, one) for one in numbers))
            used_s += cpu_s(pid) - before_s if name == "gateway" else 0.0
            rates[name].append(rows * statistics.mean(rate for _, rate in told))
            first[name] += [ms for ms, _ in told]
        console.print(f"{rows} at once: round {round_number + 1} of {ROUNDS}", highlight=False)
    medians = {name: statistics.median(values) for name, values in first.items()}
    speeds = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "rows": rows,
        "first_token_ms": medians,
        "later_ms": medians["gateway"] - medians["direct"],
        "later_share": medians["gateway"] / medians["direct"] - 1,
        "texts_per_s": speeds,
        "speed_share": speeds["gateway"] / speeds["direct"],
        "gateway_cpu_ms_per_text": 1000 * used_s / (TOKENS * len(first["gateway"])),
    }


async def floor(http: aiohttp.ClientSession, address: str, client: SmoaClient) -> dict[str, float]:
    """Milliseconds of one HTTP request and of one call, at the median."""

    async def healthz() -> None:
        async with http.get(f"http://{address}/healthz") as answer:
            await answer.read()

    async def listed() -> None:
        from smoa.v1 import router_pb2

        await client.router.ListExecutors(router_pb2.ListExecutorsRequest())

    async def median_ms(call: Callable[[], Awaitable[None]]) -> float:
        times = []
        for _ in range(200):
            began_s = time.monotonic()
            await call()
            times.append(1000 * (time.monotonic() - began_s))
        return statistics.median(times)

    return {"http_ms": await median_ms(healthz), "call_ms": await median_ms(listed)}


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


async def idle(url: str, stack: LocalStack, client: SmoaClient) -> dict[str, Any]:
    """Memory of the gateway before, and with so many streams open, of which all but the rows wait."""
    pid = stack.pid("gateway")
    before = resident_mb(pid)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as http:

        async def opened(number: int) -> None:
            async with http.post(url, json=Ways.body(number) | {"max_tokens": 512}) as answer:
                await answer.read()

        tasks = [asyncio.create_task(opened(number)) for number in range(IDLE)]
        waiting, most = 0, 0.0
        deadline_s = time.monotonic() + 120
        while waiting < IDLE - 2 * ROWS and time.monotonic() < deadline_s:
            await asyncio.sleep(0.5)
            status = await client.status()
            waiting = max(waiting, status.queued + status.running)
            most = max(most, resident_mb(pid))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {"streams": waiting, "before_mb": before, "with_streams_mb": most}


async def run(folder: Path, console: Console) -> dict[str, Any]:
    """The whole of it."""
    many = str(2 * IDLE + 200)
    settings = StackSettings(
        data=folder,
        router_port=free_port(),
        executor_port=free_port(),
        gateway_port=free_port(),
        services=("router", "executor", "gateway"),
        environment={"SMOA_MAX_CALLS": many, "SMOA_EXECUTOR_MAX_WAITING": str(IDLE), "SMOA_EXECUTOR_ROWS": str(ROWS)},
    )
    with (folder / "log").open("w") as log:
        stack = LocalStack(settings, log)
        async with AsyncExitStack() as held:
            held.push_async_callback(stack.stop)
            await stack.start()
            client = await held.enter_async_context(SmoaClient(router=settings.router, executor=settings.executor, timeout_s=600))
            http = await held.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
            url = f"http://{settings.gateway}/v1/chat/completions"
            ways = Ways(client, http, url)
            for asked in (ways.direct, ways.gateway):
                await _timed(asked, 0)
            floors = await floor(http, settings.gateway, client)
            one = await compared(ways, 1, stack.pid("gateway"), console)
            many_rows = await compared(ways, ROWS, stack.pid("gateway"), console)
            return {"floor": floors, "one": one, "sixteen": many_rows, "idle": await idle(url, stack, client)}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(Path(folder), console))
    table = Table("", "by gRPC", "through the gateway", "difference")
    for name, told in (("one", found["one"]), ("sixteen", found["sixteen"])):
        first, speed = told["first_token_ms"], told["texts_per_s"]
        later = f"{told['later_ms']:+.1f} ms, {100 * told['later_share']:+.1f} %"
        table.add_row(f"first token, {name} at once", f"{first['direct']:.1f} ms", f"{first['gateway']:.1f} ms", later)
        table.add_row(f"texts a second, {name}", f"{speed['direct']:.1f}", f"{speed['gateway']:.1f}", f"{100 * told['speed_share']:.1f} %")
    console.print(table)
    for name, told in (("one", found["one"]), ("sixteen", found["sixteen"])):
        console.print(f"the gateway's processor time, {name} at once: {told['gateway_cpu_ms_per_text']:.2f} ms a text", highlight=False)
    idle_ = found["idle"]
    console.print(
        f"{idle_['streams']} open streams: {idle_['with_streams_mb']:.0f} MB, before {idle_['before_mb']:.0f} MB", highlight=False
    )
    console.print(f"floor: HTTP {found['floor']['http_ms']:.2f} ms, a call {found['floor']['call_ms']:.2f} ms", highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
