"""The index in this process at sizes where it scans, trains and compacts; its restart, snapshot and owner."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.router.catalogue.port import Vector
from services.router.catalogue.record_file import RecordFile, Written
from services.router.catalogue.records import EVERY_STATE, AdapterRecord, Reach, Scope
from services.router.catalogue.sqlite_catalogue import FILE
from services.router.library import Library
from services.router.search import memory_search, part, scan
from services.router.search.memory_search import MemorySearch
from smoa.errors import FailedPrecondition
from tests.contract.test_library import PUBLIC, record
from tests.library_support import memory, sqlite, sqlite_library

DIMENSION = 64


def _vectors(count: int, seed: int = 0) -> Vector:
    made = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def _records(count: int, **changes: object) -> list[AdapterRecord]:
    return [record(name=f"n{number}", **changes) for number in range(count)]


async def _found(library: Library, vector: Vector, reach: Reach = PUBLIC) -> str:
    candidates = await library.search.search(vector, reach, 1)
    return candidates[0].ref.adapter_id if candidates else ""


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    made = await sqlite_library(tmp_path / "index", DIMENSION)
    yield made
    await made.close()


async def test_every_adapter_is_found_while_the_pool_is_trained(library: Library) -> None:
    records, vectors = _records(6000), _vectors(6000)
    for start in range(0, 6000, 1000):
        await library.catalogue.upsert(list(zip(records[start : start + 1000], vectors[start : start + 1000], strict=True)))
        for number in (start, start + 999, start // 2):
            assert await _found(library, vectors[number]) == records[number].adapter_id
    await memory(library).trained()
    for number in range(0, 6000, 100):
        assert await _found(library, vectors[number]) == records[number].adapter_id


async def test_a_restart_finds_the_same_and_does_not_train_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, vectors = _records(3000), _vectors(3000)
    library = await sqlite_library(tmp_path / "index", DIMENSION)
    await library.catalogue.upsert(list(zip(records, vectors, strict=True)))
    await memory(library).trained()
    before = [[c.ref.adapter_id for c in await library.search.search(vector, PUBLIC, 10)] for vector in _vectors(20, 5)]
    await library.close()
    monkeypatch.setattr(scan.Scan, "train", None)
    library = await sqlite_library(tmp_path / "index", DIMENSION)
    assert [[c.ref.adapter_id for c in await library.search.search(vector, PUBLIC, 10)] for vector in _vectors(20, 5)] == before
    await library.close()


async def test_what_is_retired_or_moved_is_found_no_more_and_marks_are_cleared(library: Library) -> None:
    records, vectors = _records(4000), _vectors(4000)
    await library.catalogue.upsert(list(zip(records, vectors, strict=True)))
    await memory(library).trained()
    retired = [dataclasses.replace(one, state="retired") for one in records[:1500]]
    await library.catalogue.upsert(list(zip(retired, vectors[:1500], strict=True)))
    await memory(library).trained()
    moved = vectors[1500:1600][::-1]
    await library.catalogue.upsert(list(zip(records[1500:1600], moved, strict=True)))
    assert [await _found(library, vector) for vector in moved] == [one.adapter_id for one in records[1500:1600]]
    for number in range(0, 1500, 50):
        assert await _found(library, vectors[number]) != records[number].adapter_id
    assert [await _found(library, vectors[n]) for n in range(1600, 4000, 50)] == [records[n].adapter_id for n in range(1600, 4000, 50)]
    await library.catalogue.upsert([(records[0], vectors[0])])
    assert await _found(library, vectors[0]) == records[0].adapter_id


async def test_statistics_alone_move_no_vector(library: Library) -> None:
    one, vector = record(), _vectors(1)[0]
    for uses in range(50):
        changed = dataclasses.replace(one, statistics=dataclasses.replace(one.statistics, uses=uses))
        await library.catalogue.upsert([(changed, vector)])
    assert memory(library)._pools[PUBLIC.pools[0]].positions == 1
    assert (await library.near.records([one.adapter_id]))[one.adapter_id].statistics.uses == 49


async def test_a_broad_label_is_looked_for_among_the_nearest(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_search, "BROAD_LABEL_ROWS", 100)
    records, vectors = _records(150, tags=("broad",)), _vectors(150)
    await library.catalogue.upsert([*zip(records, vectors, strict=True), (other := record(name="other"), vectors[0])])
    reach = dataclasses.replace(PUBLIC, any_labels=("broad",))
    found = [candidate.ref.adapter_id for candidate in await library.search.search(vectors[0], reach, 5)]
    assert found[0] == records[0].adapter_id
    assert other.adapter_id not in found
    rows = memory(library)._label_rows.get("broad")
    assert rows is not None
    assert len(rows) == 101, "no more are read than show that it is a broad one"


async def test_every_label_finds_its_nearest_whether_few_or_many_have_it(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also labels that share their marks with others, two at once, and labels that were given and taken away later."""
    monkeypatch.setattr(memory_search, "BROAD_LABEL_ROWS", 20)
    rng, vectors = np.random.default_rng(3), _vectors(1500)
    tags = [tuple(f"t{step}-{rng.integers(step)}" for step in (1, 2, 10, 100, 1000)) for _ in vectors]
    records = [record(name=f"n{number}", tags=one) for number, one in enumerate(tags)]
    await library.catalogue.upsert(list(zip(records, vectors, strict=True)))
    for number in range(0, 1500, 7):
        records[number] = dataclasses.replace(records[number], tags=(f"late-{number % 2}",))
    await library.catalogue.upsert([(records[number], vectors[number]) for number in range(0, 1500, 7)])
    query = _vectors(1, 9)[0]
    cosines = vectors @ query
    order, place_of = np.argsort(-cosines), {one.adapter_id: place for place, one in enumerate(records)}
    for labels in (("t1-0",), ("t2-1",), ("t10-3",), ("t100-5",), ("t1000-7",), ("t10-1", "t1000-3"), ("late-0",), ("n12",), ("nobody",)):
        reach = dataclasses.replace(PUBLIC, any_labels=labels)
        wanted = [place for place in order if reach.admits(records[place])][:10]
        found = [place_of[candidate.ref.adapter_id] for candidate in await library.search.search(query, reach, 10)]
        assert all(reach.admits(records[place]) for place in found), labels
        assert cosines[found] == pytest.approx(cosines[wanted], abs=0.005), labels


