"""`smoa adapter import FOLDER...` into a running router: what becomes of each folder, and that it goes on where it broke off."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from smoa.errors import InvalidArgument, Unavailable
from smoa.v1 import common_pb2 as common
from tests.command_support import SMOA, said_by
from tests.integration.router_support import RouterWorld, running_router
from tests.peft_support import write_folder, write_training


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path) as made:
        yield made


def command(world: RouterWorld, *arguments: str) -> list[str]:
    """The import into the world's router."""
    return ["adapter", "import", *arguments, "--base-model", "base-a", "--router", world.address]


async def imported(world: RouterWorld, *arguments: str) -> tuple[int, dict[str, str]]:
    """(exit code, status by folder)."""
    code, said, _ = await said_by(*command(world, *arguments, "--json"))
    return code, {Path(one["folder"]).name: one["status"] for one in map(json.loads, said.splitlines())}


async def test_a_tree_is_imported_and_what_is_left_is_done_by_the_same_command(world: RouterWorld, tmp_path: Path) -> None:
    tree = tmp_path / "runs"
    for seed, name in enumerate(("tickets", "refunds", "bare", "few", "broken")):
        write_folder(tree / name, seed)
    write_training(tree / "tickets", "my knee hurts when I climb stairs")
    (tree / "refunds" / "examples.txt").write_text("\n".join(f"please refund order {number}" for number in range(5)))
    write_training(tree / "few", "a line", lines=4)
    (tree / "broken" / "adapter_model.safetensors").write_bytes(b"{")
    code, said, _ = await said_by(*command(world, str(tree)))
    assert code == 1
    assert ": 2 imported, 0 there already, 2 waiting for examples, 1 failed\n" in said
    assert f"waiting: {tree / 'bare'}: add {tree / 'bare' / 'examples.txt'}, 5 to 50 inputs, one a line\n" in said
    assert f"failed: {tree / 'broken'}: folder: {tree / 'broken'} holds a damaged file (" in said
    assert (await world.routed("the knee aches on stairs"))[0] == "tickets"
    listed = {one.name: one async for one in world.client.list_all()}
    assert set(listed) == {"tickets", "refunds"}
    assert (listed["tickets"].example_count, listed["tickets"].kind) == (8, common.ADAPTER_KIND_LORA)

    assert f"waiting: {tree / 'few'}: train.jsonl holds 4 distinct inputs; add {tree / 'few' / 'examples.txt'}, " in said
    (tree / "bare" / "examples.txt").write_text("\n".join(f"what is {number}?" for number in range(5)))
    write_folder(tree / "broken", 9)
    (await world.client.retire("public", listed["refunds"].adapter_id, "by the test"))
    code, statuses = await imported(world, f"{tree}/*", "--tag", "another")
    assert (code, statuses) == (0, {"tickets": "there", "refunds": "there", "bare": "imported", "few": "waiting", "broken": "waiting"})
    assert [one.name async for one in world.client.list_all(states=[common.ADAPTER_STATE_RETIRED])] == ["refunds"]


async def test_examples_and_labels_for_all(world: RouterWorld, tmp_path: Path) -> None:
    folders = [str(write_folder(tmp_path / name, seed)) for seed, name in enumerate(("a", "b"))]
    examples = write_training(tmp_path, "my knee hurts")
    labels = ["--tag", "x", "--shared", "--specialization", "style", "--tenant", "acme"]
    code, statuses = await imported(world, *folders, "--examples", str(examples), *labels)
    assert (code, statuses) == (0, {"a": "imported", "b": "imported"})
    made = [one async for one in world.client.list_all("acme")]
    assert [(one.tenant, list(one.tags), one.shared, one.specialization) for one in made] == [
        ("acme", ["x"], True, common.SPECIALIZATION_STYLE)
    ] * 2
    named = await said_by(*command(world, folders[0], "--name", "c", "--examples", str(examples), "--json"))
    assert json.loads(named[1])["name"] == "c"  # of another tenant, so another adapter
    with pytest.raises(InvalidArgument, match=r"^examples: .*train.jsonl holds 3 distinct inputs; give 5 to 50$"):
        await said_by(*command(world, *folders, "--examples", str(write_training(tmp_path, "a", lines=3))))
    code, said, _ = await said_by("adapter", "import", str(tmp_path / "nothing"), "--executor", "127.0.0.1:1")
    assert (code, f"failed: {tmp_path / 'nothing'}: is not there; " in said) == (1, True)
    code, _, said = await said_by(*command(world, *folders, "--name", "c"))
    assert (code, "--name and --output are for a single folder, not 2" in said) == (2, True)


async def test_a_single_folder_is_only_written_as_a_file_where_that_is_asked_for(world: RouterWorld, tmp_path: Path) -> None:
    folder, file = write_folder(tmp_path / "tickets"), tmp_path / "tickets.safetensors"
    code, said, _ = await said_by("adapter", "import", str(folder), "-o", str(file), "--base-model", "base-a", "--tag", "x")
    assert (code, said.startswith(f"{file}: NANO lora ")) == (0, True)
    assert [one async for one in world.client.list_all()] == []
    address = ["--router", world.address]
    _, said, _ = await said_by("adapter", "push", str(file), "--examples", str(write_training(tmp_path, "a question")), *address)
    await said_by("adapter", "export", json.loads(said)["adapter_id"], str(tmp_path / "back"), *address)
    assert (tmp_path / "back" / "adapter_model.safetensors").is_file()


async def test_a_router_that_is_away_ends_it_at_once(world: RouterWorld, tmp_path: Path) -> None:
    for seed in range(20):
        write_training(write_folder(tmp_path / "runs" / str(seed), seed), "a question")
    with pytest.raises((grpc.aio.AioRpcError, Unavailable), match=r"UNAVAILABLE|127\.0\.0\.1:1"):
        await said_by(*command(world, str(tmp_path / "runs")), "--router", "127.0.0.1:1")


@pytest.mark.timeout(180)
async def test_killed_in_the_middle_it_goes_on(world: RouterWorld, tmp_path: Path) -> None:
    tree = tmp_path / "runs"
    for seed in range(60):
        write_training(write_folder(tree / f"n{seed}", seed), f"question {seed}")
    process = await asyncio.create_subprocess_exec(*SMOA, *command(world, str(tree), "--json"), stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(20):
        assert json.loads(await process.stdout.readline())["status"] == "imported"
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    code, statuses = await imported(world, str(tree))
    counts = Counter(statuses.values())
    assert code == 0
    assert counts["there"] + counts["imported"] == 60
    assert counts["there"] >= 20
    assert len([one async for one in world.client.list_all()]) == 60
    assert len([key async for key in world.store.list_objects("adapters")]) == 60, "nothing was stored twice under another id"
