"""What people call an adapter or a composition: its name, its id, or an unambiguous beginning of either."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Final, TypeVar, cast

import click
import grpc

from smoa.client import SmoaClient
from smoa.errors import InvalidArgument, NotFound
from smoa.identifiers import is_ulid
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

T = TypeVar("T")
EVERY_STATE: Final = cast("Sequence[common.AdapterState]", [one for one in common.AdapterState.values() if one])  # 0 is none
LIVE: Final = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY)
RETIRED: Final = (common.ADAPTER_STATE_RETIRED,)
MAX_SCANNED: Final = 20_000
"""A beginning is looked for among so many; listing them takes a few seconds."""
SHOWN: Final = 10
PROTECTED: Final = (
    "no automatic change touches what came back until there is a whole window of new evidence "
    "(SMOA_OPTIMIZER_HALF_LIFE_S of the optimizer, 7 days unless set); then only that is judged"
)
"""What whoever brings an adapter back is told."""


adapter_argument = click.argument("adapter")


async def find_adapter(
    client: SmoaClient, text: str, tenant: str = "public", prefer: Collection[common.AdapterState] = LIVE
) -> registry_pb2.Adapter:
    """The adapter of that id, else of that name, else the only one whose name or id begins so. Letters of ids may be of either case.

    Of several of one name, the only one of the tenant in a state of `prefer` is meant.

    Raises:
        InvalidArgument: it may be one of several.
        NotFound: it is none; names that are near are told.
    """
    if is_ulid(text.upper()):
        try:
            return await client.get(text.upper(), tenant)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
    named = [one async for one in client.list_all(tenant, states=EVERY_STATE, name=text)] if text else []
    meant = [one for one in named if one.tenant == tenant and one.state in prefer]
    if len(named) == 1 or len(meant) == 1:
        return (named if len(named) == 1 else meant)[0]
    if named:
        raise _ambiguous("adapter", text, [_line(one) for one in named])
    found = await _by_beginning("adapter", text, client.list_all(tenant, states=EVERY_STATE), lambda one: (one.name, one.adapter_id), _line)
    assert isinstance(found, registry_pb2.Adapter)
    return found


async def find_composition(client: SmoaClient, text: str, tenant: str = "public") -> registry_pb2.Composition:
    """The composition of that name, else of that id, else the only one whose name or id begins so.

    Raises:
        InvalidArgument: it may be one of several.
        NotFound: it is none; names that are near are told.
    """
    ids = [text.upper()] if is_ulid(text.upper()) else []
    requests = [registry_pb2.GetCompositionRequest(tenant=tenant, name=text)] if text else []
    for request in (*requests, *(registry_pb2.GetCompositionRequest(tenant=tenant, composition_id=one) for one in ids)):
        try:
            return await client.registry.GetComposition(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
    return await _by_beginning(
        "composition",
        text,
        client.list_compositions(tenant),
        lambda one: (one.name, one.composition_id),
        lambda one: f"{one.name}  {one.composition_id}",
    )


async def with_ids(client: SmoaClient, node: registry_pb2.CompositionNode, tenant: str) -> registry_pb2.CompositionNode:
    """The tree, its adapters by id and its compositions by name, whatever it called them.

    Raises:
        InvalidArgument, NotFound: as `find_adapter` and `find_composition`.
    """
    found = registry_pb2.CompositionNode()
    found.CopyFrom(node)
    for child in found.children:
        which = child.WhichOneof("child")
        if which == "node":
            child.node.CopyFrom(await with_ids(client, child.node, tenant))
        elif which == "composition":
            child.composition = (await find_composition(client, child.composition, tenant)).name
        elif which == "adapter_id" and not is_ulid(child.adapter_id):
            child.adapter_id = (await find_adapter(client, child.adapter_id, tenant)).adapter_id
    return found


async def names_of(client: SmoaClient, wanted: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Names of adapters, by id, from pairs of tenant and id; those that are gone are left out."""
    names: dict[str, str] = {}
    for tenant, adapter_id in dict.fromkeys(wanted):
        try:
            names[adapter_id] = (await client.get(adapter_id, tenant)).name
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                raise
    return names


def state_of(adapter: registry_pb2.Adapter) -> str:
    """An adapter's state, in a word."""
    return common.AdapterState.Name(adapter.state).removeprefix("ADAPTER_STATE_").lower()


def success_of(counts: registry_pb2.AdapterStatistics) -> str:
    """Share of outcomes that were successes, in words."""
    return f"{counts.successes / counts.outcomes:.0%} of {counts.outcomes:,}" if counts.outcomes else "-"


def _line(adapter: registry_pb2.Adapter) -> str:
    return f"{adapter.name}  {adapter.adapter_id}  {state_of(adapter)}"


async def _by_beginning(
    kind: str, text: str, listed: AsyncIterator[T], labels: Callable[[T], tuple[str, str]], line: Callable[[T], str]
) -> T:
    candidates: list[T] = []
    names: set[str] = set()
    scanned, more = 0, False
    async for one in listed:
        if scanned == MAX_SCANNED:
            more = True
            break
        scanned += 1
        name, identifier = labels(one)
        names.add(name)
        if text and (name.startswith(text) or identifier.startswith(text.upper())):
            candidates.append(one)
    bound = f"; only the first {MAX_SCANNED:,} were looked at for names that begin so: give the whole name or id" if more else ""
    if len(candidates) == 1 and not more:
        return candidates[0]
    if candidates:
        raise _ambiguous(kind, text, [line(one) for one in candidates], bound)
    near = get_close_matches(text, names, SHOWN // 2)
    hint = f"near are {', '.join(near)}" if near else f"see `smoa {kind} list{' --all' if kind == 'adapter' else ''}`, and check the tenant"
    raise NotFound(kind, text, f"no name or id is or begins so; {hint}{bound}")


def _ambiguous(kind: str, text: str, lines: Sequence[str], bound: str = "") -> InvalidArgument:
    shown = "".join(f"\n  {line}" for line in lines[:SHOWN]) + (f"\n  and {len(lines) - SHOWN:,} more" if len(lines) > SHOWN else "")
    return InvalidArgument(kind, f"{text!r} may be any of {len(lines):,}", f"give an id, or more of it{bound}:{shown}")
