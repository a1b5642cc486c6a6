"""Every command takes a name, an id or its beginning; what it prints is whole, on 80 columns and in a log."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import click
import grpc
import pytest
from click.testing import CliRunner

from services.optimizer.control.commands import optimizer_group
from smoa.cli.main import cli
from smoa.cli.names import PROTECTED, find_adapter
from smoa.errors import InvalidArgument, NotFound, SmoaError
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.integration.router_support import KNEES, MONEY, RouterWorld, adapter_file, running_router

pytestmark = pytest.mark.usefixtures("catalogue")

NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path) as made:
        yield made


async def _run(world: RouterWorld, *arguments: str) -> click.testing.Result:
    group: click.Command = optimizer_group if arguments[0] == "optimizer" else cli
    given = arguments[1:] if group is optimizer_group else arguments
    environment = {"SMOA_ROUTER": world.address, "SMOA_STORE": world.store.location, "SMOA_KAFKA_BOOTSTRAP": NOWHERE}
    return await asyncio.to_thread(CliRunner().invoke, group, given, env=environment)


async def _said(world: RouterWorld, *arguments: str) -> str:
    result = await _run(world, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


async def _error(world: RouterWorld, *arguments: str) -> str:
    error = (await _run(world, *arguments)).exception
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.details())
    assert isinstance(error, SmoaError), error
    return str(error)


async def test_an_adapter_is_found_by_id_name_and_beginning(world: RouterWorld) -> None:
    knees, money = await world.register(KNEES, name="knees"), await world.register(MONEY, name="money")
    for text in (knees.adapter_id, knees.adapter_id.lower(), "knees", "kn"):
        assert json.loads(await _said(world, "adapter", "show", text, "--json"))["adapter_id"] == knees.adapter_id
    length = next(place for place in range(26) if knees.adapter_id[place] != money.adapter_id[place])
    own, beginning = knees.adapter_id[:length], knees.adapter_id[: length + 1]
    assert json.loads(await _said(world, "adapter", "show", beginning.lower()))["name"] == "knees"
    assert (await _error(world, "adapter", "show", own)).splitlines() == [
        f"adapter: {own!r} may be any of 2; give an id, or more of it:",
        *sorted((f"  knees  {knees.adapter_id}  active", f"  money  {money.adapter_id}  active"), key=lambda line: line.split()[1]),
    ]
    assert await _error(world, "adapter", "show", "kness") == "adapter 'kness' was not found; no name or id is or begins so; near are knees"
    assert (await _error(world, "adapter", "show", "")).startswith("adapter '' was not found")
    hidden = await world.register(KNEES, tenant="acme", name="hidden")
    for text in (hidden.adapter_id, "hidden"):
        assert "was not found" in await _error(world, "adapter", "show", text)


async def test_of_one_name_the_adapter_is_meant_that_the_command_can_act_on(world: RouterWorld) -> None:
    first, second = await world.register(KNEES, name="tickets"), await world.register(MONEY, name="tickets")
    with pytest.raises(InvalidArgument, match=r"^adapter: 'tickets' may be any of 2; give an id, or more of it:\n  tickets  "):
        await find_adapter(world.client, "tickets")
    assert json.loads(await _said(world, "adapter", "retire", first.adapter_id, "--reason", "old"))["state_reason"] == "old"
    assert (await find_adapter(world.client, "tickets")).adapter_id == second.adapter_id
    assert json.loads(await _said(world, "adapter", "pin", "tickets", "--json"))["adapter_id"] == second.adapter_id
    assert json.loads(await _said(world, "adapter", "restore", "tickets"))["adapter_id"] == first.adapter_id
    await world.client.retire("public", first.adapter_id, "0 uses of late")
    assert await _said(world, "optimizer", "undo", "tickets") == f"tickets is active again\n{PROTECTED}\n"
    await world.client.retire("public", first.adapter_id, "0 uses of late")
    assert json.loads(await _said(world, "optimizer", "undo", "tickets", "--json")) == {"active": [first.adapter_id]}


async def test_only_so_many_are_looked_at_for_a_beginning(world: RouterWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        await world.register(KNEES, name=name * 3)
    monkeypatch.setattr("smoa.cli.names.MAX_SCANNED", 2)
    assert (await find_adapter(world.client, "ccc")).name == "ccc"  # a whole name needs no looking
    with pytest.raises(InvalidArgument, match=r"'a' may be any of 1; .*; only the first 2 were looked at for names that begin so"):
        await find_adapter(world.client, "a")
    with pytest.raises(NotFound, match=r"only the first 2 were looked at"):
        await find_adapter(world.client, "c")


async def test_a_second_name_that_is_taken_says_so(world: RouterWorld, tmp_path: Path) -> None:
    first = await world.register(KNEES, name="tickets")
    (tmp_path / "b.safetensors").write_bytes(adapter_file(name="tickets"))
    (tmp_path / "b.txt").write_text("\n".join(MONEY))
    result = await _run(world, "adapter", "push", str(tmp_path / "b.safetensors"), "--examples", str(tmp_path / "b.txt"), "--json")
    assert json.loads(result.stdout)["adapter_id"] != first.adapter_id
    assert result.stderr == (
        f"note: 'tickets' is the name of {first.adapter_id}, too: commands that are given the name ask which is meant; "
        "push it again with --replace if this one takes its place\n"
    )
    await _run(world, "adapter", "push", str(tmp_path / "b.safetensors"), "--examples", str(tmp_path / "b.txt"), "--replace")
    assert [one.adapter_id async for one in world.client.list_all()] == [json.loads(result.stdout)["adapter_id"]]


async def test_a_second_version_of_a_name_replaces_the_first_where_that_is_asked_for(world: RouterWorld, tmp_path: Path) -> None:
    first = await world.register(MONEY, name="refunds")
    (tmp_path / "b.safetensors").write_bytes(adapter_file(0.7, name="refunds"))
    (tmp_path / "b.txt").write_text("\n".join(MONEY))
    push = ("adapter", "push", str(tmp_path / "b.safetensors"), "--examples", str(tmp_path / "b.txt"), "--json")
    assert f"name: 'refunds' is the name of {first.adapter_id}, which has the same examples, " in await _error(world, *push)
    result = await _run(world, *push, "--replace")
    made = json.loads(result.stdout)
    assert (made["state"], result.stderr) == ("ADAPTER_STATE_ACTIVE", "")
    shown = json.loads((await _run(world, "adapter", "show", first.adapter_id, "--json")).stdout)
    assert (shown["state"], shown["state_reason"]) == ("ADAPTER_STATE_RETIRED", f"replaced by {made['adapter_id']}")
    (tmp_path / "a.safetensors").write_bytes(await world.store.get(first.digest))
    again = await _error(world, *push[:2], str(tmp_path / "a.safetensors"), *push[3:])
    assert again.endswith(f"; bring it back with `smoa adapter restore {first.adapter_id}`")


async def test_a_tree_may_name_its_adapters(world: RouterWorld, tmp_path: Path) -> None:
    knees, money = await world.register(KNEES, name="knees"), await world.register(MONEY, name="money")
    tree = tmp_path / "tree.json"
    tree.write_text('{"sequential": [{"adapter_id": "knees"}, {"parallel": [{"adapter_id": "mon"}, {"adapter_id": "kn", "weight": 0.5}]}]}')
    made = json.loads(await _said(world, "composition", "create", "support", str(tree), "--json"))
    assert made["adapter_ids"] == [knees.adapter_id, money.adapter_id]
    tree.write_text('{"sequential": [{"composition": "supp"}, {"adapter_id": "money"}]}')
    assert json.loads(await _said(world, "composition", "create", "other", str(tree)))["children"] == ["support"]
    for text in ("support", "sup", made["composition_id"], made["composition_id"][:12].lower()):
        assert json.loads(await _said(world, "composition", "show", text))["name"] == "support"
    assert "composition 'suport' was not found; no name or id is or begins so; near are support" in await _error(
        world, "composition", "show", "suport"
    )
    listed = await _said(world, "composition", "list")
    assert made["composition_id"] in listed
    assert await _said(world, "composition", "delete", "oth") == "other is deleted\n"


async def test_tables_show_names_first_and_ids_whole(world: RouterWorld) -> None:
    long_name = "an adapter whose name takes [bold]more[/bold] room than there is"
    tags = tuple(f"tag-{number}" for number in range(12))
    adapters = [await world.register(KNEES, name=long_name, tags=tags), await world.register(MONEY, name="money")]
    decision = await world.client.route(KNEES[0], base_model="base-a")
    assert decision.adapters
    command = [sys.executable, "-c", "from smoa.cli import main; main()", "adapter", "list", "--router", world.address]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    piped = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True, check=True)
    theirs, ours = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=ours, stderr=subprocess.PIPE)
        os.close(ours)
        seen = await asyncio.to_thread(_all_of, theirs)
        assert await process.wait() == 0
    finally:
        os.close(theirs)
    for said in (piped.stdout, seen):
        header = next(line for line in said.splitlines() if "name" in line)
        assert header.index("name") < header.index("id") < header.index("state")
        for adapter in adapters:
            assert any(adapter.adapter_id in line and adapter.name in line for line in said.splitlines())


def _all_of(terminal: int) -> str:
    said = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            more = b""
        if not more:
            return said.decode()
        said += more


async def test_every_state_is_looked_in(world: RouterWorld) -> None:
    states = set(common.AdapterState.values()) - {common.ADAPTER_STATE_UNSPECIFIED}
    request = registry_pb2.ListAdaptersRequest(states=states)  # type: ignore[arg-type]
    assert list((await world.client.registry.ListAdapters(request, timeout=5)).adapters) == []
