"""`smoa top`: a live view of traffic, residency and what becomes of the library, read from Kafka."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Final

import click
from google.protobuf.message import Message
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from smoa.cli.options import kafka_option
from smoa.events import DECISIONS, EXECUTORS, LIFECYCLE, OUTCOMES, USAGE
from smoa.reader import consumer_of, messages_of
from smoa.v1.events_pb2 import ExecutorStatus, LifecycleAction, LifecycleEvent, UsageEvent
from smoa.v1.feedback_pb2 import Outcome
from smoa.v1.router_pb2 import Decision

WINDOW_S: Final = 10.0
SHOWN: Final = 8
MAX_COUNTED: Final = 10_000
SILENT_S: Final = 15.0
"""An executor that has said nothing for so long is not shown."""


class Traffic:
    """What came lately, in bounded memory."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[float, Counter[str]]] = deque()
        self._executors: dict[str, tuple[float, ExecutorStatus]] = {}
        self._lifecycle: deque[LifecycleEvent] = deque(maxlen=SHOWN)

    def take(self, messages: Iterable[Message], now_s: float) -> None:
        """Count what came."""
        if not self._seconds or now_s - self._seconds[-1][0] >= 1:
            self._seconds.append((now_s, Counter()))
        counts = self._seconds[-1][1]
        for message in messages:
            if isinstance(message, Decision):
                counts["decisions"] += 1
                counts["cached"] += message.cached
                counts["abstained"] += not message.adapters
                counts["handler_us"] += message.handler_us
                if len(counts) < MAX_COUNTED:
                    counts.update(f"adapter {one.adapter_id}" for one in message.adapters)
            elif isinstance(message, Outcome):
                counts["outcomes"] += 1
                counts["successes"] += message.success
            elif isinstance(message, UsageEvent):
                counts["tokens"] += message.tokens
            elif isinstance(message, LifecycleEvent) and not message.ranker:
                self._lifecycle.append(message)
            elif isinstance(message, ExecutorStatus):
                self._executors[message.address] = (now_s, message)
        self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        while self._seconds and self._seconds[0][0] < now_s - WINDOW_S:
            self._seconds.popleft()
        self._executors = {
            address: (at_s, status) for address, (at_s, status) in self._executors.items() if now_s - at_s < SILENT_S and not status.leaving
        }

    def totals(self) -> Mapping[str, int]:
        """Counts of the window; adapters as `adapter ID`."""
        found: Counter[str] = Counter()
        for _, counts in self._seconds:
            found.update(counts)
        return found

    def frame(self) -> RenderableType:
        """What to show."""
        sums = self.totals()
        span_s = max(1.0, self._seconds[-1][0] - self._seconds[0][0] + 1) if self._seconds else 1.0
        decided = sums.get("decisions", 0)
        traffic = Table("decisions/s", "cached", "abstained", "handler ms", "outcomes/s", "success", "tokens/s", title="traffic, last 10 s")
        traffic.add_row(
            f"{decided / span_s:,.1f}",
            _share(sums.get("cached", 0), decided),
            _share(sums.get("abstained", 0), decided),
            f"{sums.get('handler_us', 0) / decided / 1000:.2f}" if decided else "-",
            f"{sums.get('outcomes', 0) / span_s:,.1f}",
            _share(sums.get("successes", 0), sums.get("outcomes", 0)),
            f"{sums.get('tokens', 0) / span_s:,.1f}",
        )
        busiest = Table("adapter", "decisions/s", title="most chosen")
        adapters = Counter({name.removeprefix("adapter "): many for name, many in sums.items() if name.startswith("adapter ")})
        for name, many in adapters.most_common(SHOWN):
            busiest.add_row(name, f"{many / span_s:,.1f}")
        executors = Table("executor", "in slots", "free slots", "in memory", "running", "waiting", title="executors")
        for address, (_, status) in sorted(self._executors.items()):
            executors.add_row(
                address,
                str(len(status.active)),
                str(status.free_slots),
                str(len(status.hosted)),
                f"{status.running} of {status.rows}",
                str(status.waiting),
            )
        library = Table("when", "adapter", "what", "why", title="library")
        for event in self._lifecycle:
            library.add_row(
                time.strftime("%H:%M:%S", time.localtime(event.occurred_at_us / 1e6)),
                event.adapter_id,
                words_of(event.action),
                event.reason,
            )
        return Group(traffic, busiest, executors, library)


def words_of(action: LifecycleAction) -> str:
    """A lifecycle action, for people."""
    return LifecycleAction.Name(action).removeprefix("LIFECYCLE_ACTION_").lower().replace("_", " ")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


@click.command("top")
@kafka_option
@click.option("--seconds", default=0.0, help="Stop after so long; 0 means at Ctrl-C.")
def top_command(kafka: str, seconds: float) -> None:
    """Watch traffic, what the executors hold, and what becomes of the library, as it happens."""
    asyncio.run(_watch(kafka, seconds))


async def _watch(kafka: str, seconds: float) -> None:
    traffic, ends = Traffic(), time.monotonic() + seconds
    topics = (DECISIONS, OUTCOMES, USAGE, LIFECYCLE, EXECUTORS)
    async with consumer_of(kafka, latest=True) as consumer:
        consumer.subscribe(topics)
        with Live(traffic.frame(), console=Console(), auto_refresh=False) as live:
            while not seconds or time.monotonic() < ends:
                batches = await consumer.getmany(timeout_ms=500, max_records=500)
                traffic.take([one for records in batches.values() for record in records for one in messages_of(record)], time.monotonic())
                live.update(traffic.frame(), refresh=True)
