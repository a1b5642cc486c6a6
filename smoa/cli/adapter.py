"""`smoa adapter ...`: everything about one adapter file and its place in the library."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from smoa.adapter import SPECIALIZATIONS, decode, encode
from smoa.cli.bulk import import_jsonl
from smoa.cli.options import check_store, executor_option, json_lines_option, router_option, store_option, tenant_option, with_client
from smoa.client import SmoaClient
from smoa.errors import InvalidArgument
from smoa.peft import export_folder, import_folder
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2


@click.group("adapter")
def adapter_group() -> None:
    """Train, push, list, show, retire, restore, import and export adapters."""


def _show(adapter: registry_pb2.Adapter) -> None:
    click.echo(json.dumps(MessageToDict(adapter, preserving_proto_field_name=True), indent=2))


def read_examples(path: Path) -> list[str]:
    """Example inputs from a JSONL of {"input"} objects or a text file of one a line; at most 50, spread over the file."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    try:
        inputs = [str(json.loads(line)["input"]) for line in lines] if path.suffix == ".jsonl" else lines
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument("examples", f"{path} has a line without an input ({error})", "give JSONL of {input} or plain text") from error
    distinct = list(dict.fromkeys(inputs))
    return distinct[:: max(1, len(distinct) // 50)][:50]


@adapter_group.command("push")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--examples",
    "examples_path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="5 to 50 example inputs.",
)
@router_option
@store_option
def push(file: Path, examples_path: Path, router: str, store: str) -> None:
    """Put FILE into the store and register it with its example inputs; the router finds it by them."""
    check_store()
    data = file.read_bytes()
    tenant = decode(data).manifest.tenant

    async def work(client: SmoaClient) -> registry_pb2.Adapter:
        digest = await AdapterStore(store).put(data)
        return await client.register(digest, read_examples(examples_path), tenant)

    _show(with_client(router, work))


@adapter_group.command("list")
@tenant_option
@click.option("--tag", "tags", multiple=True, help="Only adapters with this tag; may repeat.")
@click.option("--all", "everything", is_flag=True, help="Retired and purged ones too.")
@json_lines_option
@router_option
def list_command(tenant: str, tags: tuple[str, ...], everything: bool, as_json: bool, router: str) -> None:
    """List a tenant's adapters with their statistics."""
    states = [common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY]
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


@adapter_group.command("import")
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Adapter file to write.")
@click.option("--jsonl", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Register every adapter of this file instead.")
@click.option("--base-model", default="", help="Fingerprint of the base model; asked of the executor when left out.")
@executor_option
@click.option("--name", default="", help="Default: the folder's name.")
@tenant_option
@click.option("--shared", is_flag=True, help="Every tenant may use it.")
@click.option("--tag", "tags", multiple=True)
@click.option("--specialization", type=click.Choice(SPECIALIZATIONS), default="task", show_default=True)
@router_option
def import_command(
    folder: Path | None, output: Path | None, jsonl: Path | None, base_model: str, executor: str, router: str, **about: Any
) -> None:
    """Turn a PEFT LoRA FOLDER into an adapter file, ready to push; or register the adapters of a --jsonl file, any number of them.

    \b
    A line of the file is an object of
      adapter_id, digest, name, kind (lora or lora_xs), base_model, rank, modules, parameter_count,
      vector (256 numbers, the router's embedding) or examples (5 to 50 inputs),
      and if you like: version, specialization, tags, shared, file_bytes.
    The same command again goes on where it broke off.
    """  # noqa: D301  the escape tells click to keep the lines
    if jsonl is not None:
        if folder is not None or output is not None:
            raise click.UsageError("--jsonl goes without FOLDER and --output")
        return import_jsonl(jsonl, router, about["tenant"])
    if folder is None or output is None:
        raise click.UsageError("give FOLDER and --output, or --jsonl")

    async def fingerprint() -> str:
        async with SmoaClient(executor=executor) as client:
            return (await client.status()).base_model

    adapter = import_folder(folder, base_model or asyncio.run(fingerprint()), **about)
    output.write_bytes(encode(adapter))
    return click.echo(f"{output}: {adapter.granularity} lora {adapter.manifest.adapter_id}, {adapter.parameter_count:,} parameters")


@adapter_group.command("export")
@click.argument("adapter_id")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@tenant_option
@router_option
@store_option
def export(adapter_id: str, folder: Path, tenant: str, router: str, store: str) -> None:
    """Write a `lora` adapter of the library as a PEFT FOLDER."""
    check_store()

    async def work(client: SmoaClient) -> bytes:
        request = registry_pb2.GetAdapterRequest(tenant=tenant, adapter_id=adapter_id)
        found = await client.registry.GetAdapter(request, timeout=30)
        return await AdapterStore(store).get(found.digest)

    export_folder(decode(with_client(router, work)), folder)
    click.echo(f"wrote {folder}/adapter_config.json and adapter_model.safetensors")
