"""Adapters whose file comes with their registration: kept when they are good, and gone when they are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.router.catalogue.adapter_files import AdapterFiles
from smoa.adapter import digest_of, new_adapter_id
from smoa.client import SmoaClient
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.integration.router_support import KNEES, MONEY, RouterWorld, adapter_file, refused, running_router
from tests.kafka_support import until

Request = registry_pb2.UploadAdapterRequest


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RouterWorld]:
    async with running_router(tmp_path, purge_grace_s=0.0) as made:
        yield made


def requests(data: bytes, *parts: bytes, examples: list[str] = KNEES, **changes: object) -> list[Request]:
    """Those of an upload of `data`, of which these parts come."""
    about = registry_pb2.RegisterAdapterRequest(tenant="public", digest=digest_of(data), examples=examples)
    first = Request(register=about, file_bytes=len(data))
    for name, value in changes.items():
        setattr(first if name == "file_bytes" else first.register, name, value)
    return [first, *(Request(part=part) for part in parts)]


async def stored(world: RouterWorld) -> int:
    """Files in the store."""
    return len([key async for key in world.store.list_objects("adapters")])


async def test_a_file_that_comes_with_it_is_registered_routed_to_and_had_back(world: RouterWorld, tmp_path: Path) -> None:
    data = adapter_file()
    made = await world.client.upload(data, KNEES)
    assert (made.state, made.digest, made.file_bytes) == (common.ADAPTER_STATE_ACTIVE, digest_of(data), len(data))
    assert await world.routed(KNEES[0]) == ["knees"]
    assert await world.client.upload(data, KNEES) == made, "the same again is what is there"
    assert await world.client.download("public", made.adapter_id) == data
    assert await world.store.get(made.digest) == data
    assert not [path for path in (tmp_path / "router").iterdir() if path.name.startswith("tmp")]


async def test_parts_begin_in_the_first_message_and_are_of_any_size_that_is_worth_it(world: RouterWorld) -> None:
    data = adapter_file()
    sent = requests(data)
    sent[0].part = data
    assert (await world.client.registry.UploadAdapter(iter(sent), timeout=5)).digest == digest_of(data)
    other = adapter_file(name="other")
    sent = requests(other, other[:10], other[10:], examples=MONEY)
    code, details, _ = await refused(world.client.registry.UploadAdapter(iter(sent), timeout=5))
    assert (code, details) == ("INVALID_ARGUMENT", "part: has 10 bytes; send 65,536 at least, but for the last")


async def test_what_is_refused_leaves_nothing_in_the_store(world: RouterWorld) -> None:
    data = adapter_file()
    damaged, beta = data[:-1] + bytes([data[-1] ^ 1]), adapter_file(tenant="beta")
    for sent, said in (
        ([], "register: is not in the first message; "),
        ([Request(part=data)], "register: is not in the first message; "),
        (requests(data), "part: only 0 bytes came; "),
        (requests(data, data[:-1]), f"part: has {len(data) - 1:,} bytes; "),
        (requests(data, data, b"x"), f"part: over {len(data):,} bytes came; "),
        (requests(data, b"", data), "part: has 0 bytes; "),
        ([*requests(data), requests(data)[0]], "register: comes again; "),
        (requests(data, damaged), f"register.digest: {digest_of(data)[:12]} is not the sha256 of what came, "),
        (requests(damaged, damaged), "file: weights do not match the manifest's weights_sha256; "),
        (requests(b"x", b"x"), "file: is not a whole safetensors file ("),
        (requests(beta, beta), "tenant: 'public' is not the manifest's 'beta'; "),
        (requests(data, data, examples=KNEES[:4]), "examples: holds 4 distinct inputs; "),
        (requests(data, data, digest="../x"), "digest: '../x' is not a sha256"),
        (requests(data, data, file_bytes=0), "file_bytes: 0 is not in 1.."),
        (requests(data, data, file_bytes=2**40), "file_bytes: 1,099,511,627,776 is not in 1.."),
    ):
        code, details, _ = await refused(world.client.registry.UploadAdapter(iter(sent), timeout=5))
        assert (code, details[: len(said)]) == ("INVALID_ARGUMENT", said)
    assert await stored(world) == 0
    made = await world.client.upload(data, KNEES)
    code, _, _ = await refused(world.client.upload(adapter_file(), KNEES))
    assert (code, await stored(world)) == ("ALREADY_EXISTS", 1), "its name is another's, with the same examples"
    code, _, _ = await refused(world.client.upload(adapter_file(adapter_id=made.adapter_id, value=0.7), MONEY))
    assert (code, await stored(world)) == ("ALREADY_EXISTS", 1), "its id is another's"


async def test_one_that_was_purged_comes_back_by_its_file(world: RouterWorld) -> None:
    data = adapter_file()
    made = await world.client.upload(data, KNEES)
    await world.client.retire("public", made.adapter_id, "by hand")
    await world.client.purge("public", made.adapter_id)
    assert await stored(world) == 0
    code, details, _ = await refused(world.client.upload(data, KNEES))
    assert (code, "bring it back with `smoa adapter restore" in details) == ("FAILED_PRECONDITION", True)
    assert await stored(world) == 1, "a record names it"
    assert (await world.client.restore("public", made.adapter_id)).state == common.ADAPTER_STATE_ACTIVE


async def test_whoever_goes_away_in_the_middle_leaves_nothing(world: RouterWorld) -> None:
    data, gone = adapter_file(), asyncio.Event()

    async def half() -> AsyncIterator[Request]:
        for request in requests(data, data[:100]):
            yield request
        gone.set()
        await asyncio.Event().wait()

    call = world.client.registry.UploadAdapter(half(), timeout=30)
    await gone.wait()
    call.cancel()
    assert await stored(world) == 0
    assert (await world.client.upload(data, KNEES)).digest == digest_of(data), "and its place is free"


async def test_what_goes_on_without_its_caller_still_takes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, goes_on, begun = adapter_file(), asyncio.Event(), asyncio.Event()
    take = AdapterFiles.take

    async def slowly(self: AdapterFiles, *arguments: Any) -> None:
        begun.set()
        await goes_on.wait()
        await take(self, *arguments)

    monkeypatch.setattr(AdapterFiles, "take", slowly)
    async with running_router(tmp_path, max_adapter_bytes=len(data)) as world:
        for _ in range(2):
            begun.clear()
            call = world.client.registry.UploadAdapter(iter(requests(data, data)), timeout=30)
            await begun.wait()
            call.cancel()
        code, details, _ = await refused(world.client.upload(data, KNEES))
        assert (code, details.startswith("bytes of uploads: ")) == ("RESOURCE_EXHAUSTED", True)
        goes_on.set()

        async def is_there() -> bool:
            return len([one async for one in world.client.list_all()]) == 1

        await until("what was sent is registered", 10, is_there)


async def test_a_file_that_comes_too_slowly_gives_its_room_back(world: RouterWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.router.catalogue.uploads._BEGIN_S", -1.0)
    data = bytes(2**18)
    code, details, _ = await refused(world.client.registry.UploadAdapter(iter(requests(data, data[: 2**17], data[2**17 :])), timeout=30))
    assert (code, details.startswith("part: the file comes too slowly; ")) == ("DEADLINE_EXCEEDED", True)


async def test_a_record_that_names_anothers_file_gives_no_right_to_it(world: RouterWorld) -> None:
    """A digest is no secret: whoever may use a shared adapter is told it."""
    data = adapter_file(shared=True, tenant="acme")
    theirs = await world.client.upload(data, KNEES, "acme")
    mine = registry_pb2.Adapter(**{name: getattr(theirs, name) for name in ("version", "digest", "name", "kind", "base_model", "rank")})
    mine.adapter_id, mine.specialization, mine.parameter_count, mine.modules[:] = new_adapter_id(), theirs.specialization, 4, ["q_proj"]
    async for _ in world.client.import_adapters([[registry_pb2.ImportedAdapter(adapter=mine, examples=KNEES)]], "beta"):
        pass
    with pytest.raises(grpc.aio.AioRpcError, match="was not found"):
        await world.client.download("beta", mine.adapter_id)
    await world.client.retire("beta", mine.adapter_id, "by hand")
    await world.client.purge("beta", mine.adapter_id)
    assert await world.client.download("acme", theirs.adapter_id) == data, "what beta purges is not acme's file"
    mine.adapter_id = new_adapter_id()
    async for _ in world.client.import_adapters([[registry_pb2.ImportedAdapter(adapter=mine, examples=KNEES)]], "beta"):
        pass
    await world.client.retire("acme", theirs.adapter_id, "by hand")
    await world.client.purge("acme", theirs.adapter_id)
    assert await stored(world) == 0, "nor keeps beta's record acme from purging"


async def test_a_file_is_given_to_its_tenant_only(world: RouterWorld) -> None:
    made = await world.client.upload(adapter_file(shared=True, tenant="acme"), KNEES, "acme")
    assert (await world.client.get(made.adapter_id, "beta")).adapter_id == made.adapter_id, "beta may use it"
    with pytest.raises(grpc.aio.AioRpcError, match="was not found"):
        await world.client.download("beta", made.adapter_id)


async def test_a_file_that_is_missing_comes_with_the_registration(world: RouterWorld) -> None:
    data = adapter_file()
    made = await world.client.upload(data, KNEES)
    await world.store.delete(made.digest)
    with pytest.raises(grpc.aio.AioRpcError, match=r"adapter file '.*' was not found"):
        await world.client.download("public", made.adapter_id)
    assert (await world.client.upload(data, KNEES)).state == common.ADAPTER_STATE_ACTIVE
    assert await world.client.download("public", made.adapter_id) == data


async def test_a_day_has_so_many_bytes_and_files_on_their_way_have_so_much_room(tmp_path: Path) -> None:
    data, held = adapter_file(), asyncio.Event()
    limits = {"upload_bytes_per_day": 2.5 * len(data), "max_adapter_bytes": len(data) + 100}
    async with running_router(tmp_path, **limits) as world:
        await world.client.upload(data, KNEES)
        await world.client.upload(data, KNEES)
        code, details, _ = await refused(world.client.upload(data, KNEES))
        assert (code, details.startswith("uploads: anybody here is over ")) == ("RESOURCE_EXHAUSTED", True)
    async with running_router(tmp_path / "other", max_adapter_bytes=len(data)) as world, SmoaClient(router=world.address) as other:

        async def half() -> AsyncIterator[Request]:
            yield requests(data)[0]
            held.set()
            await asyncio.Event().wait()

        calls = [world.client.registry.UploadAdapter(half(), timeout=30)]
        await held.wait()
        held.clear()
        calls.append(world.client.registry.UploadAdapter(half(), timeout=30))
        await held.wait()
        code, details = "OK", ""
        while code == "OK":  # until both have been seen there
            try:
                await other.upload(data, KNEES)
            except grpc.aio.AioRpcError as error:
                code, details = error.code().name, str(error.details())
        assert (code, details.startswith("bytes of uploads: ")) == ("RESOURCE_EXHAUSTED", True)
        for call in calls:
            call.cancel()
