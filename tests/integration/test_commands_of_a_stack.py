"""Commands as README writes them, with no address: they take all of them from the folder of the stack that runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from services.optimizer.control.commands import optimizer_group
from services.optimizer.stream.dlq import dlq_group
from services.router.commands import router_group
from smoa.cli.main import cli
from smoa.stack import Stack
from tests.integration.router_support import KNEES, RouterWorld, adapter_file, running_router
from tests.kafka_support import embedded_broker

GROUPS = {"optimizer": optimizer_group, "dlq": dlq_group, "router": router_group}


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[tuple[RouterWorld, Stack]]:
    data = tmp_path / "smoa-data"
    data.mkdir()
    async with embedded_broker(tmp_path) as kafka, running_router(data, kafka_bootstrap=kafka) as router:
        stack = Stack(
            data=str(data),
            router=router.address,
            executor="127.0.0.1:1",
            kafka=kafka,
            store=str(data / "store"),
            pid=1,
            started_at_s=0.0,
        )
        stack.write()
        yield router, stack


async def _said(*arguments: str) -> str:
    command: click.Command = GROUPS.get(arguments[0], cli)
    given = arguments[1:] if arguments[0] in GROUPS else arguments
    result = await asyncio.to_thread(CliRunner().invoke, command, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


async def test_commands_find_router_broker_and_store(
    stack: tuple[RouterWorld, Stack], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, told = stack
    await router.register(KNEES)
    monkeypatch.chdir(tmp_path)
    assert "nothing of public is on trial" in await _said("optimizer", "status")
    assert "nothing is put aside" in await _said("dlq", "list")
    assert "0 decisions with outcomes" in await _said("router", "log", "-o", "log.jsonl")
    assert "traffic, last 10 s" in await _said("top", "--seconds", "0.5")
    assert "knees" in await _said("adapter", "list")

    # From another folder, with the stack's folder named.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (elsewhere / "own.safetensors").write_bytes(adapter_file(name="own"))
    (elsewhere / "own.txt").write_text("\n".join(KNEES))
    pushed = json.loads(await _said("adapter", "push", "own.safetensors", "--examples", "own.txt", "--stack", told.data))
    assert pushed["name"] == "own"
    assert await router.store.get(pushed["digest"]) == (elsewhere / "own.safetensors").read_bytes()
    monkeypatch.setenv("SMOA_STACK", told.data)
    assert "nothing of public is on trial" in await _said("optimizer", "status")
