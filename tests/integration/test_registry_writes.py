"""A registry's writes and their events belong together, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.router.catalogue import registry as registry_module
from services.router.catalogue.changes import Change
from services.router.catalogue.records import AdapterRecord
from services.router.catalogue.registration_log import RegistrationLog, rebuild
from services.router.catalogue.registry import Registry
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue
from smoa.adapter import new_adapter_id
from smoa.embedding.static import StaticEmbedder
from smoa.embedding.views import Views
from smoa.errors import FailedPrecondition, ResourceExhausted
from smoa.store import AdapterStore
from tests.integration.router_support import KNEES, MONEY, adapter_file
from tests.library_support import DIMENSION


class World:
    """A registry, and what it told."""

    def __init__(self, catalogue: SqliteCatalogue, store: AdapterStore) -> None:
        self.told: list[tuple[str, str]] = []
        self.full = False
        self.store = store
        self.registry = Registry(catalogue, store, Views(StaticEmbedder()), self._changed, purge_grace_s=0)

    def _changed(self, changes: Sequence[Change]) -> None:
        if self.full:
            raise ResourceExhausted("spool: is full", "retry when Kafka is back")
        self.told += [(change.action, change.record.adapter_id) for change in changes]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    catalogue = SqliteCatalogue(tmp_path / "index", DIMENSION)
    yield World(catalogue, AdapterStore(str(tmp_path / "store")))
    await catalogue.close()


async def test_a_caller_that_goes_away_does_not_part_a_write_from_its_event(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = await world.store.put(adapter_file())
    writing, go_on = asyncio.Event(), asyncio.Event()
    put_object = world.store.put_object

    async def held(key: str, data: bytes) -> None:
        writing.set()
        await go_on.wait()
        await put_object(key, data)

    monkeypatch.setattr(world.store, "put_object", held)
    caller = asyncio.create_task(world.registry.register("public", digest, KNEES))
    await writing.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()
    await world.registry.close()
    [(action, adapter_id)] = world.told
    assert action == "registered"
    assert (await world.registry.get("public", adapter_id)).digest == digest


async def test_what_could_not_be_told_is_told_when_it_is_asked_for_again(world: World) -> None:
    digest = await world.store.put(adapter_file())
    world.full = True
    with pytest.raises(ResourceExhausted):
        await world.registry.register("public", digest, KNEES)
    world.full = False
    made = await world.registry.register("public", digest, KNEES)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("retired", lambda: world.registry.retire("public", made.adapter_id, "why")),
        ("restored", lambda: world.registry.restore("public", made.adapter_id)),
        ("retired", lambda: world.registry.retire("public", made.adapter_id, "why")),
        ("purged", lambda: world.registry.purge("public", made.adapter_id)),
    ]
    for _, step in steps:
        world.full = True
        with pytest.raises(ResourceExhausted):
            await step()  # type: ignore[misc]
        world.full = False
        await step()  # type: ignore[misc]
    assert world.told == [(action, made.adapter_id) for action in ("registered", *(action for action, _ in steps))]


async def test_a_full_store_can_be_emptied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await world.registry.register("public", await world.store.put(adapter_file()), KNEES)
    await world.registry.retire("public", made.adapter_id, "to make room")
    put_object, delete, room = world.store.put_object, world.store.delete, asyncio.Event()

    async def refuse(key: str, data: bytes) -> None:
        if not room.is_set():
            raise ResourceExhausted("store: is full", "purge retired adapters")
        await put_object(key, data)

    async def freeing(digest: str) -> None:
        await delete(digest)
        room.set()

    monkeypatch.setattr(world.store, "put_object", refuse)
    monkeypatch.setattr(world.store, "delete", freeing)
    assert (await world.registry.purge("public", made.adapter_id)).state == "purged"


async def test_what_is_asked_for_again_is_told_as_it_is_now(world: World) -> None:
    digest = await world.store.put(adapter_file())
    made = await world.registry.register("public", digest, KNEES)
    await world.registry.retire("public", made.adapter_id, "why")
    world.told.clear()
    with pytest.raises(FailedPrecondition, match=rf"^adapter: 'knees' is there as {made.adapter_id}, retired \(why\); bring it back with "):
        await world.registry.register("public", digest, KNEES)
    assert world.told == [("retired", made.adapter_id)], "on a compacted topic the last word stays"


async def test_writes_that_wait_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_WRITES", 1)
    go_on, put_object = asyncio.Event(), world.store.put_object

    async def held(key: str, data: bytes) -> None:
        await go_on.wait()
        await put_object(key, data)

    digest = await world.store.put(adapter_file())
    monkeypatch.setattr(world.store, "put_object", held)
    first = asyncio.create_task(world.registry.register("public", digest, KNEES))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match=r"^registry: 1 writes wait for the catalogue; retry later$"):
        await world.registry.register("public", digest, KNEES)
    go_on.set()
    await first


async def test_whoever_begins_to_use_a_file_while_it_is_deleted_is_told_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another adapter of the same file is registered after the look for users of it, through another router; its records end as missing."""
    digest = await world.store.put(data := adapter_file())
    other = Registry(world.registry.catalogue, world.store, Views(StaticEmbedder()), world._changed)
    made = await world.registry.register("public", digest, KNEES)
    await world.registry.retire("public", made.adapter_id, "why")
    delete, reading, read_on = world.store.delete, asyncio.Event(), asyncio.Event()
    read = other.files.read

    async def read_before(digest: str) -> AdapterRecord:
        found = replace(await read(digest), adapter_id=new_adapter_id(), name="twin")
        reading.set()
        await read_on.wait()
        return found

    monkeypatch.setattr(other.files, "read", read_before)
    for late in (False, True):
        registering = asyncio.create_task(other.register("public", digest, KNEES))
        await reading.wait()

        async def deleting(digest: str, late: bool = late, registering: asyncio.Task[AdapterRecord] = registering) -> None:
            if not late:  # it is written before the file is deleted
                read_on.set()
                await registering
            await delete(digest)

        monkeypatch.setattr(world.store, "delete", deleting)
        await world.registry.purge("public", made.adapter_id)
        read_on.set()
        twin = (await registering).adapter_id
        found = await world.registry.get("public", twin)
        assert (found.state, found.state_reason) == ("missing", "its file is not in the store")
        assert world.told[-1 if late else -2] == ("updated", twin)
        monkeypatch.setattr(world.store, "delete", delete)
        await world.registry.retire("public", twin, "why")
        await world.registry.purge("public", twin)  # so that nobody names the file
        reading.clear()
        read_on.clear()
        assert await world.store.put(data) == digest
        await world.registry.restore("public", made.adapter_id)
        await world.registry.retire("public", made.adapter_id, "why")
    log = RegistrationLog(world.store)
    lines = [entry.record for name in await log.names() for entry in await log.read(name, DIMENSION) if entry.record.adapter_id == twin]
    assert [one.state for one in lines] == ["active", "missing", "retired", "purged"]


