"""Optimizer workers as processes, events whose counts are known, faults, and what Kafka says of all three."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from ulid import ULID

from services.optimizer.settings import APP_ID
from services.optimizer.stream.changelog import COUNTS, Changelog, Kept
from services.optimizer.stream.counting import totals
from smoa.errors import Unavailable
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, EXAMPLES, OUTCOMES, Event, event
from smoa.outbox import KAFKA_ERRORS, Outbox, records_of
from smoa.reader import let_go
from smoa.v1 import common_pb2, feedback_pb2, router_pb2
from smoa.v1.state_pb2 import AdapterCounts

PARTITIONS = 4
SESSION_TIMEOUT_S = 8.0
SLOW_S = 20.0
TOPICS = (DECISIONS, OUTCOMES, ADAPTER_OUTCOMES)
Counted = dict[str, tuple[int, int, float]]


@dataclass
class Traffic:
    """A seeded stream of decisions and outcomes, and what each adapter's counts must be after it."""

    seed: int
    adapters: int = 500
    sent: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._names = [str(ULID()) for _ in range(self.adapters)]
        self._held: list[Event] = []
        self._truth: dict[str, list[int]] = {}

    def make(self, events: int) -> list[Event]:
        """So many more. Nine decisions of ten have an outcome; some come before their decision, some twice, some much later."""
        made: list[Event] = []
        while len(made) < events:
            chosen = {self._names[int(self._rng.paretovariate(0.7)) % self.adapters] for _ in range(self._rng.randint(1, 3))}
            now_us = time.time_ns() // 1000
            decision = router_pb2.Decision(decision_id=str(ULID()), tenant="t", decided_at_us=now_us)
            decision.adapters.extend(common_pb2.WeightedAdapter(adapter_id=one, weight=1 / len(chosen)) for one in sorted(chosen))
            judged, success = self._rng.random() < 0.9, self._rng.random() < 0.7
            pair = [event(DECISIONS, decision.decision_id, decision)]
            if judged:
                outcome = feedback_pb2.Outcome(decision_id=decision.decision_id, tenant="t", success=success, reported_at_us=now_us)
                pair.insert(self._rng.random() > 0.1, event(OUTCOMES, decision.decision_id, outcome))
                if self._rng.random() < 0.1:
                    self._held.append(pair.pop())
                elif self._rng.random() < 0.05:
                    pair.append(pair[-1] if pair[-1].topic == OUTCOMES else pair[0])
            for name in chosen:
                tally = self._truth.setdefault(name, [0, 0, 0])
                tally[0] += 1
                tally[1] += judged
                tally[2] += judged and success
            made += pair
            while len(self._held) > 200:
                made.append(self._held.pop(self._rng.randrange(200)))
        return made

    def rest(self) -> list[Event]:
        """The outcomes that are still held back."""
        held, self._held = self._held, []
        return held

    @property
    def truth(self) -> Counted:
        """Uses, outcomes and successes of each adapter, once the rest is sent."""
        return {name: (uses, outcomes, successes) for name, (uses, outcomes, successes) in self._truth.items()}


async def send(bootstrap: str, events: Sequence[Event], outbox: Outbox | None = None) -> None:
    """Send until Kafka has them, again after a failure: so some may come twice, as from any producer."""
    partitions = dict.fromkeys((*TOPICS, EXAMPLES), PARTITIONS)
    mine = outbox or Outbox(bootstrap)
    try:
        while True:
            try:
                await mine.send(records_of([(one, 0) for one in events], partitions))
            except Unavailable:
                await asyncio.sleep(0.2)
            else:
                return
    finally:
        if outbox is None:
            await mine.close()


