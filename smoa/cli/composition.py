"""`smoa composition ...`: named trees over adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from smoa.cli.names import find_composition, with_ids
from smoa.cli.options import json_lines_option, router_option, tenant_option, with_client
from smoa.cli.tables import json_line, say, show_table
from smoa.client import SmoaClient
from smoa.errors import InvalidArgument
from smoa.strict_json import parse_json
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

_SHORT = ("parallel", "sequential", "hierarchical")


@click.group("composition")
def composition_group() -> None:
    """Name a tree over adapters, and carry it out with `smoa generate --composition NAME`.

    \b
    A tree is JSON, a key for how a node applies its children:
      {"parallel":   [{"adapter_id": "01K...", "weight": 0.7}, {"adapter_id": "01J...", "weight": 0.3}]}
      {"sequential": [{"adapter_id": "01K...", "max_tokens": 40}, {"composition": "polite"}]}
    A child is an adapter (by its id, its name, or a beginning of either that only one has), another composition by its name, or a node in
    its place.
    """  # noqa: D301  the escape tells click to keep the lines


def tree_from_json(raw: object) -> registry_pb2.CompositionNode:
    """A tree in the short form that `--help` shows, or in the contract's own JSON.

    Raises:
        InvalidArgument: neither of them.
    """
    try:
        return ParseDict(_long(raw), registry_pb2.CompositionNode())
    except (ParseError, AttributeError, TypeError) as error:
        raise InvalidArgument("tree", f"is not a composition ({error})", "see `smoa composition --help`") from error


def _long(raw: Any) -> Any:
    if isinstance(raw, dict) and len(raw) == 1 and (name := next(iter(raw))) in _SHORT:
        return {"strategy": f"COMPOSITION_STRATEGY_{name.upper()}", "children": [_long_child(child) for child in raw[name]]}
    return raw


def _long_child(child: Any) -> Any:
    if not isinstance(child, dict) or not (short := {name: child[name] for name in _SHORT if name in child}):
        return child
    return {**{key: value for key, value in child.items() if key not in _SHORT}, "node": _long(short)}


@composition_group.command("create")
@click.argument("name")
@click.argument("tree", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--by-success", is_flag=True, help="Weights follow each adapter's measured success.")
@tenant_option
@json_lines_option
@router_option
def create(name: str, tree: Path, by_success: bool, tenant: str, as_json: bool, router: str) -> None:
    """Name the tree in the JSON file TREE."""
    try:
        root = tree_from_json(parse_json(tree.read_text()))
    except ValueError as error:
        raise InvalidArgument("tree", f"{tree} is not JSON ({error})", "see `smoa composition --help`") from error
    weighting = registry_pb2.COMPOSITION_WEIGHTING_MEASURED_SUCCESS if by_success else registry_pb2.COMPOSITION_WEIGHTING_UNSPECIFIED

    async def work(client: SmoaClient) -> registry_pb2.Composition:
        return await client.compose(name, await with_ids(client, root, tenant), tenant=tenant, weighting=weighting)

    _show(with_client(router, work), as_json)


def _show(composition: registry_pb2.Composition, as_json: bool) -> None:
    click.echo(json.dumps(MessageToDict(composition, preserving_proto_field_name=True), indent=None if as_json else 2))


@composition_group.command("show")
@click.argument("name")
@tenant_option
@json_lines_option
@router_option
def show(name: str, tenant: str, as_json: bool, router: str) -> None:
    """Print a composition as JSON. NAME may be its id, or a beginning of either that only one has."""
    _show(with_client(router, lambda client: find_composition(client, name, tenant)), as_json)


@composition_group.command("list")
@json_lines_option
@tenant_option
@router_option
def list_command(as_json: bool, tenant: str, router: str) -> None:
    """List a tenant's compositions."""

    async def work(client: SmoaClient) -> list[registry_pb2.Composition]:
        return [one async for one in client.list_compositions(tenant)]

    found = with_client(router, work)
    if as_json:
        for one in found:
            click.echo(json_line(one))
        return None
    if not found:
        return click.echo("no composition yet; make one with `smoa composition create`")
    rows = [
        (
            one.name,
            one.composition_id,
            common.CompositionStrategy.Name(one.root.strategy).removeprefix("COMPOSITION_STRATEGY_").lower(),
            str(len(one.adapter_ids)),
            ", ".join(one.children),
            ", ".join(one.parents),
        )
        for one in found
    ]
    columns = ("name", "id", "strategy", "adapters", "nests", "nested by")
    return show_table(columns, rows, prose={"nests", "nested by"})


@composition_group.command("delete")
@click.argument("name")
@tenant_option
@json_lines_option
@router_option
def delete(name: str, tenant: str, as_json: bool, router: str) -> None:
    """Forget a composition; refused while another nests it. NAME may be its id, or a beginning of either that only one has."""

    async def work(client: SmoaClient) -> registry_pb2.Composition:
        found = await find_composition(client, name, tenant)
        await client.delete_composition(found.name, tenant)
        return found

    deleted = with_client(router, work)
    if as_json:
        return click.echo(json.dumps({"deleted": deleted.name, "composition_id": deleted.composition_id}))
    return say(f"{deleted.name} is deleted")