async def test_what_a_label_was_found_by_is_found_anew_when_anything_of_it_changes(library: Library, few_are_many: None) -> None:
    """Where those with a label are is kept from search to search, and scanned when they are many."""
    records, vectors = [*_records(1500, tags=("kept",)), *_records(1500)], _vectors(3000)
    await library.catalogue.upsert(list(zip(records, vectors, strict=True)))
    await memory(library).trained()
    reach = dataclasses.replace(PUBLIC, any_labels=("kept",))

    async def write(place: int, vector: Vector, **changes: object) -> None:
        records[place] = dataclasses.replace(records[place], **changes)  # type: ignore[arg-type]
        await library.catalogue.upsert([(records[place], vector)])

    for place in range(0, 1500, 50):
        assert await _found(library, vectors[place], reach) == records[place].adapter_id
    scanning = memory(library)._scanning
    assert scanning is not None
    await scanning
    for place in range(0, 1500, 50):
        assert await _found(library, vectors[place], reach) == records[place].adapter_id
    assert not memory(library)._placed.values()[0].part.wants_scan, "or this tests nothing"
    moved, new = _vectors(2, 7)
    await write(3, moved)
    assert await _found(library, moved, reach) == records[3].adapter_id
    assert await _found(library, vectors[3], reach) != records[3].adapter_id
    await write(3, moved, state="retired")
    assert await _found(library, moved, reach) != records[3].adapter_id
    await write(3, moved, state="active")
    assert await _found(library, moved, reach) == records[3].adapter_id
    await write(3, moved, name="renamed", state="retired")
    assert await _found(library, moved, reach) != records[3].adapter_id
    await write(3, moved, name="again", state="active")
    assert await _found(library, moved, reach) == records[3].adapter_id
    await write(2000, new, tags=("kept",))
    assert await _found(library, new, reach) == records[2000].adapter_id
    await write(2000, new, tags=())
    assert await _found(library, new, reach) != records[2000].adapter_id
    for place in range(1000, 1500):  # until the pool is made again without marks
        records[place] = dataclasses.replace(records[place], state="retired")
    await library.catalogue.upsert(list(zip(records[1000:1500], vectors[1000:1500], strict=True)))
    await memory(library).trained()
    for place in range(4, 1500, 50):
        assert (await _found(library, vectors[place], reach) == records[place].adapter_id) == (place < 1000)


async def _labelled(library: Library, labels: int, each: int) -> tuple[Vector, list[Reach]]:
    """Vectors that are written with labels in turn, and what reaches each label."""
    vectors = _vectors(labels * each)
    records = [record(name=f"n{number}", tags=(f"label-{number % labels}",)) for number in range(len(vectors))]
    await library.catalogue.upsert(list(zip(records, vectors, strict=True)))
    await memory(library).trained()
    return vectors, [dataclasses.replace(PUBLIC, any_labels=(f"label-{number}",)) for number in range(labels)]


async def _scanned(search: MemorySearch) -> bool:
    """Waits for the scan of a label that is being made, if one is."""
    making, search._scanning = search._scanning, None
    if making is not None:
        await making
    return making is not None


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "SCORED", 200)
    monkeypatch.setattr(memory_search, "_BROAD", 1)


