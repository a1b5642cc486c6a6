"""`smoa adapter ...`: everything about one adapter file and its place in the library."""

from __future__ import annotations

import json
from pathlib import Path

import click
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from smoa.adapter import decode
from smoa.cli.importing import import_command
from smoa.cli.options import json_lines_option, router_option, store_option, tenant_option, with_client
from smoa.client import SmoaClient
from smoa.example_inputs import read_examples
from smoa.peft import export_folder
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2


@click.group("adapter")
def adapter_group() -> None:
    """Train, push, list, show, retire, restore, import and export adapters."""


adapter_group.add_command(import_command)


def _show(adapter: registry_pb2.Adapter) -> None:
    click.echo(json.dumps(MessageToDict(adapter, preserving_proto_field_name=True), indent=2))


@adapter_group.command("push")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--examples",
    "examples_path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="5 to 50 example inputs: a training JSONL (the first user input of each line), or text, one a line.",
)
@router_option
@store_option
def push(file: Path, examples_path: Path, router: str, store: str) -> None:
    """Put FILE into the store and register it with its example inputs; the router finds it by them."""
    data, examples = file.read_bytes(), read_examples(examples_path)
    tenant = decode(data).manifest.tenant

    async def work(client: SmoaClient) -> registry_pb2.Adapter:
        return await client.register(await AdapterStore(store).put(data), examples, tenant)

    _show(with_client(router, work))


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
            click.echo(json.dumps(MessageToDict(adapter, preserving_proto_field_name=True)))
        return
    table = Table(title=f"{len(adapters)} adapters of {tenant}")
    for column in ("id", "name", "kind", "size", "tags", "state", "uses", "success"):
        table.add_column(column)
    for adapter in adapters:
        counts = adapter.statistics
        table.add_row(
            adapter.adapter_id,
            adapter.name,
            common.AdapterKind.Name(adapter.kind).removeprefix("ADAPTER_KIND_").lower(),
            common.Granularity.Name(adapter.granularity).removeprefix("GRANULARITY_"),
            ", ".join(adapter.tags),
            common.AdapterState.Name(adapter.state).removeprefix("ADAPTER_STATE_").lower(),
            str(counts.uses),
            f"{counts.successes / counts.outcomes:.0%} of {counts.outcomes}" if counts.outcomes else "-",
        )
    Console().print(table)


@adapter_group.command("show")
@click.argument("adapter_id")
@tenant_option
@router_option
def show(adapter_id: str, tenant: str, router: str) -> None:
    """Show one adapter as JSON."""
    request = registry_pb2.GetAdapterRequest(tenant=tenant, adapter_id=adapter_id)
    _show(with_client(router, lambda client: client.registry.GetAdapter(request, timeout=30)))


@adapter_group.command("retire")
@click.argument("adapter_id")
@click.option("--reason", default="by hand", show_default=True)
@tenant_option
@router_option
def retire(adapter_id: str, reason: str, tenant: str, router: str) -> None:
    """Stop routing to an adapter; `restore` brings it back."""
    _show(with_client(router, lambda client: client.retire(tenant, adapter_id, reason)))


@adapter_group.command("restore")
@click.argument("adapter_id")
@tenant_option
@router_option
def restore(adapter_id: str, tenant: str, router: str) -> None:
    """Route to a retired adapter again."""
    _show(with_client(router, lambda client: client.restore(tenant, adapter_id)))


@adapter_group.command("pin")
@click.argument("adapter_id")
@click.option("--off", is_flag=True, help="Allow automatic changes again.")
@tenant_option
@router_option
def pin(adapter_id: str, off: bool, tenant: str, router: str) -> None:
    """Keep the optimizer from merging or pruning an adapter."""
    _show(with_client(router, lambda client: client.pin(tenant, adapter_id, pinned=not off)))


@adapter_group.command("export")
@click.argument("adapter_id")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@tenant_option
@router_option
@store_option
def export(adapter_id: str, folder: Path, tenant: str, router: str, store: str) -> None:
    """Write a `lora` adapter of the library as a PEFT FOLDER."""

    async def work(client: SmoaClient) -> bytes:
        request = registry_pb2.GetAdapterRequest(tenant=tenant, adapter_id=adapter_id)
        found = await client.registry.GetAdapter(request, timeout=30)
        return await AdapterStore(store).get(found.digest)

    export_folder(decode(with_client(router, work)), folder)
    click.echo(f"wrote {folder}/adapter_config.json and adapter_model.safetensors")
