"""`smoa optimizer changes`, `approve`, `reject`, `freeze` and `thaw`: what is planned, and a person's word on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import click

from smoa.cli.names import names_of
from smoa.cli.options import json_lines_option, router_option, tenant_option, with_client
from smoa.cli.tables import json_line, moment, say, show_table
from smoa.client import SmoaClient
from smoa.errors import InvalidArgument, NotFound
from smoa.v1 import changes_pb2 as changes
from smoa.v1.changes_pb2 import FreezeRecord, PlannedChange

OPEN = (changes.CHANGE_STATE_PROPOSED, changes.CHANGE_STATE_GATED, changes.CHANGE_STATE_TRIAL)
CARRIED_OUT = "what is approved is carried out by the next pass (SMOA_OPTIMIZER_INTERVAL_S), where SMOA_OPTIMIZER_MODE is not observe"
_all_tenants_option = click.option("--all-tenants", is_flag=True, help="Every tenant's.")
_base_model_option = click.option("--base-model", default="", metavar="FINGERPRINT", help="Only adapters of this base model.")
_reason_option = click.option("--reason", default="", help="Why; it is kept with the change.")
_changes_argument = click.argument("change", nargs=-1)


@click.command("changes")
@click.option("--all", "everything", is_flag=True, help="Also those that are done, undone, refused or withdrawn.")
@_all_tenants_option
@router_option
@tenant_option
@json_lines_option
def changes_command(everything: bool, all_tenants: bool, router: str, tenant: str, as_json: bool) -> None:
    """What the optimizer wants to do, is doing and, with --all, has done: each change with its last step and the reason for it.

    The same is told on the topic smoa.changes.v1, at each step, for whoever asks people by chat.
    """

    async def work(client: SmoaClient) -> tuple[list[PlannedChange], dict[str, str]]:
        listed = client.list_changes(tenant, states=() if everything else OPEN, all_tenants=all_tenants)
        found = sorted([one async for one in listed], key=lambda one: one.updated_at_us)
        return found, {} if as_json else await names_of(client, [(one.tenant, two) for one in found for two in one.adapter_ids])

    found, names = with_client(router, work)
    if as_json:
        for one in found:
            click.echo(json_line(one))
        return
    if not found:
        click.echo("no change is planned" if not everything else "no change was ever planned")
        return
    show_table(("change", "what", "adapters", "state", "when", "why"), [_row(one, names) for one in found], prose={"adapters", "why"})
    if any(one.state == changes.CHANGE_STATE_PROPOSED and not one.approved for one in found):
        click.echo("say yes with `smoa optimizer approve CHANGE`, no with `smoa optimizer reject CHANGE`")


def _row(one: PlannedChange, names: Mapping[str, str]) -> tuple[str, ...]:
    state = changes.ChangeState.Name(one.state).removeprefix("CHANGE_STATE_").lower()
    last = one.steps[-1]
    called = [names.get(adapter_id, adapter_id) for adapter_id in one.adapter_ids]
    if len(set(called)) < len(called):  # versions of one thing
        called = list(one.adapter_ids)
    return (
        one.change_id,
        changes.ChangeKind.Name(one.kind).removeprefix("CHANGE_KIND_").lower(),
        ", ".join(called),
        f"{state}, approved" if one.approved and one.state == changes.CHANGE_STATE_PROPOSED else state,
        moment(one.updated_at_us),
        (last.reason or one.steps[0].reason) + (f" ({last.by})" if last.by else ""),
    )


@click.command("approve")
@_changes_argument
@click.option("--all", "everything", is_flag=True, help="Every one of the tenant's that is proposed.")
@_reason_option
@router_option
@tenant_option
@json_lines_option
def approve_command(change: Sequence[str], everything: bool, reason: str, router: str, tenant: str, as_json: bool) -> None:
    """Say yes to each CHANGE that is proposed: an id of `smoa optimizer changes`, or a beginning that only one has."""
    decided = _decided(router, tenant, change, everything, approve=True, reason=reason)
    _tell(decided, "approved", as_json, f"\n{CARRIED_OUT}")


@click.command("reject")
@_changes_argument
@click.option("--all", "everything", is_flag=True, help="Every one of the tenant's that is proposed.")
@_reason_option
@router_option
@tenant_option
@json_lines_option
def reject_command(change: Sequence[str], everything: bool, reason: str, router: str, tenant: str, as_json: bool) -> None:
    """Say no to each CHANGE that is proposed. It is remembered: the same is not proposed again, unless you approve it after all."""
    _tell(_decided(router, tenant, change, everything, approve=False, reason=reason), "refused", as_json, "")


def _decided(router: str, tenant: str, ids: Sequence[str], everything: bool, *, approve: bool, reason: str) -> list[PlannedChange]:
    if bool(ids) == everything:
        raise InvalidArgument("change", "is not named" if not ids else "is named beside --all", "name changes, or give --all alone")

    async def work(client: SmoaClient) -> list[PlannedChange]:
        states = (changes.CHANGE_STATE_PROPOSED,) if everything else ()
        listed = [one async for one in client.list_changes(tenant, states=states)]
        meant = listed if everything else [_found(listed, one) for one in ids]
        return [await client.decide_change(tenant, one.change_id, approve=approve, reason=reason) for one in meant]

    return with_client(router, work)


def _found(listed: Sequence[PlannedChange], text: str) -> PlannedChange:
    meant = [one for one in listed if one.change_id.startswith(text.upper())]
    if len(meant) == 1 and text:
        return meant[0]
    if meant:
        raise InvalidArgument("change", f"{text!r} may be one of {len(meant)}", "give more of its id")
    raise NotFound("change", text)


def _tell(decided: Sequence[PlannedChange], word: str, as_json: bool, more: str) -> None:
    if as_json:
        for one in decided:
            click.echo(json_line(one))
        return
    ids = ", ".join(one.change_id for one in decided)
    say(f"{word}: {ids}{more}" if decided else "nothing is proposed")


@click.command("freeze")
@click.option("--reason", default="", help="Why; whoever wonders is told.")
@_all_tenants_option
@_base_model_option
@router_option
@tenant_option
@json_lines_option
def freeze_command(reason: str, all_tenants: bool, base_model: str, router: str, tenant: str, as_json: bool) -> None:
    """Keep the optimizer's hands off a tenant's library until it is thawed: nothing is pruned, merged, purged or promoted.

    Merges on trial go on, and are undone if they do harm. The optimizer freezes by itself what so much fails in that nothing can be judged.
    """

    async def work(client: SmoaClient) -> FreezeRecord:
        return await client.freeze(None if all_tenants else tenant, base_model, reason)

    made = with_client(router, work)
    if as_json:
        return click.echo(json_line(made))
    return say(f"frozen: {freeze_named(made)}; let it go on with `smoa optimizer thaw`")


@click.command("thaw")
@_all_tenants_option
@_base_model_option
@router_option
@tenant_option
@json_lines_option
def thaw_command(all_tenants: bool, base_model: str, router: str, tenant: str, as_json: bool) -> None:
    """Let the optimizer go on where it was frozen, by a person or by itself: an incident that you thaw is not held against it again."""

    async def work(client: SmoaClient) -> None:
        await client.thaw(None if all_tenants else tenant, base_model)

    with_client(router, work)
    of = FreezeRecord(tenant="" if all_tenants else tenant, base_model=base_model)
    click.echo(json.dumps({"thawed": {"tenant": of.tenant, "base_model": of.base_model}}) if as_json else f"thawed: {freeze_named(of)}")


def freeze_named(one: FreezeRecord) -> str:
    """What is frozen."""
    whose = one.tenant or "every tenant"
    return f"{whose}, base model {one.base_model}" if one.base_model else whose


def _by(one: FreezeRecord) -> str:
    if one.incident:
        return f"an incident, thawed by {one.by or 'a person'}" if one.thawed else "an incident"
    return one.by or "a person"


def freeze_rows(found: Sequence[FreezeRecord]) -> list[tuple[str, ...]]:
    """For a table: what, by whom, since when, why."""
    return [(freeze_named(one), _by(one), moment(one.since_us), one.reason) for one in found]
