"""`smoa optimizer`: what it did to the library and why, and the way back."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from services.optimizer.changelog import COUNTS, Changelog
from services.optimizer.dlq import dead_letters
from services.optimizer.propose import propose_command
from services.optimizer.settings import APP_ID
from smoa.cli.options import json_lines_option, kafka_option, router_option, tenant_option, with_client
from smoa.cli.top import words_of
from smoa.client import SmoaClient
from smoa.errors import FailedPrecondition
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, LIFECYCLE, OUTCOMES, USAGE
from smoa.reader import lag_of, read_topic
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.events_pb2 import LifecycleEvent
from smoa.v1.state_pb2 import AdapterCounts, Tally

_MERGED_INTO = re.compile(r"^merged into (\w+):")


@click.group("optimizer")
def optimizer_group() -> None:
    """What the optimizer does to the library, why, and how to take it back.

    \b
    How is it doing?         smoa optimizer status
    What did it do?          smoa optimizer history
    Why did this one go?     smoa optimizer explain ADAPTER
    Bring it back:           smoa optimizer undo ADAPTER
    Keep its hands off:      smoa adapter pin ADAPTER
    What is missing?         smoa optimizer propose
    """  # noqa: D301  the escape tells click to keep the lines


optimizer_group.add_command(propose_command)


@optimizer_group.command("status")
@kafka_option
@router_option
@tenant_option
@json_lines_option
def status_command(kafka: str, router: str, tenant: str, as_json: bool) -> None:
    """How far it is behind, what it put aside, and the merges that are on trial."""
    topics = (DECISIONS, OUTCOMES, ADAPTER_OUTCOMES, USAGE)

    async def work() -> tuple[dict[str, tuple[int, int]], int, list[registry_pb2.Adapter]]:
        lag = await lag_of(kafka, APP_ID, topics)
        async with SmoaClient(router=router) as client:
            canaries = [one async for one in client.list_all(tenant, states=[common.ADAPTER_STATE_CANARY])]
        return lag, len(await dead_letters(kafka)), canaries

    lag, aside, canaries = asyncio.run(work())
    if as_json:
        behind = {topic: end - committed for topic, (end, committed) in lag.items()}
        return click.echo(json.dumps({"behind": behind, "dead_letters": aside, "canaries": [MessageToDict(one) for one in canaries]}))
    table = Table("topic", "messages", "counted", "behind")
    for topic, (end, committed) in lag.items():
        table.add_row(topic, f"{end:,}", f"{committed:,}", f"{end - committed:,}")
    Console().print(table)
    click.echo(f"{aside:,} events are put aside" + ("; see `smoa dlq list`" if aside else ""))
    if canaries:
        trial = Table("on trial", "name", "share", "outcomes", "success", title=f"merges of {tenant}")
        for one in canaries:
            counts = one.statistics
            trial.add_row(
                one.adapter_id, one.name, f"{one.canary_share:.0%}", str(counts.outcomes), _rate(counts.successes, counts.outcomes)
            )
        Console().print(trial)
    else:
        click.echo(f"no merge of {tenant} is on trial")
    return None


@optimizer_group.command("history")
@click.argument("adapter_id", required=False)
@kafka_option
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option("--last", default=50, show_default=True, help="So many events; 0 means all.")
@json_lines_option
def history_command(adapter_id: str | None, kafka: str, tenant: str, last: int, as_json: bool) -> None:
    """What happened to the library, or to ADAPTER_ID and its relatives by merges, oldest first.

    The lifecycle topic is compacted: of each adapter at least the last event is there.
    """
    events = [one for one in asyncio.run(_history(kafka)) if tenant in ("", one.tenant)]
    if adapter_id:
        events = _about(adapter_id, events)
    if last:
        events = events[-last:]
    if as_json:
        for one in events:
            click.echo(json.dumps(_event_json(one)))
        return
    _show_events(events)


@optimizer_group.command("explain")
@click.argument("adapter_id")
@kafka_option
@router_option
@tenant_option
@json_lines_option
def explain_command(adapter_id: str, kafka: str, router: str, tenant: str, as_json: bool) -> None:
    """Why ADAPTER_ID is what it is: its state, its counts by tenant and task, who it works with, and what was decided by which numbers."""

    async def work() -> tuple[registry_pb2.Adapter, AdapterCounts | None, list[LifecycleEvent], dict[str, str]]:
        async with SmoaClient(router=router) as client:
            adapter = await client.get(adapter_id, tenant)
            states = [common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY, common.ADAPTER_STATE_RETIRED]
            names = {one.adapter_id: one.name async for one in client.list_all(tenant, states=states)}
        kept = await Changelog(kafka, COUNTS.name).read_around(adapter_id)
        counts = [AdapterCounts.FromString(one.value) for one in kept if one.name == adapter_id.encode()]
        return adapter, counts[-1] if counts else None, _about(adapter_id, await _history(kafka)), names

    adapter, counts, events, names = asyncio.run(work())
    if adapter.tenant != tenant:
        counts = None  # who else uses a shared adapter is its owner's to know
    if as_json:
        counted = MessageToDict(counts) if counts else {}
        return click.echo(
            json.dumps({"adapter": MessageToDict(adapter), "counts": counted, "history": [_event_json(one) for one in events]})
        )
    state = common.AdapterState.Name(adapter.state).removeprefix("ADAPTER_STATE_").lower()
    click.echo(f"{adapter.name} {adapter.adapter_id} is {state}" + (", pinned" if adapter.pinned else ""))
    if adapter.state_reason:
        click.echo(f"because: {adapter.state_reason}")
    if counts is not None:
        _show_tallies("tenant", counts.tenants)
        if counts.tasks:
            _show_tallies("task", counts.tasks)
        if counts.together:
            beside = sorted(counts.together.items(), key=lambda pair: -pair[1])[:5]
            click.echo("chosen together with " + ", ".join(f"{names.get(one, one)} ({many:,})" for one, many in beside))
    if events:
        _show_events(events)
    return None


@optimizer_group.command("undo")
@click.argument("adapter_id")
@click.option("--reason", default="undone by hand", show_default=True)
@router_option
@tenant_option
def undo_command(adapter_id: str, reason: str, router: str, tenant: str) -> None:
    """Bring ADAPTER_ID back: a pruned one is restored; a merged one, or the child of a merge, has its whole merge undone.

    The optimizer does not try the same merge again. To keep it from pruning the adapter again: smoa adapter pin.
    """

    async def work(client: SmoaClient) -> str:
        adapter = await client.get(adapter_id, tenant)
        merged = _MERGED_INTO.match(adapter.state_reason) if adapter.state == common.ADAPTER_STATE_RETIRED else None
        if merged or (adapter.merge_id and adapter.state in (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY)):
            child = await client.settle_merge(tenant, merged[1] if merged else adapter_id, promote=False, reason=reason)
            return f"{child.name} {child.adapter_id} is retired; active again: {', '.join(child.parents)}"
        if adapter.state == common.ADAPTER_STATE_RETIRED:
            return f"{(await client.restore(tenant, adapter_id)).name} is active again"
        raise FailedPrecondition(f"adapter: {adapter_id} is neither retired nor the child of a merge, so there is nothing to undo")

    click.echo(with_client(router, work))


async def _history(kafka: str) -> list[LifecycleEvent]:
    events = [LifecycleEvent.FromString(one.value) async for one in read_topic(kafka, LIFECYCLE) if one.value]
    return sorted((one for one in events if one.adapter_id and not one.ranker), key=lambda one: one.occurred_at_us)


def _about(adapter_id: str, events: list[LifecycleEvent]) -> list[LifecycleEvent]:
    """Of the adapter, its parents, and the children it went into."""
    family = {adapter_id}
    for one in events:
        if one.adapter_id == adapter_id or adapter_id in one.parents:
            family |= {one.adapter_id, *one.parents}
    return [one for one in events if one.adapter_id in family]


def _event_json(one: LifecycleEvent) -> dict[str, Any]:
    return dict(MessageToDict(one, preserving_proto_field_name=True))


def _show_events(events: list[LifecycleEvent]) -> None:
    table = Table("when", "adapter", "what", "why")
    for one in events:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(one.occurred_at_us / 1e6))
        table.add_row(when, one.adapter_id, words_of(one.action), one.reason)
    Console().print(table)


def _show_tallies(name: str, tallies: Any) -> None:
    table = Table(name, "uses", "success", "of late", "tokens")
    found: list[tuple[str, Tally]] = sorted(tallies.items(), key=lambda pair: -pair[1].uses)
    for key, one in found[:10]:
        recent = f"{one.recent_uses:.1f}" if one.recent_at_us else "-"
        table.add_row(key or "(others)", f"{one.uses:,}", _rate(one.successes, one.outcomes), recent, f"{one.tokens:,}")
    Console().print(table)


def _rate(successes: int, outcomes: int) -> str:
    return f"{successes / outcomes:.0%} of {outcomes:,}" if outcomes else "-"
