"""Memory search over a catalogue on a Qdrant server: the copy is as the server is, and routing goes on while that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from qdrant_client import AsyncQdrantClient, models

from services.router.catalogue.catalogue_copy import CatalogueCopy
from services.router.catalogue.changes import now_us
from services.router.catalogue.port import STAMP_ID, Document, Entry, point_id
from services.router.catalogue.record_file import Take
from services.router.catalogue.records import EVERY_STATE, AdapterRecord, Scope
from services.router.library import Library
from smoa.adapter import new_adapter_id
from smoa.errors import SmoaError, Unavailable
from tests.contract.test_library import DIMENSION, PUBLIC, record, vector
from tests.kafka_support import until
from tests.library_support import copied_library, sqlite
from tests.qdrant_support import client_of, drop, fresh_prefix

EVERYTHING = Scope(tenant=None, states=EVERY_STATE)
Open = Callable[[str], Awaitable[Library]]


@pytest.fixture
async def opened(qdrant: tuple[str, int], tmp_path: Path) -> AsyncIterator[tuple[Open, AsyncQdrantClient, str]]:
    """Opens copies of one library, each in a folder of its own and with a client of its own."""
    client, prefix, made = client_of(*qdrant), fresh_prefix(), list[Library]()

    async def library(folder: str) -> Library:
        made.append(await copied_library(client_of(*qdrant), tmp_path / folder, DIMENSION, prefix))
        return made[-1]

    yield library, client, prefix
    for one in made:
        await one.close()
    await drop(client, prefix)
    await client.close()


async def _near(library: Library, adapter_id: str) -> AdapterRecord | None:
    found = await library.near.get(adapter_id)
    return None if found is None else found[0]


def _copy_of(library: Library) -> CatalogueCopy:
    assert library.copy is not None
    return library.copy


async def test_what_one_router_writes_is_in_the_others_copy_soon_and_in_its_own_at_once(
    opened: tuple[Open, AsyncQdrantClient, str],
) -> None:
    one, other = await opened[0]("one"), await opened[0]("other")
    made = record(tags=("a",))
    await one.catalogue.write([Entry(made, vector(1), vector(1)[None])])
    assert [found.ref for found in await one.search.search(vector(1), PUBLIC, 5)] == [made.ref]
    assert made.adapter_id in await one.near.example_vectors([made.adapter_id])

    async def there() -> bool:
        return [found.ref for found in await other.search.search(vector(1), PUBLIC, 5)] == [made.ref]

    await until("the other's copy", 10, there)
    mine, copied = await _near(one, made.adapter_id), await _near(other, made.adapter_id)
    assert mine is not None
    assert copied is not None
    assert replace(mine, last_writes=()) == replace(copied, last_writes=())
    assert made.adapter_id in await other.near.example_vectors([made.adapter_id])
    written = await _near(other, made.adapter_id)
    assert written is not None
    await other.catalogue.write([Entry(replace(written, state="retired"), vector(1))])
    assert await other.search.search(vector(1), PUBLIC, 5) == []
    composition = Document(new_adapter_id(), "public", {"n": 1})
    await one.catalogue.write_document("composition", composition)

    async def retired_and_composed() -> bool:
        composed = await other.near.get_document("composition", composition.document_id)
        return composed is not None and await one.search.search(vector(1), PUBLIC, 5) == []

    await until("both", 10, retired_and_composed)
    composed = await other.catalogue.get_document("composition", composition.document_id)
    assert composed is not None
    await other.catalogue.delete_document("composition", composed)

    async def gone() -> bool:
        return await one.near.get_document("composition", composition.document_id) is None

    await until("the deletion", 10, gone)


async def test_a_change_of_several_is_copied_from_whoever_finished_it(opened: tuple[Open, AsyncQdrantClient, str]) -> None:
    one, other = await opened[0]("one"), await opened[0]("other")
    parents, child = [record(), record()], record()
    await one.catalogue.write([Entry(parent, vector(n)) for n, parent in enumerate(parents)])
    there = [await _near(one, parent.adapter_id) for parent in parents]
    await one.catalogue.write(
        [Entry(child, vector(5)), *(Entry(replace(parent, state="retired"), vector(n)) for n, parent in enumerate(there) if parent)]
    )

    async def merged() -> bool:
        return [found.ref for found in await other.search.search(vector(5), PUBLIC, 5)] == [child.ref]

    await until("the merge", 10, merged)
    copied = [await _near(other, one.adapter_id) for one in (child, *parents)]
    assert [one and one.state for one in copied] == ["active", "retired", "retired"]


async def test_a_router_that_starts_again_reads_what_changed(opened: tuple[Open, AsyncQdrantClient, str], tmp_path: Path) -> None:
    library = await opened[0]("one")
    made = [record(name=f"n{number}") for number in range(700)]
    await library.catalogue.write([Entry(one, vector(n)) for n, one in enumerate(made)], together=False)
    late = await opened[0]("late")
    assert _copy_of(late).copied == 700
    await late.close()
    await asyncio.sleep(0)
    there = await _near(library, made[3].adapter_id)
    assert there is not None
    await library.catalogue.write([Entry(replace(there, name="renamed"), vector(3))])
    again = await opened[0]("late")

    async def renamed() -> bool:
        found = await _near(again, made[3].adapter_id)
        return found is not None and found.name == "renamed"

    await until("what changed meanwhile", 10, renamed)
    assert _copy_of(again).copied == 1
    assert len(await again.search.search(vector(1), PUBLIC, 1000)) == 700


async def test_comparing_mends_what_no_look_would_find(opened: tuple[Open, AsyncQdrantClient, str]) -> None:
    """A writer whose clock is days behind, a snapshot that was restored: one adapter older than here, and one that never was."""
    make, client, prefix = opened
    library = await make("one")
    late, back, lost, same = (record(name=name) for name in ("late", "back", "lost", "same"))
    await library.catalogue.write([Entry(one, vector(n)) for n, one in enumerate((late, back, lost, same))])
    collection = f"{prefix}_adapters"
    await library.catalogue.upsert([(replace(late, revision=7, name="of another clock"), vector(0))])  # by a router that is not this one:
    await sqlite(library).put([Entry(late, vector(0))], Take.ALL)
    await client.set_payload(collection, {"written_at_us": 1}, [point_id(late.adapter_id)], wait=True)
    await client.set_payload(collection, {"revision": 0}, [point_id(back.adapter_id)], wait=True)
    await client.delete(collection, models.PointIdsList(points=[point_id(lost.adapter_id)]), wait=True)
    heard: list[str] = []
    _copy_of(library)._changed = lambda records: heard.extend(one.name for one in records)
    await _copy_of(library).compare()
    assert [(await _near(library, one.adapter_id) or late).name for one in (late, back, same)] == ["of another clock", "back", "same"]
    assert await library.near.get(lost.adapter_id) is None
    assert {found.ref.adapter_id for found in await library.search.search(vector(1), PUBLIC, 9)} == {
        late.adapter_id,
        back.adapter_id,
        same.adapter_id,
    }
    assert [(await _near(library, one.adapter_id) or late).revision for one in (late, back, same)] == [7, 0, 1]
    assert sorted(heard) == ["lost", "of another clock"]


async def _writes(library: Library) -> str:
    """What a write is answered."""
    try:
        await library.catalogue.write([Entry(record(), vector(3))])
    except SmoaError as error:
        return str(error)
    return "written"


async def test_a_copy_outlives_a_server_that_lost_its_library(opened: tuple[Open, AsyncQdrantClient, str]) -> None:
    """It comes back empty; then another router makes a library on it, also of some adapters; then a snapshot is restored."""
    make, client, prefix = opened
    library, old = await make("one"), record(name="old")
    await library.catalogue.write([Entry(old, vector(1))])
    composition = Document(new_adapter_id(), "public", {"n": 1})
    await library.catalogue.write_document("composition", composition)
    stamp = await library.catalogue.get_document("stamp", STAMP_ID)
    assert stamp is not None

    async def routes_by_its_copy(one: Library) -> None:
        assert {found.ref for found in await one.search.search(vector(1), PUBLIC, 9)} == {old.ref}
        assert await one.near.get_document("composition", composition.document_id) is not None

    def says(one: Library, what: str) -> Callable[[], Awaitable[bool]]:
        async def said() -> bool:
            return (await _writes(one)).startswith(f"index: the Qdrant server holds {what}, and this router's copy is of ")

        return said

    await drop(client, prefix)
    await until("the library being missed", 10, says(library, "no library"))
    await routes_by_its_copy(library)
    two = await make("two")
    other = await two.catalogue.get_document("stamp", STAMP_ID)
    assert other is not None
    strange = f"another library ({other.body['library_id']})"
    await until("another library being seen", 10, says(library, strange))
    await two.catalogue.write([Entry(record(name="new"), vector(2))])
    await library.close()
    again = await make("one")  # the same folder, by another process
    await until("another library being seen", 10, says(again, strange))
    await routes_by_its_copy(again)
    await two.catalogue.write_document("stamp", other._replace(body={**stamp.body}))  # as a snapshot of the old library has it

    async def written() -> bool:
        return await _writes(again) == "written"

    await until("writes being taken again", 10, written)

    async def as_the_server_is() -> bool:  # which has not got the adapter of old, and has a new one
        found = {found.ref for found in await again.search.search(vector(1), PUBLIC, 9)}
        there = {one.ref for one in await again.catalogue.scroll(EVERYTHING, "", 9)}
        return found == there and len(found) == 2 and await again.near.get_document("composition", composition.document_id) is None

    await until("the copy being compared", 10, as_the_server_is)


async def test_a_restored_snapshot_is_followed_back(opened: tuple[Open, AsyncQdrantClient, str]) -> None:
    """What goes back on the server goes back here, also what this router then writes itself, and documents."""
    make, client, prefix = opened
    library, made = await make("one"), record(name="of then")
    await library.catalogue.write([Entry(made, vector(1))])
    composition = Document(new_adapter_id(), "public", {"n": 1})
    await library.catalogue.write_document("composition", composition)
    before = await client.retrieve(f"{prefix}_adapters", [point_id(made.adapter_id)], with_vectors=True)
    composed = await client.retrieve(f"{prefix}_compositions", [point_id(composition.document_id)], with_vectors=True)
    for number in range(5):
        there = await library.catalogue.get(made.adapter_id)
        assert there is not None
        await library.catalogue.write([Entry(replace(there[0], name=f"later {number}"), vector(2))])
        document = await library.catalogue.get_document("composition", composition.document_id)
        assert document is not None
        await library.catalogue.write_document("composition", document._replace(body={"n": 2 + number}))
    lost = Document(new_adapter_id(), "public", {"n": 9})
    await library.catalogue.write_document("composition", lost)
    for collection, points in ((f"{prefix}_adapters", before), (f"{prefix}_compositions", composed)):
        back = [models.PointStruct(id=one.id, vector=cast(list[float], one.vector), payload=one.payload) for one in points]
        await client.upsert(collection, back, wait=True)
    await client.delete(f"{prefix}_compositions", models.PointIdsList(points=[point_id(lost.document_id)]), wait=True)
    there = await library.catalogue.get(made.adapter_id)
    assert there is not None
    assert there[0].name == "of then"
    await library.catalogue.write([Entry(replace(there[0], name="of now"), vector(1))])

    async def as_written() -> bool:
        near = await _near(library, made.adapter_id)
        return near is not None and near.name == "of now" and near.revision == 2

    await until("what was written on what was restored", 10, as_written)
    await _copy_of(library).compare()
    document = await library.near.get_document("composition", composition.document_id)
    assert document is not None
    assert (document.body, document.revision) == ({"n": 1}, 1)
    assert await library.near.get_document("composition", lost.document_id) is None


async def test_nothing_that_is_told_or_found_stops_a_copy(opened: tuple[Open, AsyncQdrantClient, str]) -> None:
    """Ids that are none, of nothing, and points that no router has written."""
    make, client, prefix = opened
    library = await make("one")
    _copy_of(library).want(new_adapter_id())
    await client.upsert(
        f"{prefix}_adapters",
        [
            models.PointStruct(
                id=point_id(new_adapter_id()), vector=[0.5] * DIMENSION, payload={"type": "adapter", "written_at_us": now_us()}
            ),
            models.PointStruct(
                id=point_id(broken := new_adapter_id()),
                vector=[0.5] * DIMENSION,
                payload={
                    "type": "adapter",
                    "adapter_id": broken,
                    "revision": 1,
                    "last_writes": [],
                    "record": "{",
                    "written_at_us": now_us(),
                },
            ),
        ],
        wait=True,
    )
    other = await make("other")  # filled with them there
    await other.catalogue.write([Entry(made := record(), vector(1))])

    async def there() -> bool:
        return {found.ref for found in await library.search.search(vector(1), PUBLIC, 9)} == {made.ref}

    await until("what was written beside them", 10, there)
    await _copy_of(library).compare()
    assert await there()


async def test_a_server_whose_stamp_was_restored_first_takes_nothing_from_a_copy(opened: tuple[Open, AsyncQdrantClient, str]) -> None:
    """Snapshots are of one collection each; and a copy that holds nothing becomes one of what is there."""
    make, client, prefix = opened
    library, made = await make("one"), record(name="kept")
    await library.catalogue.write([Entry(made, vector(1))])
    await client.delete(f"{prefix}_adapters", models.FilterSelector(filter=models.Filter()), wait=True)
    for _ in range(3):
        with pytest.raises(Unavailable, match="holds no library"):
            await _copy_of(library).compare()
        assert {found.ref for found in await library.search.search(vector(1), PUBLIC, 9)} == {made.ref}
    await drop(client, prefix)
    empty = await make("empty")
    await drop(client, prefix)
    other = await make("other")
    await other.catalogue.write([Entry(new := record(name="new"), vector(2))])

    async def taken() -> bool:
        return {found.ref for found in await empty.search.search(vector(2), PUBLIC, 9)} == {new.ref}

    await until("the library that is there", 10, taken)
    assert {found.ref for found in await library.search.search(vector(1), PUBLIC, 9)} == {made.ref}
