"""`smoa adapter ...`: everything about one adapter file and its place in the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click
import grpc
from google.protobuf.json_format import MessageToDict

from smoa.adapter import Adapter, decode, encode
from smoa.cli.base_models import served_by
from smoa.cli.importing import import_command
from smoa.cli.names import LIVE, PROTECTED, RETIRED, SHOWN, adapter_argument, find_adapter, state_of, success_of
from smoa.cli.options import (
    executor_option,
    json_lines_option,
    router_option,
    signing_option,
    tenant_option,
    with_client,
)
from smoa.cli.tables import json_line, show_table
from smoa.client import SmoaClient
from smoa.example_inputs import read_examples
from smoa.peft import export_folder
from smoa.plain_files import read_plain
from smoa.signatures import signing_by
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

ASK_S: Final = 5.0
"""How long a push waits for an executor that need not be there."""


@click.group("adapter")
def adapter_group() -> None:
    """Train, push, list, show, retire, restore, import and export adapters.

    ADAPTER is a name, an id, or a beginning of either that only one has.
    """


adapter_group.add_command(import_command)


async def _check_base(adapter: Adapter, executor: str) -> None:
    """Raise InvalidArgument for what the executor could not load. Without one that serves this base model the router may know one."""
    try:
        base = await served_by(executor, ASK_S)
    except grpc.aio.AioRpcError:
        return
    if base.shape is not None and base.fingerprint == adapter.manifest.base_model:
        base.shape.check(adapter)


def _show(adapter: registry_pb2.Adapter, as_json: bool) -> None:
    """As JSON, also without `--json`, but then on many lines."""
    click.echo(json.dumps(MessageToDict(adapter, preserving_proto_field_name=True), indent=None if as_json else 2))


@adapter_group.command("push")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--examples",
    "examples_path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="5 to 50 example inputs: a training JSONL (the first user input of each line), or text, one a line.",
)
@click.option("--replace", is_flag=True, help="Retire the tenant's adapter of the same name in the same step: a new version of it.")
@json_lines_option
@signing_option
@router_option
@executor_option
def push(file: Path, examples_path: Path, replace: bool, as_json: bool, signing_key: str, router: str, executor: str) -> None:
    """Register FILE with its example inputs; the router finds it by them.

    It is checked against the base model first, where the executor serves that.
    """
    data, examples = read_plain(file, "file"), read_examples(examples_path)
    adapter = decode(data)
    signed = encode(signing_by(signing_key)(adapter)) if signing_key else data
    tenant = adapter.manifest.tenant

    async def work(client: SmoaClient) -> tuple[registry_pb2.Adapter, list[registry_pb2.Adapter]]:
        await _check_base(adapter, executor)
        made = await client.upload(signed, examples, tenant, replace=replace)
        namesakes = client.list_all(tenant, states=LIVE, name=made.name)
        return made, [one async for one in namesakes if one.adapter_id != made.adapter_id and one.tenant == tenant]

    made, namesakes = with_client(router, work)
    for one in namesakes[:SHOWN]:
        click.echo(
            f"note: {made.name!r} is the name of {one.adapter_id}, too: commands that are given the name ask which is meant; "
            "push it again with --replace if this one takes its place",
            err=True,
        )
    _show(made, as_json)


@adapter_group.command("list")
@tenant_option
@click.option("--tag", "tags", multiple=True, help="Only adapters with this tag; may repeat.")
@click.option("--all", "everything", is_flag=True, help="Retired and purged ones too.")
@json_lines_option
@router_option
def list_command(tenant: str, tags: tuple[str, ...], everything: bool, as_json: bool, router: str) -> None:
    """List a tenant's adapters with their statistics."""
    states = [common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY, common.ADAPTER_STATE_MISSING]
    if everything:
        states += [common.ADAPTER_STATE_RETIRED, common.ADAPTER_STATE_PURGED]

    async def work(client: SmoaClient) -> list[registry_pb2.Adapter]:
        return [adapter async for adapter in client.list_all(tenant, states=states, tags=tags)]

    adapters = with_client(router, work)
    if as_json:
        for adapter in adapters:
            click.echo(json_line(adapter))
        return
    rows = [
        (
            adapter.name,
            adapter.adapter_id,
            common.AdapterKind.Name(adapter.kind).removeprefix("ADAPTER_KIND_").lower(),
            common.Granularity.Name(adapter.granularity).removeprefix("GRANULARITY_"),
            ", ".join(adapter.tags),
            state_of(adapter),
            str(adapter.statistics.uses),
            success_of(adapter.statistics),
        )
        for adapter in adapters
    ]
    columns = ("name", "id", "kind", "size", "tags", "state", "uses", "success")
    show_table(columns, rows, title=f"{len(adapters)} adapters of {tenant}", prose={"tags"})


@adapter_group.command("show")
@adapter_argument
@tenant_option
@json_lines_option
@router_option
def show(adapter: str, tenant: str, as_json: bool, router: str) -> None:
    """Show one adapter as JSON."""
    _show(with_client(router, lambda client: find_adapter(client, adapter, tenant)), as_json)


@adapter_group.command("retire")
@adapter_argument
@click.option("--reason", default="by hand", show_default=True)
@tenant_option
@json_lines_option
@router_option
def retire(adapter: str, reason: str, tenant: str, as_json: bool, router: str) -> None:
    """Stop routing to an adapter; `restore` brings it back."""

    async def work(client: SmoaClient) -> registry_pb2.Adapter:
        return await client.retire(tenant, (await find_adapter(client, adapter, tenant)).adapter_id, reason)

    _show(with_client(router, work), as_json)


@adapter_group.command("restore")
@adapter_argument
@tenant_option
@json_lines_option
@router_option
def restore(adapter: str, tenant: str, as_json: bool, router: str) -> None:
    """Route to a retired adapter again."""

    async def work(client: SmoaClient) -> registry_pb2.Adapter:
        return await client.restore(tenant, (await find_adapter(client, adapter, tenant, RETIRED)).adapter_id)

    _show(with_client(router, work), as_json)
    click.echo(f"note: {PROTECTED}", err=True)


@adapter_group.command("pin")
@adapter_argument
@click.option("--off", is_flag=True, help="Allow automatic changes again.")
@tenant_option
@json_lines_option
@router_option
def pin(adapter: str, off: bool, tenant: str, as_json: bool, router: str) -> None:
    """Keep the optimizer from merging or pruning an adapter."""

    async def work(client: SmoaClient) -> registry_pb2.Adapter:
        return await client.pin(tenant, (await find_adapter(client, adapter, tenant)).adapter_id, pinned=not off)

    _show(with_client(router, work), as_json)


@adapter_group.command("export")
@adapter_argument
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@tenant_option
@json_lines_option
@router_option
def export(adapter: str, folder: Path, tenant: str, as_json: bool, router: str) -> None:
    """Write a `lora` adapter of the tenant's own as a PEFT FOLDER."""

    async def work(client: SmoaClient) -> bytes:
        return await client.download(tenant, (await find_adapter(client, adapter, tenant)).adapter_id)

    export_folder(decode(with_client(router, work)), folder)
    files = [str(folder / name) for name in ("adapter_config.json", "adapter_model.safetensors")]
    click.echo(json.dumps({"files": files}) if as_json else f"wrote {' and '.join(files)}")