@pytest.mark.usefixtures("few_are_many")
async def test_labels_in_turn_over_the_room_there_is_are_not_scanned_for_ever(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.router.search.memory_search._RESTS", 1e6)  # no rest ends by itself, however slow the machine is
    vectors, reaches = await _labelled(library, 4, 600)
    search = memory(library)
    search._placed.max_bytes = 60_000  # of a scan of 600: 16 kB of codes, 4 kB of what they mean, 2 kB of positions; without one 3
    made = 0
    for _ in range(10):
        for reach in reaches:
            await _found(library, vectors[0], reach)
            made += await _scanned(search)
    assert 2 <= made <= 4, "those there is room for, and the one that found none"
    search._scans_from_s = 0.0
    made = 0
    for reach in reaches:
        await _found(library, vectors[0], reach)
        made += await _scanned(search)
    assert made == 1, "after a rest, one more"


async def _for_ever() -> None:
    await asyncio.Event().wait()


@pytest.mark.usefixtures("few_are_many")
async def test_no_label_is_scanned_by_what_a_part_of_a_library_taught(library: Library) -> None:
    vectors, reaches = await _labelled(library, 2, 1_100)
    search = memory(library)
    search._loading = asyncio.create_task(_for_ever())
    assert await _found(library, vectors[0], reaches[0])
    assert search._scanning is None, "not while it loads"
    search._loading.cancel()
    await asyncio.wait({search._loading})
    assert await _found(library, vectors[0], reaches[0])
    assert await _scanned(search)
    [pool] = search._pools.values()
    learned = search._codebooks[pool]
    others = _vectors(7_000, 5)
    await library.catalogue.upsert([(record(name=f"other{number}"), vector) for number, vector in enumerate(others)])
    await search.trained()
    assert await _found(library, vectors[1], reaches[1])
    assert await _scanned(search)
    assert search._codebooks[pool] != learned


@pytest.mark.usefixtures("few_are_many")
async def test_labels_together_score_no_more_than_one_may(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_search, "BEARABLE", 1_000)
    vectors, _ = await _labelled(library, 4, 400)
    search, asked = memory(library), list[Sequence[part.Part] | None]()
    monkeypatch.setattr(search, "_scan_if_wanted", lambda name, label, part: None)
    pool = search._pools[PUBLIC.pools[0]]
    nearest = pool.nearest

    def near(query: Vector, limit: int, among: Sequence[part.Part] | None, clusters: int) -> tuple[NDArray[np.int64], Vector]:
        asked.append(among)
        return nearest(query, limit, among, clusters)

    monkeypatch.setattr(pool, "nearest", near)
    for labels, scored in ((("label-0", "label-1"), True), (("label-0", "label-1", "label-2"), False)):
        asked.clear()
        assert await _found(library, vectors[0], dataclasses.replace(PUBLIC, any_labels=labels))
        assert {among is not None for among in asked} == {scored}, labels


async def test_a_scan_that_is_adopted_while_a_router_loads_finds_what_is_loaded_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_search, "_LOADED_ROWS", 500)
    records, vectors = _records(6_000), _vectors(6_000)
    library = await sqlite_library(tmp_path / "index", DIMENSION)
    await library.catalogue.upsert(list(zip(records[:2_500], vectors[:2_500], strict=True)))
    await memory(library).trained()
    await library.catalogue.upsert(list(zip(records[2_500:], vectors[2_500:], strict=True)))
    await library.close()
    library = await sqlite_library(tmp_path / "index", DIMENSION)
    search = MemorySearch(sqlite(library))
    fill, adopted = search._fill_ahead, list[int]()

    async def filling(placed: Sequence[Written]) -> None:
        """Another scan is adopted when what comes next is in the old one, and in no pool."""
        await fill(placed)
        pool = search._pools[PUBLIC.pools[0]]
        if pool.positions == 3_000:
            other = scan.Scan.train(pool.sample(3_000), 3_000)
            await search._adopt(pool, other)
            adopted.append(other.filled)

    monkeypatch.setattr(search, "_fill_ahead", filling)
    await search.load()
    assert adopted == [3_000]
    for place in range(0, 6_000, 25):
        assert (await search.search(vectors[place], PUBLIC, 1))[0].ref.adapter_id == records[place].adapter_id
    await search.close()
    await library.close()


async def test_a_search_by_label_in_the_middle_of_a_write_hides_nothing_afterwards(library: Library) -> None:
    records, vectors = _records(400, tags=("kept",)), _vectors(400)
    reach = dataclasses.replace(PUBLIC, any_labels=("kept",))
    await library.catalogue.upsert(list(zip(records[:10], vectors[:10], strict=True)))
    writing = asyncio.create_task(library.catalogue.upsert(list(zip(records[10:], vectors[10:], strict=True))))
    seen = set()
    while not writing.done():
        seen.add(len(await library.search.search(vectors[0], reach, 400)))
        await asyncio.sleep(0)
    await writing
    assert min(seen) < 400, "or none was made meanwhile"
    assert len(await library.search.search(vectors[0], reach, 400)) == 400