class Worker:
    """`python -m services.optimizer`, which sees no registry."""

    command = (sys.executable, "-m", "services.optimizer")

    def __init__(self, bootstrap: str, folder: Path, name: str, **more: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"{name}.log"
        self.heartbeat = folder / name / "heartbeat"
        settings = {
            "SMOA_KAFKA_BOOTSTRAP": bootstrap,
            "SMOA_ROUTER": "127.0.0.1:1",
            "SMOA_OPTIMIZER_DATA_FOLDER": str(folder / name),
            "SMOA_OPTIMIZER_INSTANCE_ID": name,  # as deployed: it takes its place again without the group sharing out anew
            "SMOA_OPTIMIZER_INTERVAL_S": "0",
            "SMOA_OPTIMIZER_REPORT_INTERVAL_S": "3600",
            "SMOA_OPTIMIZER_SESSION_TIMEOUT_S": str(SESSION_TIMEOUT_S),
        }
        self._environment = {**os.environ, **settings, **more}
        self.process = self._start()
        self.resident_mb = 0.0

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self.command, env=self._environment, stdout=log, stderr=log, start_new_session=True)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    async def is_ready(self) -> bool:
        """True once it had partitions and their state; it is started again if it ended before, as it is when the client has given up."""
        self.keep()
        return self.heartbeat.exists() and self.heartbeat.read_text() == str(self.process.pid)

    def keep(self) -> None:
        """Start it again if it ended, as a supervisor would, and note its memory."""
        if self.process.poll() is not None:
            self.process = self._start()
        pages = Path(f"/proc/{self.process.pid}/statm")
        if pages.exists():
            self.resident_mb = max(self.resident_mb, int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def stop(self) -> None:
        """End it."""
        self.signal(signal.SIGKILL)
        self.process.wait(10)

    @property
    def session_timeout_s(self) -> float:
        """After so long without a word from it, its partitions are given away."""
        return float(self._environment["SMOA_OPTIMIZER_SESSION_TIMEOUT_S"])

    @property
    def log(self) -> str:
        """What it said."""
        return self._log.read_text()


@dataclass(frozen=True)
class Progress:
    """Ends of the topics, and what the group has committed."""

    ends: dict[TopicPartition, int]
    committed: dict[TopicPartition, int]

    def behind(self, ends: dict[TopicPartition, int] | None = None) -> int:
        """Messages before `ends` (default: the newest) that are not committed."""
        return sum(max(0, end - self.committed[where]) for where, end in (ends or self.ends).items())


class Watch:
    """Reads a group's progress. It starts anew when the broker was away."""

    def __init__(self, bootstrap: str, group: str = APP_ID, topics: Sequence[str] = TOPICS) -> None:
        self._bootstrap, self._group, self._topics = bootstrap, group, topics
        self._consumer: AIOKafkaConsumer | None = None

    async def progress(self) -> Progress | None:
        """None while the broker does not answer."""
        try:
            async with asyncio.timeout(5):
                consumer = await self._started()
                places = sorted(consumer.assignment())
                # What is committed first: a stage that commits in between has then put more into the next one's topic.
                committed = {where: await consumer.committed(where) or 0 for where in places}
                return Progress(await consumer.end_offsets(places), committed)
        except KAFKA_ERRORS:
            await self.close()
            return None

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            self._consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, group_id=self._group, enable_auto_commit=False)
            await self._consumer.start()
            self._consumer.assign([TopicPartition(topic, number) for topic in self._topics for number in range(PARTITIONS)])
        return self._consumer

    async def close(self) -> None:
        """Let the consumer go."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await let_go(consumer)

    async def caught_up(self, within_s: float, each: Callable[[], None] = lambda: None) -> float:
        """Wait until everything is committed; returns the seconds that took."""
        began = time.monotonic()
        while (found := await self.progress()) is None or found.behind() or not sum(found.ends.values()):
            each()
            assert time.monotonic() < began + within_s, f"still {found.behind() if found else 'unknown'} messages behind"
            await asyncio.sleep(0.1)
        return time.monotonic() - began


async def counted(bootstrap: str, check: Callable[[Kept], None] = lambda _: None) -> Counted:
    """What the changelog says of every adapter: what a worker that starts now would begin with."""
    found: dict[str, AdapterCounts] = {}
    for partition in range(PARTITIONS):
        for one in await Changelog(bootstrap, COUNTS.name, check).read(partition):
            if b"/" not in one.name:  # the others are examples, and the epoch
                found[one.name.decode()] = AdapterCounts.FromString(one.value)
    sums = {name: totals(counts.tenants.values(), 1e12) for name, counts in found.items()}
    return {name: (one.uses, one.outcomes, one.successes) for name, one in sums.items()}


def difference(truth: Counted, found: Counted) -> tuple[int, int]:
    """Uses and outcomes that were lost, and those that were counted twice."""
    lost = doubled = 0.0
    for name in truth.keys() | found.keys():
        for wanted, got in zip(truth.get(name, (0, 0, 0)), found.get(name, (0, 0, 0)), strict=True):
            lost += max(0, wanted - got)
            doubled += max(0, got - wanted)
    return math.ceil(lost), math.ceil(doubled)


@dataclass
class Faults:
    """What may go wrong, one at a time; each is undone before the next."""

    workers: Sequence[Worker]
    break_broker: Callable[[], Awaitable[None]]
    """Kills the broker, or one of several, and starts it again."""
    rng: random.Random
    done: Counter[str] = field(default_factory=Counter)

    def choose(self) -> str:
        """The kind that came least so far."""
        kind = min(("broker", "kill", "pause"), key=lambda name: (self.done[name], name != "broker", self.rng.random()))
        self.done[kind] += 1
        return kind

    async def do(self, kind: str) -> None:
        """Let it happen, and undo it."""
        worker = self.rng.choice(self.workers)
        if kind == "kill":
            worker.signal(signal.SIGKILL)
            worker.process.wait(10)
            worker.keep()
        elif kind == "pause":
            worker.signal(signal.SIGSTOP)
            await asyncio.sleep(worker.session_timeout_s * 1.3)  # what it does meanwhile is its successor's
            worker.signal(signal.SIGCONT)
        else:
            await self.break_broker()


@dataclass
class ChaosReport:
    """What a run showed."""

    events: int
    faults: dict[str, int]
    lost: int
    duplicated: int
    recovery_s: list[tuple[str, float]]
    resident_mb: float


async def chaos(bootstrap: str, traffic: Traffic, faults: Faults, events: int, count: int, per_s: float) -> ChaosReport:
    """Send `events` steadily, and on until all `count` faults are over; each comes once all that was sent before the last is counted."""
    watch, outbox = Watch(bootstrap), Outbox(bootstrap)
    recovery: list[tuple[str, float]] = []
    over = asyncio.Event()
    sending = asyncio.create_task(_send_steadily(bootstrap, traffic, outbox, events, per_s, over))

    def keep() -> None:
        for worker in faults.workers:
            worker.keep()

    async def recovered(within_s: float) -> float:
        """Seconds until all that had been sent when this was called is counted."""
        wanted: dict[TopicPartition, int] | None = None
        began = time.monotonic()
        while True:
            if sending.done():
                sending.result()
            found = await watch.progress()
            if found is not None:
                if wanted is None and any(found.ends.values()):
                    wanted = found.ends
                if wanted is not None and not found.behind(wanted):
                    return time.monotonic() - began
            keep()
            logs = "\n".join(worker.log[-3000:] for worker in faults.workers)
            assert time.monotonic() < began + within_s, f"not recovered: {found}, wanted {wanted}; the workers said:\n{logs}"
            await asyncio.sleep(0.1)

    try:
        await recovered(90)
        for _ in range(count):
            kind = faults.choose()
            if kind == "broker":  # what its own start takes is not ours
                await faults.do(kind)
                took = await recovered(120)
            else:
                _, took = await asyncio.gather(faults.do(kind), recovered(120))
            recovery.append((kind, took))
            if took > SLOW_S:
                for number, worker in enumerate(faults.workers):
                    print(f"--- worker {number} after {kind}, {took:.0f} s\n{worker.log[-6000:]}", file=sys.stderr)
        over.set()
        sent = await sending
        await send(bootstrap, traffic.rest(), outbox)
        await watch.caught_up(120, keep)
        lost, doubled = difference(traffic.truth, await counted(bootstrap))
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await watch.close()
        await outbox.close()
    return ChaosReport(sent, dict(faults.done), lost, doubled, recovery, max(one.resident_mb for one in faults.workers))


async def _send_steadily(bootstrap: str, traffic: Traffic, outbox: Outbox, events: int, per_s: float, over: asyncio.Event) -> int:
    began, sent = time.monotonic(), 0
    while sent < events or not over.is_set():
        due = int((time.monotonic() - began) * per_s) + 20
        if due > sent:
            made = traffic.make(due - sent)
            await send(bootstrap, made, outbox)
            sent += len(made)
        await asyncio.sleep(0.05)  # the pace
    return sent
