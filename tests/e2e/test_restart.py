"""`smoa up` as a user runs it, stopped and killed in traffic and started again: counts go on, and nothing useful is retired."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from examples.library import ADAPTERS
from examples.library.jobs import JOBS
from services.local import free_port, is_serving
from smoa.client import SmoaClient
from smoa.errors import Unavailable
from smoa.events import DEAD_LETTER, DECISIONS, LIFECYCLE, OUTCOMES
from smoa.outbox import Outbox, Record
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2, router_pb2
from tests.e2e.test_stack import retried
from tests.kafka_support import read_all, read_events, until

LIBRARY = ("med_department", "support_intent", "code_language", "travel_request")
STATES = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_RETIRED, common.ADAPTER_STATE_CANARY)
FAULTS = int(os.environ.get("SMOA_TEST_RESTARTS", "3"))
"""`make test-restarts` has ten."""


@dataclass
class Up:
    """`smoa up` in a process of its own."""

    folder: Path
    router: int = field(default_factory=free_port)
    executor: int = field(default_factory=free_port)
    gateway: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def broker(self) -> str:
        return (self.folder / "data" / "broker.address").read_text()

    async def start(self) -> None:
        """Start it, and wait until the router serves and the optimizer has its partitions."""
        command = [sys.executable, "-c", "from smoa.cli import main; main()", "up", "--data", str(self.folder / "data")]
        ports = ["--router-port", str(self.router), "--executor-port", str(self.executor), "--gateway-port", str(self.gateway)]
        eager = {"SMOA_OPTIMIZER_INTERVAL_S": "5", "SMOA_OPTIMIZER_MIN_AGE_S": "5", "SMOA_OPTIMIZER_OBSERVE_FIRST_S": "0"}
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen([*command, *ports], env={**os.environ, **eager}, stdout=log, stderr=log, start_new_session=True)
        heartbeat = self.folder / "data" / "optimizer" / "heartbeat"

        async def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "up.log").read_text()[-3000:]
            return heartbeat.exists() and await is_serving(f"127.0.0.1:{self.router}") and await is_serving(f"127.0.0.1:{self.executor}")

        await until("smoa up", 90, ready)

    def children(self) -> dict[str, int]:
        """Its services' process ids by name."""
        assert self.process is not None
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == self.process.pid:
                    command = (stat.parent / "cmdline").read_text().split("\0")
                    found[next(part for part in command if part.startswith("services."))] = int(stat.parent.name)
        return found

    def kill_everything(self) -> None:
        """kill -9 of it and all that it started."""
        assert self.process is not None
        everything = [self.process.pid, *self.children().values()]
        for pid in everything:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def interrupt(self) -> int:
        """Ctrl-C; returns its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@dataclass
class Caller:
    """Asks and reports all the time, again when nobody answers; remembers what was acknowledged."""

    client: SmoaClient
    base_model: str
    jobs: Sequence[str] = LIBRARY
    decided: list[router_pb2.Decision] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    held: list[router_pb2.Decision] = field(default_factory=list)
    """Decisions whose outcome is to come later."""

    async def run(self) -> None:
        number = 0
        while True:
            number += 1
            query = JOBS[self.jobs[number % len(self.jobs)]].generate("test", 40, 5)[number % 40].input
            decision = await retried(lambda query=query, number=number: self.client.route(f"{query} #{number}", base_model=self.base_model))
            self.decided.append(decision)
            if number % 10 == 0:
                self.held.append(decision)
            else:
                await self.report(decision)
            await asyncio.sleep(0.02)  # the pace

    async def report(self, decision: router_pb2.Decision) -> None:
        await retried(lambda: self.client.report(decision, success=True))
        self.reported.append(decision.decision_id)


async def adapters(client: SmoaClient) -> dict[str, registry_pb2.Adapter]:
    return {one.name: one async for one in client.list_all(states=STATES)}


async def assert_exact(client: SmoaClient, caller: Caller, broker: str) -> None:
    """Everything acknowledged is in Kafka once, and the registry's counts are what is in Kafka."""

    async def equal() -> bool:
        try:
            return await exact()
        except Unavailable:  # it is only just being started again
            return False

    async def exact() -> bool:
        decisions = [router_pb2.Decision.FromString(one.value) for one in await read_events(broker, DECISIONS)]
        used = {one.decision_id: len(one.adapters) for one in decisions}
        judged = {one.key.decode() for one in await read_events(broker, OUTCOMES)}
        missing = {one.decision_id for one in caller.decided} - used.keys() | set(caller.reported) - judged
        counts = [one.statistics for one in (await adapters(client)).values()]
        wanted = (sum(used.values()), sum(many for name, many in used.items() if name in judged))
        return not missing and (sum(one.uses for one in counts), sum(one.outcomes for one in counts)) == wanted

    await until("exact counts", 90, equal)


@pytest.mark.timeout(280 if FAULTS <= 3 else 1200)
async def test_counts_go_on_over_stops_and_kills_and_nothing_useful_is_retired(tmp_path: Path) -> None:
    up, chosen = Up(tmp_path), random.Random(18)
    await up.start()
    calling: asyncio.Task[None] | None = None
    async with SmoaClient(router=f"127.0.0.1:{up.router}", executor=f"127.0.0.1:{up.executor}") as client:
        try:
            store = AdapterStore(str(tmp_path / "data" / "store"))
            for name in LIBRARY:
                digest = await store.put((ADAPTERS / f"{name}.safetensors").read_bytes())
                await client.register(digest, [example.input for example in JOBS[name].generate("train", 50, 0)])
            caller = Caller(client, (await client.status()).base_model)
            outbox = Outbox(up.broker)
            await outbox.send([Record(OUTCOMES, 0, b"no-such-decision", b"\xff not an outcome")])
            await outbox.close()
            calling = asyncio.create_task(caller.run())
            kinds = ["interrupt", "kill everything", "kill the broker"]
            for fault in range(FAULTS):
                before = len(caller.reported)

                async def some_more(before: int = before) -> bool:
                    return len(caller.reported) > before + 60

                await until("traffic", 90, some_more)
                caller.jobs = LIBRARY[:1]  # from the first fault on, nobody asks for the others any more
                kind = kinds[fault] if fault < len(kinds) else chosen.choice(kinds)
                if kind == "kill the broker":
                    os.kill(up.children()["services.broker"], signal.SIGKILL)
                    continue
                if kind == "interrupt":
                    assert up.interrupt() == 0
                else:
                    up.kill_everything()
                await up.start()
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
            for decision in caller.held:  # some of before the first stop
                await caller.report(decision)
            await assert_exact(client, caller, up.broker)
            found = await adapters(client)
            assert {name: common.AdapterState.Name(one.state) for name, one in found.items()} == dict.fromkeys(
                LIBRARY, "ADAPTER_STATE_ACTIVE"
            )
            assert len({one.statistics.epoch for one in found.values()}) <= 4
            assert all(len(one.statistics.epochs) == 1 for one in found.values()), "the changelog is the same"
            assert len([one for one in await read_all(up.broker, DEAD_LETTER) if one.value]) == 1
            registered = {one.key.decode() for one in await read_all(up.broker, LIFECYCLE) if one.key}
            assert registered >= {one.adapter_id for one in found.values()}
        finally:
            if calling is not None:
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)
            if up.process is not None and up.process.poll() is None:
                up.kill_everything()
