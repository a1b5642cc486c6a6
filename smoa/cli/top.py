"""`smoa top`: a live view of traffic, residency and what becomes of the library, read from Kafka."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Final

import click
import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, Group, RenderableType
from rich.live import Live

from smoa.cli.names import names_of
from smoa.cli.options import json_lines_option, kafka_option, router_option
from smoa.cli.tables import make_table
from smoa.client import SmoaClient
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
NAMES_S: Final = 2.0
LOG_WIDTH: Final = 160
"""Of a frame where no terminal shows it."""


class Traffic:
    """What came lately, in bounded memory."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[float, Counter[str]]] = deque()
        self._executors: dict[str, tuple[float, ExecutorStatus]] = {}
        self._lifecycle: deque[LifecycleEvent] = deque(maxlen=SHOWN)
        self._tenants: dict[str, str] = {}

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
                    self._tenants.update((one.adapter_id, message.tenant) for one in message.adapters)
            elif isinstance(message, Outcome):
                counts["outcomes"] += not message.withdrawn
                counts["successes"] += message.success and not message.withdrawn
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
        if len(self._tenants) > MAX_COUNTED:
            self._tenants.clear()
        self._executors = {
            address: (at_s, status) for address, (at_s, status) in self._executors.items() if now_s - at_s < SILENT_S and not status.leaving
        }

    def totals(self) -> Mapping[str, int]:
        """Counts of the window; adapters as `adapter ID`."""
        found: Counter[str] = Counter()
        for _, counts in self._seconds:
            found.update(counts)
        return found

    def ids(self) -> list[tuple[str, str]]:
        """Tenants and ids of the adapters that a frame shows."""
        busiest = [(self._tenants.get(one, ""), one) for one, _ in self._busiest()]
        return [*busiest, *((event.tenant, event.adapter_id) for event in self._lifecycle)]

    def _busiest(self) -> list[tuple[str, int]]:
        adapters = Counter({name.removeprefix("adapter "): many for name, many in self.totals().items() if name.startswith("adapter ")})
        return adapters.most_common(SHOWN)

    def _span_s(self) -> float:
        return max(1.0, self._seconds[-1][0] - self._seconds[0][0] + 1) if self._seconds else 1.0

    def figures(self, names: Mapping[str, str]) -> dict[str, object]:
        """What a frame shows of traffic and executors, as JSON's values."""
        sums, span_s = self.totals(), self._span_s()
        rates = {f"{name}_per_s": sums.get(name, 0) / span_s for name in ("decisions", "outcomes", "tokens")}
        counts = {name: sums.get(name, 0) for name in ("decisions", "cached", "abstained", "outcomes", "successes")}
        adapters = [{"name": names.get(one, ""), "adapter_id": one, "decisions": many} for one, many in self._busiest()]
        executors = [MessageToDict(status, preserving_proto_field_name=True) for _, status in self._executors.values()]
        return {**rates, **counts, "adapters": adapters, "executors": executors}

    def frame(self, names: Mapping[str, str]) -> RenderableType:
        """What to show; `names` of adapters by id."""
        sums, span_s = self.totals(), self._span_s()
        decided = sums.get("decisions", 0)
        traffic = (
            f"{decided / span_s:,.1f}",
            _share(sums.get("cached", 0), decided),
            _share(sums.get("abstained", 0), decided),
            f"{sums.get('handler_us', 0) / decided / 1000:.2f}" if decided else "-",
            f"{sums.get('outcomes', 0) / span_s:,.1f}",
            _share(sums.get("successes", 0), sums.get("outcomes", 0)),
            f"{sums.get('tokens', 0) / span_s:,.1f}",
        )
        busiest = [(names.get(one, ""), one, f"{many / span_s:,.1f}") for one, many in self._busiest()]
        executors = [
            (
                address,
                str(len(status.active)),
                str(status.free_slots),
                str(len(status.hosted)),
                f"{status.running} of {status.rows}",
                str(status.waiting),
            )
            for address, (_, status) in sorted(self._executors.items())
        ]
        library = [
            (
                names.get(event.adapter_id, ""),
                event.adapter_id,
                time.strftime("%H:%M:%S", time.localtime(event.occurred_at_us / 1e6)),
                words_of(event.action),
                event.reason,
            )
            for event in self._lifecycle
        ]
        measures = ("decisions/s", "cached", "abstained", "ms", "outcomes/s", "success", "tokens/s")
        return Group(
            make_table(measures, [traffic], title="traffic, last 10 s"),
            make_table(("adapter", "id", "decisions/s"), busiest, title="most chosen", prose={"adapter"}),
            make_table(("executor", "in slots", "free", "in memory", "running", "waiting"), executors, title="executors"),
            make_table(("adapter", "id", "when", "what", "why"), library, title="library", prose={"adapter", "why"}),
        )


def words_of(action: LifecycleAction) -> str:
    """A lifecycle action, for people."""
    return LifecycleAction.Name(action).removeprefix("LIFECYCLE_ACTION_").lower().replace("_", " ")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


@click.command("top")
@kafka_option
@router_option
@click.option("--seconds", default=0.0, help="Stop after so long; 0 means at Ctrl-C.")
@json_lines_option
def top_command(kafka: str, router: str, seconds: float, as_json: bool) -> None:
    """Watch traffic, what the executors hold, and what becomes of the library, as it happens; names come from the router.

    In a log or a pipe, a frame every ten seconds; with --json, an object every second.
    """
    asyncio.run(_watch(kafka, router, seconds, as_json))


async def _watch(kafka: str, router: str, seconds: float, as_json: bool) -> None:
    traffic, ends = Traffic(), time.monotonic() + seconds
    topics = (DECISIONS, OUTCOMES, USAGE, LIFECYCLE, EXECUTORS)
    console = Console()
    every_s = 0.0 if console.is_terminal and not as_json else 1.0 if as_json else WINDOW_S
    shown_at = time.monotonic()
    async with consumer_of(kafka, latest=True) as consumer, SmoaClient(router=router) as client:
        consumer.subscribe(topics)
        with Live(console=console, auto_refresh=False) if not every_s else nullcontext() as live:
            names: dict[str, str] = {}
            while True:
                batches = await consumer.getmany(timeout_ms=500, max_records=500)
                now = time.monotonic()
                traffic.take([one for records in batches.values() for record in records for one in messages_of(record)], now)
                ended = bool(seconds) and now >= ends
                if ended or now - shown_at >= every_s:
                    shown_at = now
                    names = await _names(client, traffic, names)
                    if live is not None:
                        live.update(traffic.frame(names), refresh=True)
                    elif as_json:
                        click.echo(json.dumps(traffic.figures(names)))
                    else:
                        Console(width=LOG_WIDTH).print(traffic.frame(names))
                if ended:
                    return


async def _names(client: SmoaClient, traffic: Traffic, known: Mapping[str, str]) -> dict[str, str]:
    """Names of what a frame shows; those that are known already where the router does not answer."""
    ids = traffic.ids()
    kept = {one: known[one] for _, one in ids if one in known}
    try:
        async with asyncio.timeout(NAMES_S):
            return kept | await names_of(client, [(tenant, one) for tenant, one in ids if one not in kept])
    except (TimeoutError, grpc.aio.AioRpcError):
        return kept