async def test_a_purge_tells_of_an_adapter_that_was_restored_meanwhile_as_it_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = await world.store.put(data := adapter_file())
    made = await world.registry.register("public", digest, KNEES)
    await world.registry.retire("public", made.adapter_id, "why")
    other = Registry(world.registry.catalogue, world.store, Views(StaticEmbedder()), world._changed)
    delete = world.store.delete

    async def deleting(digest: str) -> None:
        await delete(digest)
        assert await world.store.put(data) == digest
        await other.restore("public", made.adapter_id)

    monkeypatch.setattr(world.store, "delete", deleting)
    assert (await world.registry.purge("public", made.adapter_id)).state == "active"
    assert world.told[-1] == ("registered", made.adapter_id)
    assert await world.store.absent([digest]) == set()


async def test_a_purge_forgets_the_texts_everywhere(world: World, tmp_path: Path) -> None:
    """In the record and in the log, also those that were replaced; what is made again of the log is as it was but for them."""
    made = await world.registry.register("public", await world.store.put(adapter_file()), KNEES)
    await world.registry.update("public", made.adapter_id, examples=MONEY)
    await world.registry.update("public", made.adapter_id, name="renamed")
    other = await world.registry.register("public", await world.store.put(adapter_file(name="other")), [f"other {one}" for one in KNEES])
    await world.registry.retire("public", made.adapter_id, "why")
    log = RegistrationLog(world.store)

    async def said() -> str:
        return "".join([(await world.store.get_object(name)).decode() for name in await log.names()])

    before = await said()
    assert before.count(MONEY[0]) == 1, "only what brings examples has them"
    for _ in range(2):  # again is fine
        await world.registry.purge("public", made.adapter_id)
        text = await said()
        assert [text.count(one) for one in (KNEES[0], MONEY[0], f"other {KNEES[0]}")] == [1, 0, 1], "the other's stay"
        assert (await world.registry.get("public", made.adapter_id)).examples == ()
    again = SqliteCatalogue(tmp_path / "again", DIMENSION)
    _ = [done async for done in rebuild(log, again, Views(StaticEmbedder()))]
    found, kept = await again.get(made.adapter_id), await again.get(other.adapter_id)
    assert found is not None
    assert kept is not None
    assert (found[0].state, found[0].name, found[0].examples) == ("purged", "renamed", ())
    assert len((await again.example_vectors([made.adapter_id]))[made.adapter_id]) == 5
    assert kept[0].examples == tuple(f"other {one}" for one in KNEES)
    await again.close()
