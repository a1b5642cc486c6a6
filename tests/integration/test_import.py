"""Importing many adapters: what is acknowledged is there and found, a bad one is named, and a broken import goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from services.local import free_port, is_serving
from services.router.catalogue.record_file import RecordFile
from services.router.catalogue.sqlite_catalogue import FILE
from smoa.adapter import new_adapter_id
from smoa.cli.main import cli
from smoa.client import SmoaClient
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.integration.router_support import KNEES, RouterWorld, refused, running_router
from tests.kafka_support import until

pytestmark = pytest.mark.usefixtures("catalogue")

Imported = registry_pb2.ImportedAdapter


def imported(seed: int, **changes: object) -> Imported:
    """An adapter with a random vector, the same for the same seed but for its id."""
    fields: dict[str, object] = {
        "adapter_id": new_adapter_id(),
        "version": 1,
        "digest": f"{seed:064x}",
        "name": f"n{seed}",
        "kind": common.ADAPTER_KIND_LORA_XS,
        "specialization": common.SPECIALIZATION_TASK,
        "base_model": "base-a",
        "rank": 2,
        "modules": ["q_proj"],
        "parameter_count": 8,
        **changes,
    }
    vector = np.random.default_rng(seed).standard_normal(256)
    return Imported(adapter=registry_pb2.Adapter(**fields), vector=vector)  # type: ignore[arg-type]


async def send(client: SmoaClient, *batches: Sequence[Imported], tenant: str = "public") -> list[tuple[int, int]]:
    """(durable, added) after each batch; of vectors alone, for no file of theirs is anywhere."""
    return [(one.durable, one.added) async for one in client.import_adapters(batches, tenant, files_unchecked=True)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path) as made:
        yield made


async def test_imported_adapters_are_routed_to_and_accepted_again(world: RouterWorld) -> None:
    by_example = imported(0, name="knees")
    del by_example.vector[:]
    by_example.examples.extend(KNEES)
    batches = [[imported(n) for n in range(1, 4)], [by_example, imported(5)]]
    assert await send(world.client, *batches) == [(3, 3), (5, 5)]
    assert await send(world.client, *batches) == [(3, 0), (5, 0)]
    assert (await world.routed(KNEES[0]))[0] == "knees"
    listed = {adapter.adapter_id: adapter async for adapter in world.client.list_all()}
    assert listed[by_example.adapter.adapter_id].example_count == 5
    assert listed[batches[0][0].adapter.adapter_id].granularity == common.GRANULARITY_NANO


async def test_an_import_is_the_tenants_own(world: RouterWorld) -> None:
    await send(world.client, [imported(1, tenant="zoo")], tenant="acme")
    await world.register(KNEES)
    assert [adapter.tenant async for adapter in world.client.list_all("acme")] == ["acme"]
    assert [adapter.name async for adapter in world.client.list_all("public")] == ["knees"]


def _with(change: Callable[[Imported], object]) -> Imported:
    made = imported(7)
    change(made)
    return made


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (_with(lambda one: one.vector.pop()), "adapters[1].vector: has 255 numbers; send 256, or 384, or examples instead of a vector"),
        (_with(lambda one: one.vector.__setitem__(3, float("nan"))), "adapters[1].vector: holds NaN or infinite numbers; "),
        (_with(lambda one: one.vector.__setitem__(slice(0, 256), [0.0] * 256)), "adapters[1].vector: is all zeros, "),
        (_with(lambda one: one.ClearField("vector")), "examples: holds 0 distinct inputs; give 5 to 50"),
        (imported(7, adapter_id="seven"), "adapters[1].adapter_id: 'seven' is not a ULID; "),
        (imported(7, digest="d"), "adapters[1].digest: 'd' is not a sha256 in lower-case hex; "),
        (imported(7, kind=0), "adapters[1].kind: is not set; say lora or lora_xs"),
        (imported(7, kind=99), "kind: 99 is unknown; use a AdapterKind of smoa.v1"),
        (imported(7, base_model=""), "adapters[1].base_model: is empty; "),
        (imported(7, name=""), "adapters[1].name: has 0 characters; "),
        (imported(7, rank=0), "adapters[1].rank: 0 is outside 1..1024; "),
        (imported(7, parameter_count=0), "adapters[1].parameter_count: 0 is not positive; "),
    ],
)
async def test_a_bad_adapter_is_named_and_nothing_of_its_batch_is_added(world: RouterWorld, bad: Imported, message: str) -> None:
    await send(world.client, [imported(1)])
    code, details, _ = await refused(send(world.client, [imported(2), bad]))
    assert (code, details[: len(message)]) == ("INVALID_ARGUMENT", message)
    assert len([adapter async for adapter in world.client.list_all()]) == 1


async def test_too_many_none_and_a_taken_id(world: RouterWorld) -> None:
    assert (await refused(send(world.client, [])))[1] == "adapters: holds 0; send 1 to 1,000 a request"
    one = imported(1)
    await send(world.client, [one])
    code, details, _ = await refused(send(world.client, [imported(2, adapter_id=one.adapter.adapter_id)]))
    assert (code, details[:49]) == ("ALREADY_EXISTS", f"adapter_id: {one.adapter.adapter_id} is taken by"[:49])
    code, _, _ = await refused(send(world.client, [one], tenant="acme"))
    assert code == "ALREADY_EXISTS"


async def test_what_was_acknowledged_survives_kill_9_and_the_command_goes_on(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "SMOA_ROUTER_ADDRESS": address,
        "SMOA_ROUTER_DATA_FOLDER": str(tmp_path / "router"),
        "SMOA_STORE": str(tmp_path / "store"),
        "SMOA_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "PATH": "",
    }

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "services.router"], env=environment, stderr=subprocess.DEVNULL)

    sent = [imported(n) for n in range(6000)]
    process = start()
    try:
        await until("the router", 60, lambda: is_serving(address))
        acknowledged = 0
        async with SmoaClient(router=address) as client:
            with suppress(grpc.aio.AioRpcError):
                batches = [sent[n : n + 100] for n in range(0, 6000, 100)]
                async for response in client.import_adapters(batches, files_unchecked=True):
                    acknowledged = response.durable
                    if acknowledged == 3000:
                        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        file = RecordFile(tmp_path / "router" / "index" / FILE)
        there = file.summaries([one.adapter.adapter_id for one in sent])
        file.close()
        assert len(there) >= acknowledged >= 3000
        assert {one.adapter.adapter_id for one in sent[:acknowledged]} <= set(there)
        process = start()
        await until("the router", 60, lambda: is_serving(address))
        lines = tmp_path / "adapters.jsonl"
        with lines.open("w") as out:
            for one in sent:
                fields = {key.name: value if isinstance(value, str | int) else list(value) for key, value in one.adapter.ListFields()}
                out.write(json.dumps({**fields, "kind": "lora_xs", "specialization": "task", "vector": list(one.vector)}) + "\n")
        (tmp_path / "adapters.jsonl.imported").write_text(str(acknowledged))
        code = subprocess.run(
            [Path(sys.executable).parent / "smoa", "adapter", "import", "--jsonl", str(lines), "--no-file-check", "--router", address],
            capture_output=True,
            text=True,
            check=False,
        )
        assert code.stdout == f"6,000 lines: {6000 - len(there):,} adapters added, {acknowledged:,} lines were done before\n", code.stderr
        async with SmoaClient(router=address) as client:
            assert len([adapter async for adapter in client.list_all()]) == 6000
    finally:
        process.kill()
        process.wait()


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"adapter_id": 5}\n')
    result = CliRunner().invoke(cli, ["adapter", "import", "--jsonl", str(lines), "--router", "127.0.0.1:1"])
    assert f"{lines}:1: is not an adapter (" in str(result.exception)
    result = CliRunner().invoke(cli, ["adapter", "import"])
    assert (result.exit_code, "give at least one FOLDER, or --jsonl" in result.output) == (2, True)
