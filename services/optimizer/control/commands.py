"""`smoa optimizer`: what it did to the library and why, and the way back."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from services.optimizer.control.change_commands import (
    approve_command,
    changes_command,
    freeze_command,
    freeze_rows,
    reject_command,
    thaw_command,
)
from services.optimizer.control.propose import propose_command
from services.optimizer.control.report import lifecycle_of, report_command
from services.optimizer.settings import APP_ID
from services.optimizer.stream.changelog import COUNTS, Changelog
from services.optimizer.stream.dlq import dead_letters
from smoa.cli.names import PROTECTED, RETIRED, adapter_argument, find_adapter, names_of, state_of, success_of
from smoa.cli.options import json_lines_option, kafka_option, router_option, tenant_option, with_client
from smoa.cli.since import since_option
from smoa.cli.tables import json_line, moment, say, show_table
from smoa.cli.top import words_of
from smoa.client import SmoaClient
from smoa.errors import FailedPrecondition
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, OUTCOMES, USAGE
from smoa.reader import lag_of
from smoa.v1 import changes_pb2, registry_pb2
from smoa.v1 import common_pb2 as common
from smoa.v1.changes_pb2 import FreezeRecord, PlannedChange
from smoa.v1.events_pb2 import LifecycleEvent
from smoa.v1.state_pb2 import AdapterCounts, Tally

_MERGED_INTO = re.compile(r"^merged into (\w+):")


@click.group("optimizer")
def optimizer_group() -> None:
    """What the optimizer does to the library, why, and how to take it back.

    \b
    How is it doing?         smoa optimizer status
    What does it plan?       smoa optimizer changes
    Yes, or no:              smoa optimizer approve CHANGE
                             smoa optimizer reject CHANGE
    What did it do?          smoa optimizer history
    Why did this one go?     smoa optimizer explain ADAPTER
    Bring it back:           smoa optimizer undo ADAPTER
    Keep its hands off:      smoa adapter pin ADAPTER
                             smoa optimizer freeze
    What is missing?         smoa optimizer propose
    Was it right?            smoa optimizer report
    """  # noqa: D301  the escape tells click to keep the lines


optimizer_group.add_command(propose_command)
optimizer_group.add_command(report_command)
for _command in (changes_command, approve_command, reject_command, freeze_command, thaw_command):
    optimizer_group.add_command(_command)


@optimizer_group.command("status")
@kafka_option
@router_option
@tenant_option
@json_lines_option
def status_command(kafka: str, router: str, tenant: str, as_json: bool) -> None:
    """How far it is behind, what it put aside, what is proposed, what is frozen, and the merges that are on trial."""
    topics = (DECISIONS, OUTCOMES, ADAPTER_OUTCOMES, USAGE)

    async def work() -> tuple[dict[str, tuple[int, int]], int, list[registry_pb2.Adapter], list[PlannedChange], list[FreezeRecord]]:
        lag = await lag_of(kafka, APP_ID, topics)
        async with SmoaClient(router=router) as client:
            canaries = [one async for one in client.list_all(tenant, states=[common.ADAPTER_STATE_CANARY])]
            proposed = [one async for one in client.list_changes(tenant, states=[changes_pb2.CHANGE_STATE_PROPOSED])]
            freezes = list(await client.list_freezes(tenant))
        return lag, len(await dead_letters(kafka)), canaries, proposed, freezes

    lag, aside, canaries, proposed, freezes = asyncio.run(work())
    if as_json:
        behind = {topic: end - committed for topic, (end, committed) in lag.items()}
        listed: dict[str, Sequence[Message]] = {"canaries": canaries, "proposed": proposed, "freezes": freezes}
        told = {name: [MessageToDict(one) for one in ones] for name, ones in listed.items()}
        return click.echo(json.dumps({"behind": behind, "dead_letters": aside, **told}))
    rows = [(topic, f"{end:,}", f"{committed:,}", f"{end - committed:,}") for topic, (end, committed) in lag.items()]
    show_table(("topic", "messages", "counted", "behind"), rows)
    click.echo(f"{aside:,} events are put aside" + ("; see `smoa dlq list`" if aside else ""))
    if proposed:
        click.echo(f"{len(proposed):,} changes of {tenant} are proposed; see `smoa optimizer changes`")
    if freezes:
        show_table(("frozen", "by", "since", "why"), freeze_rows(freezes), prose={"why"})
    if not canaries:
        return click.echo(f"nothing of {tenant} is on trial")
    trials = [
        (one.name, one.adapter_id, f"{one.canary_share:.0%}", str(one.statistics.outcomes), success_of(one.statistics)) for one in canaries
    ]
    return show_table(("on trial", "id", "share", "outcomes", "success"), trials, title=f"of {tenant}")


@optimizer_group.command("history")
@click.argument("adapter", required=False)
@kafka_option
@router_option
@click.option("--tenant", default="", help="Only this tenant's.")
@click.option("--last", default=50, show_default=True, help="So many events; 0 means all.")
@since_option(None)
@json_lines_option
def history_command(adapter: str | None, kafka: str, router: str, tenant: str, last: int, since_us: int | None, as_json: bool) -> None:
    """What happened to the library, or to ADAPTER and its relatives by merges, oldest first.

    The lifecycle topic is compacted: of each adapter at least the last event is there. ADAPTER is an id or, where the router answers, a
    name or a beginning of either that only one has.
    """

    async def work() -> tuple[list[LifecycleEvent], dict[str, str]]:
        async with SmoaClient(router=router) as client:
            events = await lifecycle_of(kafka, tenant)
            if adapter:
                told = {one.adapter_id for one in events} & {adapter.upper()}  # also of one that the registry does not have any more
                events = _about(told.pop() if told else (await find_adapter(client, adapter, tenant or "public")).adapter_id, events)
            events = [one for one in events if one.occurred_at_us >= (since_us or 0)]
            if last:
                events = events[-last:]
            return events, {} if as_json else await _names(client, events)

    events, names = asyncio.run(work())
    if as_json:
        for one in events:
            click.echo(json_line(one))
        return
    _show_events(events, names)


@optimizer_group.command("explain")
@adapter_argument
@kafka_option
@router_option
@tenant_option
@json_lines_option
def explain_command(adapter: str, kafka: str, router: str, tenant: str, as_json: bool) -> None:
    """Why ADAPTER is what it is: its state, its counts by tenant and task, who it works with, and what was decided by which numbers."""

    async def work() -> tuple[registry_pb2.Adapter, AdapterCounts | None, list[LifecycleEvent], dict[str, str]]:
        async with SmoaClient(router=router) as client:
            found = await find_adapter(client, adapter, tenant)
            kept = await Changelog(kafka, COUNTS.name).read_around(found.adapter_id)
            counts = [AdapterCounts.FromString(one.value) for one in kept if one.name == found.adapter_id.encode()]
            events = _about(found.adapter_id, await lifecycle_of(kafka))
            beside = [(tenant, one) for one, _ in _most_together(counts[-1])] if counts else []
            names = {} if as_json else await _names(client, events) | await names_of(client, beside)
            return found, counts[-1] if counts else None, events, names

    found, counts, events, names = asyncio.run(work())
    if found.tenant != tenant:
        counts = None  # who else uses a shared adapter is its owner's to know
    if as_json:
        counted = MessageToDict(counts) if counts else {}
        return click.echo(json.dumps({"adapter": MessageToDict(found), "counts": counted, "history": [_event_json(one) for one in events]}))
    say(f"{found.name} {found.adapter_id} is {state_of(found)}" + (", pinned" if found.pinned else ""))
    if found.state_reason:
        say(f"because: {found.state_reason}")
    if counts is not None:
        _show_tallies("tenant", counts.tenants)
        if counts.tasks:
            _show_tallies("task", counts.tasks)
        if counts.stood_for:
            _show_tallies("on trial, for whom/in place of", counts.stood_for)
        if counts.together:
            say("chosen together with " + ", ".join(f"{names.get(one, one)} ({many:,})" for one, many in _most_together(counts)))
    if events:
        _show_events(events, names)
    return None


@optimizer_group.command("undo")
@adapter_argument
@click.option("--reason", default="undone by hand", show_default=True)
@router_option
@tenant_option
@json_lines_option
def undo_command(adapter: str, reason: str, router: str, tenant: str, as_json: bool) -> None:
    """Bring ADAPTER back: a pruned or superseded one is restored; a merged one, or the child of a merge, has its whole merge undone; a
    version's trial ends, and both versions go on.

    What came back is left alone until there is a whole window of new evidence, and then judged by that. The optimizer does not try the same
    merge again. To keep its hands off for good: smoa adapter pin.
    """

    async def work(client: SmoaClient) -> tuple[str, dict[str, object]]:
        found = await find_adapter(client, adapter, tenant, RETIRED)
        merged = _MERGED_INTO.match(found.state_reason) if found.state == common.ADAPTER_STATE_RETIRED else None
        if merged or (found.merge_id and found.state in (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY)):
            child = await client.settle_trial(tenant, merged[1] if merged else found.adapter_id, promote=False, reason=reason)
            names = await names_of(client, [(tenant, parent) for parent in child.parents])
            parents = ", ".join(f"{names.get(parent, '')} {parent}" for parent in child.parents)
            said = f"{child.name} {child.adapter_id} is retired; active again: {parents}"
            if found.state != common.ADAPTER_STATE_CANARY:  # during a trial its parents go on, so none of them came back
                said += f"\n{PROTECTED}"
            return said, {"retired": child.adapter_id, "active": list(child.parents)}
        if found.state == common.ADAPTER_STATE_CANARY:
            await client.settle_trial(tenant, found.adapter_id, promote=False, reason=reason)
            return f"{found.name} {found.adapter_id} is active beside the older one", {"active": [found.adapter_id, *found.canary_baseline]}
        if found.state == common.ADAPTER_STATE_RETIRED:
            restored = await client.restore(tenant, found.adapter_id)
            return f"{restored.name} is active again\n{PROTECTED}", {"active": [restored.adapter_id]}
        raise FailedPrecondition(
            f"adapter: {found.name} {found.adapter_id} is neither retired, on trial nor the child of a merge, so there is nothing to undo"
        )

    sentence, told = with_client(router, work)
    say(json.dumps(told) if as_json else sentence)


async def _names(client: SmoaClient, events: Iterable[LifecycleEvent]) -> dict[str, str]:
    """Names of the events' adapters; none where the router is away, for what happened is in Kafka."""
    try:
        return await names_of(client, [(one.tenant, one.adapter_id) for one in events])
    except grpc.aio.AioRpcError as error:
        click.echo(f"note: names are not shown: {error.code().name} from the router", err=True)
        return {}


