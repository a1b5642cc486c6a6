"""`smoa access ...`: who may call; the file that SMOA_CALLERS names."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToJson

from smoa.access.audit import REFUSALS
from smoa.access.callers import checked_principal, entry_of, new_key, read_callers
from smoa.access.principal import EVERY_TENANT, ROLES
from smoa.cli.options import json_lines_option, kafka_option
from smoa.cli.tables import show_table
from smoa.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from smoa.events import AUDIT
from smoa.plain_files import write_plain
from smoa.reader import messages_of, read_topic
from smoa.signatures import new_signing_key
from smoa.v1.events_pb2 import AuditEvent

_file_option = click.option(
    "--file",
    "path",
    envvar="SMOA_CALLERS",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("callers.json"),
    show_default=True,
    help="The file [SMOA_CALLERS].",
)


@click.group("access")
def access_group() -> None:
    """Say who may call router, executor and gateway, in the file that their SMOA_CALLERS names. They read it again when it changes.

    \b
    A service of your own, for one tenant:   smoa access add support-bot --tenant acme --role infer
    Who keeps that tenant's library:         smoa access add acme-ml --tenant acme --role infer --role library
    The optimizer, by its certificate:       smoa access add optimizer --tenant '*' --role optimizer --certificate spiffe://...
    The gateway, which calls for them all:   smoa access add gateway --tenant '*' --role gateway --role infer

    \b
    infer       route, generate, score and report
    library     add, change, retire, restore and purge the tenant's adapters and compositions
    publish     with library: adapters that every tenant may use
    operate     see every tenant's library; pin, and take back what was optimised
    optimizer   count, merge and prune
    executor    see what runs
    gateway     call for others, with their tenants and roles, as far as it has them itself
    """  # noqa: D301  the escape tells click to keep the lines


@access_group.command("add")
@click.argument("name")
@click.option("--tenant", "tenants", multiple=True, required=True, help=f"A tenant that is theirs; '{EVERY_TENANT}' for every one.")
@click.option("--role", "roles", multiple=True, required=True, type=click.Choice(sorted(ROLES)), help="What they may do.")
@click.option("--certificate", default="", help="A name in their certificate (a SPIFFE id, or another subject alternative name).")
@_file_option
def add(name: str, tenants: tuple[str, ...], roles: tuple[str, ...], certificate: str, path: Path) -> None:
    """Let somebody in. Prints their key, which is kept as a hash only; with --certificate, none is needed."""
    entries = _read(path)
    if any(entry.get("name") == name for entry in entries):
        raise AlreadyExists(f"name: {name!r} is in {path}; remove it with `smoa access remove`, or choose another")
    key = "" if certificate else new_key()
    _write(path, [*entries, entry_of(checked_principal(name, tenants, roles), key=key, certificate=certificate)])
    click.echo(key or f"{name} is known by the certificate of {certificate}")


@access_group.command("list")
@json_lines_option
@_file_option
def list_(path: Path, as_json: bool) -> None:
    """Show who may do what."""
    entries = _read(path)
    if as_json:
        for entry in entries:
            click.echo(json.dumps(entry))
        return
    rows = [
        (entry["name"], ", ".join(entry["tenants"]), ", ".join(entry["roles"]), entry.get("certificate") or "a key") for entry in entries
    ]
    show_table(("name", "tenants", "roles", "known by"), rows)


@access_group.command("remove")
@click.argument("name")
@_file_option
def remove(name: str, path: Path) -> None:
    """Let somebody in no longer."""
    entries = _read(path)
    if all(entry.get("name") != name for entry in entries):
        raise NotFound("caller", name, "see `smoa access list`")
    _write(path, [entry for entry in entries if entry.get("name") != name])
    click.echo(f"{name} is out")


@access_group.command("signing-key")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--tenant", "tenants", multiple=True, required=True, help=f"Whose adapters it may sign; '{EVERY_TENANT}' for everybody's.")
def signing_key(file: Path, tenants: tuple[str, ...]) -> None:
    """Make a key that signs adapters, into FILE, and print its entry for the file that SMOA_PUBLISHERS names.

    \b
    Executors and routers with SMOA_PUBLISHERS take only adapters that one of their tenant's keys has signed:
      {"publishers": [ENTRY, ...]}
    `smoa adapter push` and `import` sign with --sign-with FILE; the optimizer signs what it merges with SMOA_SIGNING_KEY.
    """  # noqa: D301  the escape tells click to keep the lines
    checked_principal("", tenants, ())
    if file.exists():
        raise AlreadyExists(f"file: {file} is there; a key that is written over is lost, choose another name")
    private, public = new_signing_key()
    write_plain(file, private, 0o600)
    click.echo(json.dumps({"tenants": list(tenants), "public_key": public}))


@access_group.command("audit")
@kafka_option
@click.option("--caller", default="", help="Only what this one did.")
@click.option("--tenant", default="", help="Only what was done for this tenant.")
@click.option("--refused", is_flag=True, help="Only calls that were refused because of who called.")
@click.option("--last", default=50, show_default=True, help="So many events; 0 means all.")
@json_lines_option
def audit(kafka: str, caller: str, tenant: str, refused: bool, last: int, as_json: bool) -> None:
    """Show who changed what with which right, and who was refused, oldest first. Refusals that are alike are told together."""
    events = asyncio.run(_audited(kafka))
    events = [
        one for one in events if caller in ("", one.caller) and tenant in ("", one.tenant) and (not refused or one.status in REFUSALS)
    ]
    for_show = events[-last:] if last else events
    if as_json:
        for one in for_show:
            click.echo(MessageToJson(one, indent=None))
        return
    rows = [
        (
            datetime.fromtimestamp(one.occurred_at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            one.caller or "(nobody known)",
            one.method,
            one.tenant,
            one.subject,
            ", ".join(one.roles),
            one.status if one.count == 1 else f"{one.status} x {one.count:,}",
            f"{one.before} > {one.after}" if one.before != one.after else "",
            one.reason,
        )
        for one in for_show
    ]
    show_table(("when (UTC)", "caller", "method", "tenant", "which", "by the role", "how it ended", "state", "why"), rows, prose={"why"})


async def _audited(kafka: str) -> list[AuditEvent]:
    events = [one async for record in read_topic(kafka, AUDIT) for one in messages_of(record)]
    return sorted((one for one in events if isinstance(one, AuditEvent)), key=lambda one: one.occurred_at_us)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"file: {path} cannot be read ({error}); correct --file or SMOA_CALLERS") from error
    try:
        read_callers(text)
    except InvalidArgument as error:
        raise FailedPrecondition(f"file: {path}: {error}") from error
    entries: list[dict[str, Any]] = json.loads(text)["callers"]
    return entries


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    """In one step, for services read it at any moment; only its owner may."""
    try:
        write_plain(path, (json.dumps({"callers": entries}, indent=2) + "\n").encode(), 0o600)
    except OSError as error:
        raise FailedPrecondition(f"file: {path} cannot be written ({error}); correct --file or SMOA_CALLERS") from error