async def test_what_is_written_while_it_loads_is_found_as_it_was_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded is read ahead: what was read before a write must not take its place."""
    monkeypatch.setattr(memory_search, "_LOADED_ROWS", 40)
    records, vectors, moved = _records(4_000), _vectors(4_000), _vectors(4_000, 7)
    library = await sqlite_library(tmp_path / "index", DIMENSION)
    await library.catalogue.upsert(list(zip(records, vectors, strict=True)))
    await memory(library).trained()
    await library.close()
    library = await sqlite_library(tmp_path / "index", DIMENSION)
    catalogue = sqlite(library)
    place_of = {one.adapter_id: place for place, one in enumerate(records)}
    search, writes, retired = MemorySearch(catalogue), list[asyncio.Task[None]](), set[int]()
    ahead: asyncio.Queue[list[Written]] = asyncio.Queue()
    read, put = search._placed_after, search._fill_and_place

    async def reading(row: int) -> list[Written]:
        batch = await read(row)
        ahead.put_nowait(batch)
        return batch

    async def putting(placed: Sequence[Written]) -> None:
        """Until what comes next is read, and somebody waits to write to it."""
        await put(placed)
        while (following := await ahead.get()) and following[0].row <= placed[-1].row:
            pass
        for one in following[:1]:
            place = place_of[one.ref.adapter_id]
            if len(writes) % 2:
                retired.add(place)
                records[place] = dataclasses.replace(records[place], state="retired")
            vectors[place] = moved[place]
            writes.append(asyncio.create_task(catalogue.upsert([(records[place], vectors[place])])))
        for _ in range(10):
            await asyncio.sleep(0)

    monkeypatch.setattr(search, "_placed_after", reading)
    monkeypatch.setattr(search, "_fill_and_place", putting)
    await search.load()
    await asyncio.gather(*writes)
    assert len(retired) == 49, "every second of those that were read ahead"
    assert len(search._pools[PUBLIC.pools[0]]) == 4_000 - len(retired)
    for place in range(0, 4_000, 8):
        found = (await search.search(vectors[place], PUBLIC, 1))[0].ref.adapter_id
        assert (found == records[place].adapter_id) == (place not in retired)
    await search.close()
    await library.close()


async def test_a_snapshot_is_the_index_of_one_moment(library: Library, tmp_path: Path) -> None:
    one, later, vectors = record(), record(), _vectors(2)
    await library.catalogue.upsert([(one, vectors[0])])
    (tmp_path / "copy").mkdir()
    await sqlite(library).snapshot(tmp_path / "copy" / FILE)
    await library.catalogue.upsert([(later, vectors[1])])
    copy = await sqlite_library(tmp_path / "copy", DIMENSION)
    assert [found.adapter_id for found in await copy.catalogue.scroll(Scope(tenant="public"), "", 10)] == [one.adapter_id]
    assert await _found(copy, vectors[0]) == one.adapter_id
    await copy.close()


async def test_one_process_owns_the_folder(library: Library, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await sqlite_library(tmp_path / "index", DIMENSION)
    assert str(caught.value) == (f"index: another process uses {tmp_path / 'index'}; stop it, or share a Qdrant server (SMOA_QDRANT_URL)")


async def test_labels_of_retired_adapters_are_no_trouble_after_a_restart(tmp_path: Path) -> None:
    records = [record(tags=("x",)) for _ in range(100)]
    vectors = np.random.default_rng(0).standard_normal((100, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    library = await sqlite_library(tmp_path / "index", DIMENSION)
    await library.catalogue.upsert(list(zip(records, vectors, strict=True)))
    await library.catalogue.upsert([(dataclasses.replace(one, state="retired"), vectors[90]) for one in records[80:]])
    await library.close()
    library = await sqlite_library(tmp_path / "index", DIMENSION)
    found = await library.search.search(vectors[3], dataclasses.replace(PUBLIC, any_labels=("x",)), 200)
    await library.close()
    assert {one.ref.adapter_id for one in found} == {one.adapter_id for one in records[:80]}


def test_a_name_is_found_without_reading_every_record(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "index.sqlite")
    asked: list[str] = []
    file._database.set_trace_callback(asked.append)
    file.scroll(Scope(tenant="public", states=EVERY_STATE, name="tickets"), "", 10)
    file._database.set_trace_callback(None)
    plans = [str(file._database.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()) for query in asked if "tenant = " in query]
    assert len(plans) == 1
    assert "adapters_name (tenant=? AND name=?" in plans[0]
    file.close()