def _about(adapter_id: str, events: list[LifecycleEvent]) -> list[LifecycleEvent]:
    """Of the adapter, its parents, and the children it went into."""
    family = {adapter_id}
    for one in events:
        if one.adapter_id == adapter_id or adapter_id in one.parents:
            family |= {one.adapter_id, *one.parents}
    return [one for one in events if one.adapter_id in family]


def _event_json(one: LifecycleEvent) -> dict[str, Any]:
    return dict(MessageToDict(one, preserving_proto_field_name=True))


def _show_events(events: Sequence[LifecycleEvent], names: Mapping[str, str]) -> None:
    rows = [
        (
            names.get(one.adapter_id, ""),
            one.adapter_id,
            moment(one.occurred_at_us),
            words_of(one.action),
            one.reason,
        )
        for one in events
    ]
    show_table(("adapter", "id", "when", "what", "why"), rows, prose={"why"})


def _show_tallies(name: str, tallies: Mapping[str, Tally]) -> None:
    rows = [
        (
            key or "(others)",
            f"{one.uses:,}",
            f"{one.successes / one.outcomes:.0%} of {one.outcomes:,}" if one.outcomes else "-",
            f"{one.aside_outcomes:,}",
            f"{one.recent_uses:.1f}" if one.recent_at_us else "-",
            f"{one.tokens:,}",
        )
        for key, one in sorted(tallies.items(), key=lambda pair: -pair[1].uses)[:10]
    ]
    show_table((name, "uses", "success", "set aside", "of late", "tokens"), rows)


def _most_together(counts: AdapterCounts) -> list[tuple[str, int]]:
    return sorted(counts.together.items(), key=lambda pair: -pair[1])[:5]
