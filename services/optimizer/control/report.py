"""`smoa optimizer report`: what was done in a period, what it saved, and what success did meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from services.optimizer.control.report_page import Report, page
from services.optimizer.control.report_plots import DAY_US, Day
from smoa.cli.options import json_lines_option, kafka_option, router_option
from smoa.cli.since import since_option
from smoa.client import SmoaClient
from smoa.errors import InvalidArgument
from smoa.events import LIFECYCLE, OUTCOMES
from smoa.reader import messages_of, read_topic
from smoa.v1 import common_pb2 as common
from smoa.v1.events_pb2 import LifecycleEvent
from smoa.v1.feedback_pb2 import Outcome

EVERY_STATE = (
    common.ADAPTER_STATE_ACTIVE,
    common.ADAPTER_STATE_CANARY,
    common.ADAPTER_STATE_RETIRED,
    common.ADAPTER_STATE_PURGED,
    common.ADAPTER_STATE_MISSING,
)


@click.command("report")
@kafka_option
@router_option
@click.option("--tenant", default="", help="Only this tenant's.")
@since_option("30d")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), default="optimizer-report.html", show_default=True)
@json_lines_option
def report_command(kafka: str, router: str, tenant: str, since_us: int, output: Path, as_json: bool) -> None:
    """Write a page (HTML) of what the optimizer did, what it saved and what success did meanwhile. With --json the numbers, and no page.

    Outcomes are read from Kafka, as far back as it keeps them; of each adapter the lifecycle topic has at least the last event.
    """

    async def work() -> Report:
        async with SmoaClient(router=router) as client:
            listed = client.list_all(tenant or "public", states=EVERY_STATE, all_tenants=not tenant)
            library = [one async for one in listed if tenant in ("", one.tenant)]
        return Report(
            since_us=since_us,
            until_us=time.time_ns() // 1000,
            events=await lifecycle_of(kafka, tenant, since_us),
            library=library,
            days=await days_of(kafka, tenant, since_us),
            tenant=tenant,
        )

    with Console(stderr=True).status("reading what was done, and what outcomes say"):
        report = asyncio.run(work())
    if as_json:
        return click.echo(json.dumps(report.numbers()))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(report))
    except OSError as error:
        raise InvalidArgument("output", f"cannot be written ({error})", "name another file") from error
    done = f"{len(report.pruned)} pruned, {len(report.merged_away)} merged into {len(report.merges)}, {len(report.superseded)} superseded, "
    done += f"{len(report.undone)} undone"
    return click.echo(f"wrote {output}: {done}")


async def lifecycle_of(kafka: str, tenant: str = "", since_us: int = 0) -> list[LifecycleEvent]:
    """What happened to adapters, the oldest first.

    Raises:
        Unavailable: the broker does not answer.
    """
    events = [LifecycleEvent.FromString(one.value) async for one in read_topic(kafka, LIFECYCLE) if one.value]
    wanted = (one for one in events if one.adapter_id and not one.ranker and one.occurred_at_us >= since_us and tenant in ("", one.tenant))
    return sorted(wanted, key=lambda one: one.occurred_at_us)


async def days_of(kafka: str, tenant: str, since_us: int) -> Sequence[Day]:
    """Outcomes by the day on which they were reported; repeated and corrected ones count again, withdrawn ones do not.

    Raises:
        Unavailable: the broker does not answer.
    """
    counts: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
    async for record in read_topic(kafka, OUTCOMES, since_ms=since_us // 1000):
        for one in messages_of(record):
            if isinstance(one, Outcome) and not one.withdrawn and tenant in ("", one.tenant or "public"):
                day = counts[max(since_us, one.reported_at_us or record.timestamp * 1000) // DAY_US * DAY_US]
                day[0], day[1] = day[0] + 1, day[1] + one.success
    return [Day(start_us, outcomes, successes) for start_us, (outcomes, successes) in sorted(counts.items())]
