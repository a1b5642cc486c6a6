"""One suite for every `Catalogue` and every `VectorIndex` over it: SQLite and memory, the client's local mode, a server, and memory over a
copy of a server's.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient

from services.router.catalogue import replacing
from services.router.catalogue.changes import now_us
from services.router.catalogue.port import STAMP_ID, Conflict, Document, Entry, Vector
from services.router.catalogue.records import EVERY_STATE, AdapterRecord, Reach, RecordSummary, Scope, State, labels_of, pool_of
from services.router.catalogue.stamp import stamped
from services.router.library import Library
from services.router.search import clusters
from smoa.adapter import new_adapter_id
from smoa.embedding.port import normalised
from smoa.errors import FailedPrecondition
from tests.library_support import copied_library, qdrant_library, sqlite_library
from tests.qdrant_support import client_of, drop, fresh_prefix

DIMENSION = 16
PUBLIC = Reach(tenant="public", base_model="base-a")
EVERY = Scope(tenant=None, states=EVERY_STATE)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]


def record(**changes: object) -> AdapterRecord:
    """A plausible record."""
    plain: dict[str, object] = {
        "adapter_id": new_adapter_id(),
        "version": 1,
        "digest": "d" * 64,
        "tenant": "public",
        "name": "n",
        "kind": "lora_xs",
        "granularity": "NANO",
        "specialization": "task",
        "base_model": "base-a",
        "rank": 2,
        "modules": ("q_proj",),
        "parameter_count": 8,
        "file_bytes": 100,
        "parents": ("p",),
        "examples": ("one", "two"),
    }
    return AdapterRecord(**{**plain, **changes})  # type: ignore[arg-type]


def vector(seed: int) -> Vector:
    """A random unit vector."""
    return normalised(np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32))


@pytest.fixture(params=["sqlite", "client", "server", "copy"])
async def library(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Library]:
    if request.param == "sqlite":
        made = await sqlite_library(tmp_path / "index", DIMENSION)
    elif request.param == "client":
        made = await qdrant_library(AsyncQdrantClient(":memory:"), DIMENSION)
    else:
        client, prefix = client_of(*request.getfixturevalue("qdrant")), fresh_prefix()
        if request.param == "server":
            made = await qdrant_library(client, DIMENSION, prefix)
        else:
            made = await copied_library(client, tmp_path / "copy", DIMENSION, prefix)
    yield made
    if request.param in ("server", "copy"):
        await drop(client, prefix)
    await made.close()


async def test_what_was_written_is_read_and_replaced(library: Library) -> None:
    one = record(tags=("a", "b"))
    await library.catalogue.upsert([(one, vector(1))])
    found = await library.catalogue.get(one.adapter_id)
    assert found is not None
    assert found[0] == one
    assert np.allclose(found[1], vector(1), atol=1e-3)
    newer = record(adapter_id=one.adapter_id, state="retired", state_reason="why")
    await library.catalogue.upsert([(newer, vector(2))])
    again = await library.catalogue.get(one.adapter_id)
    assert again is not None
    assert again[0] == newer
    assert await library.catalogue.get(new_adapter_id()) is None


async def test_many_are_read_as_one_is(library: Library) -> None:
    there = [record() for _ in range(300)]
    await library.catalogue.upsert([(one, vector(number % 7)) for number, one in enumerate(there)])
    ids = [one.adapter_id for one in there]
    found = await library.catalogue.get_many([*ids, new_adapter_id()])
    assert {name: kept for name, (kept, _) in found.items()} == {one.adapter_id: one for one in there}
    for number in (0, 1, 299):
        one = await library.catalogue.get(ids[number])
        assert one is not None
        assert one[0] == found[ids[number]][0]
        np.testing.assert_array_equal(one[1], found[ids[number]][1])
    assert await library.catalogue.get_many([]) == {}


async def test_all_that_are_on_trial_are_found(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "_CANARIES_AT_ONCE", 2)
    every = [record(state="canary") for _ in range(5)]
    await library.catalogue.upsert([(one, vector(0)) for one in [*every, record()]])
    found = [one.adapter_id async for page in replacing.on_trial(library.catalogue) for one in page]
    assert found == sorted(one.adapter_id for one in every)


async def test_what_is_kept_of_those_that_are_there(library: Library) -> None:
    one, two = record(state="missing", digest="a" * 64), record(tenant="acme")
    await library.catalogue.upsert([(one, vector(1)), (two, vector(2))])
    assert await library.catalogue.summaries([one.adapter_id, new_adapter_id(), two.adapter_id]) == {
        one.adapter_id: RecordSummary("public", "a" * 64, "missing"),
        two.adapter_id: RecordSummary("acme", "d" * 64, "active"),
    }
    assert await library.search.search(vector(1), PUBLIC, 5) == []
    await library.catalogue.upsert([(replace(one, state="active"), vector(1))])
    assert [candidate.ref for candidate in await library.search.search(vector(1), PUBLIC, 5)] == [one.ref]


async def test_a_write_is_taken_if_nobody_has_written_since(library: Library) -> None:
    made = record()
    await library.catalogue.write([Entry(made, vector(1), vector(1)[None])])
    with pytest.raises(Conflict):
        await library.catalogue.write([Entry(replace(made, name="another"), vector(2))])
    first = await _read(library, made.adapter_id)
    assert (first.name, first.revision) == ("n", 1)
    await library.catalogue.write([Entry(replace(first, name="second"), vector(1))])
    with pytest.raises(Conflict):
        await library.catalogue.write([Entry(replace(first, name="late"), vector(1))])
    second = await _read(library, made.adapter_id)
    assert (second.name, second.revision) == ("second", 2)
    assert made.adapter_id in await library.catalogue.example_vectors([made.adapter_id])
    with pytest.raises(Conflict):
        await library.catalogue.write([Entry(record(revision=3), vector(1))])  # of one that is not there


async def test_several_are_written_together_or_not_at_all(library: Library) -> None:
    parents, child = [record(), record()], record()
    await library.catalogue.write([Entry(one, vector(n)) for n, one in enumerate(parents)])
    one, other = [await _read(library, parent.adapter_id) for parent in parents]
    await library.catalogue.write([Entry(replace(other, tags=("changed",)), vector(1))])
    retired = [replace(one, state="retired"), replace(other, state="retired")]
    with pytest.raises(Conflict):
        await library.catalogue.write([Entry(child, vector(3)), *(Entry(parent, vector(4)) for parent in retired)])
    assert await library.catalogue.get(child.adapter_id) is None
    assert [(await _read(library, parent.adapter_id)).state for parent in parents] == ["active", "active"]
    assert len(await library.search.search(vector(3), PUBLIC, 5)) == 2
    again = await _read(library, other.adapter_id)
    await library.catalogue.write(
        [Entry(child, vector(3)), Entry(retired[0], vector(0)), Entry(replace(again, state="retired"), vector(1))]
    )
    assert [candidate.ref for candidate in await library.search.search(vector(3), PUBLIC, 5)] == [child.ref]
    assert (await _read(library, other.adapter_id)).tags == ("changed",)


async def test_each_of_many_is_written_by_itself(library: Library) -> None:
    there, new = record(), [record() for _ in range(5)]
    await library.catalogue.write([Entry(there, vector(0))])
    await library.catalogue.write([Entry(one, vector(n)) for n, one in enumerate(new)], together=False)
    assert len(await library.catalogue.scroll(Scope(tenant="public"), "", 10)) == 6
    changed = [replace(await _read(library, one.adapter_id), name="changed") for one in [there, *new]]
    await library.catalogue.write([Entry(one, vector(n)) for n, one in enumerate(changed)], together=False)
    assert {(one.name, one.revision) for one in await library.catalogue.scroll(Scope(tenant="public"), "", 10)} == {("changed", 2)}
    late = [replace(one, name="late") for one in changed[:2]] + [record()]
    with pytest.raises(Conflict) as caught:
        await library.catalogue.write([Entry(one, vector(n)) for n, one in enumerate(late)], together=False)
    names = {one.adapter_id: one.name for one in await library.catalogue.scroll(Scope(tenant="public"), "", 10)}
    assert names.get(late[2].adapter_id) == (None if late[2].adapter_id in caught.value.lost else "n")
    assert {one.adapter_id for one in changed[:2]} <= caught.value.lost
    assert {names[one.adapter_id] for one in changed[:2]} == {"changed"}


async def _read(library: Library, adapter_id: str) -> AdapterRecord:
    found = await library.catalogue.get(adapter_id)
    assert found is not None
    return found[0]


async def test_search_orders_by_cosine(library: Library) -> None:
    records = [record(name=str(number)) for number in range(20)]
    await library.catalogue.upsert([(one, vector(number)) for number, one in enumerate(records)])
    found = await library.search.search(vector(100), PUBLIC, 5, hinted=[str(number) for number in range(20)])
    exact = sorted(range(20), key=lambda number: -float(vector(number) @ vector(100)))[:5]
    assert [candidate.labels and candidate.labels.name for candidate in found] == [str(number) for number in exact]
    assert [candidate.ref for candidate in found] == [records[number].ref for number in exact]
    assert await library.search.search(vector(100), PUBLIC, 5) == [candidate._replace(labels=None) for candidate in found]
    assert [candidate.cosine for candidate in found] == pytest.approx([float(vector(n) @ vector(100)) for n in exact], abs=5e-3)


async def test_search_and_scroll_see_exactly_what_they_may(library: Library) -> None:
    rng = random.Random(5)
    records = [
        record(
            tenant=rng.choice(("public", "acme", "zoo")),
            shared=rng.random() < 0.2,
            base_model=rng.choice(("base-a", "base-b")),
            state=rng.choice(("active", "active", "retired", "purged", "missing")),
            tags=tuple(rng.sample(("x", "y", "z"), rng.randint(0, 3))),
            name=rng.choice(("m", "n")),
            specialization=rng.choice(("task", "style")),
            digest=rng.choice(("d" * 64, "e" * 64)),
        )
        for _ in range(60)
    ]
    await library.catalogue.upsert([(one, vector(number)) for number, one in enumerate(records)])
    for _ in range(40):
        scope = Scope(
            tenant=rng.choice(("public", "acme", "nobody", None)),
            include_shared=rng.random() < 0.5,
            base_model=rng.choice((None, "base-a", "base-b")),
            states=rng.choice((("active",), ("active", "retired"), ("retired", "purged"), ("active", "missing"))),
            all_tags=rng.choice(((), ("x",), ("x", "y"))),
            name=rng.choice((None, None, "n")),
            digest=rng.choice((None, None, "e" * 64)),
        )
        admitted = sorted(one.adapter_id for one in records if scope.admits(one))
        assert [one.adapter_id for one in await library.catalogue.scroll(scope, "", 100)] == admitted
    for _ in range(40):
        reach = Reach(
            tenant=rng.choice(("public", "acme", "nobody")),
            base_model=rng.choice(("base-a", "base-b", "base-c")),
            any_labels=rng.choice(((), ("z", "style"), ("m",), ("x", "nothing"))),
            own_only=rng.random() < 0.3,
        )
        admitted = sorted(one.adapter_id for one in records if reach.admits(one))
        assert sorted(c.ref.adapter_id for c in await library.search.search(vector(7), reach, 100)) == admitted


async def test_a_listing_of_what_was_written_since(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    records = sorted((record() for _ in range(6)), key=lambda one: one.adapter_id)
    await library.catalogue.write([Entry(one, vector(1)) for one in records], together=False)
    assert len(await library.catalogue.scroll(EVERY, "", 10, written_since_us=1)) == 6
    since_us = later_us = now_us() + 10**6
    for module in ("record_file", "qdrant_points"):  # a second later, and no clock is waited for
        monkeypatch.setattr(f"services.router.catalogue.{module}.now_us", lambda: later_us)
    for one in (records[4], records[1]):
        found = await library.catalogue.get(one.adapter_id)
        assert found is not None
        state: State = "retired" if one is records[1] else "active"
        await library.catalogue.write([Entry(replace(found[0], state=state), found[1])])
    changed = await library.catalogue.scroll(EVERY, "", 10, written_since_us=since_us)
    assert [(one.adapter_id, one.state) for one in changed] == [(records[1].adapter_id, "retired"), (records[4].adapter_id, "active")]
    assert [one.adapter_id for one in await library.catalogue.scroll(EVERY, records[1].adapter_id, 10, since_us)] == [records[4].adapter_id]
    assert len(await library.catalogue.scroll(EVERY, "", 1, since_us)) == 1
    assert await library.catalogue.scroll(Scope(tenant="acme"), "", 10, since_us) == []


async def test_pages_follow_each_other(library: Library) -> None:
    records = [record() for _ in range(25)]
    await library.catalogue.upsert([(one, vector(1)) for one in records])
    seen: list[str] = []
    while page := await library.catalogue.scroll(Scope(tenant="public"), seen[-1] if seen else "", 10):
        seen += [one.adapter_id for one in page]
    assert seen == sorted(one.adapter_id for one in records)


async def test_each_kind_of_documents_has_ids_of_its_own(library: Library) -> None:
    adapter, other = record(), new_adapter_id()
    await library.catalogue.upsert([(adapter, vector(1))])
    made = Document(adapter.adapter_id, "public", {"deep": [1, {"a": "b"}]})
    await library.catalogue.write_document("composition", made)
    await library.catalogue.write_document("composition", Document(other, "acme", {}))
    await library.catalogue.write_document("ranker", Document(adapter.adapter_id, "", {"artefact": "a"}))
    found = await library.catalogue.get_document("composition", adapter.adapter_id)
    assert found is not None
    assert (found.tenant, found.body, found.revision) == ("public", {"deep": [1, {"a": "b"}]}, 1)
    assert await library.catalogue.list_documents("composition", "public", "", 10) == [found]
    everybodys = await library.catalogue.list_documents("composition", None, "", 10)
    assert [one.document_id for one in everybodys] == sorted([adapter.adapter_id, other])
    assert await library.catalogue.get_document("ranker", other) is None
    assert await library.catalogue.get(other) is None
    assert [c.ref.adapter_id for c in await library.search.search(vector(1), PUBLIC, 10)] == [adapter.adapter_id]
    await library.catalogue.delete_document("composition", found)
    await library.catalogue.delete_document("composition", found)
    assert await library.catalogue.get_document("composition", adapter.adapter_id) is None
    assert await library.catalogue.get_document("ranker", adapter.adapter_id) is not None


async def test_documents_are_written_and_deleted_if_nobody_has_written_since(library: Library) -> None:
    made = Document(new_adapter_id(), "public", {"n": 0})
    await library.catalogue.write_document("composition", made)
    with pytest.raises(Conflict):
        await library.catalogue.write_document("composition", made)
    first = await library.catalogue.get_document("composition", made.document_id)
    assert first is not None
    await library.catalogue.write_document("composition", first._replace(body={"n": 1}))
    for late in (library.catalogue.write_document, library.catalogue.delete_document):
        with pytest.raises(Conflict):
            await late("composition", first)
    second = await library.catalogue.get_document("composition", made.document_id)
    assert second is not None
    assert (second.body, second.revision) == ({"n": 1}, 2)


async def test_an_acknowledged_write_survives_kill_9(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, signal, sys\nfrom pathlib import Path\n"
        "from tests.contract.test_library import DIMENSION, record, sqlite_library, vector\n"
        "async def main():\n"
        "    library = await sqlite_library(Path(sys.argv[1]), DIMENSION)\n"
        "    one = record()\n"
        "    await library.catalogue.upsert([(one, vector(1))])\n"
        "    print(one.adapter_id, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "index")], capture_output=True, text=True, check=False, timeout=60, cwd=Path.cwd()
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    library = await sqlite_library(tmp_path / "index", DIMENSION)
    assert await library.catalogue.get(done.stdout.strip()) is not None
    await library.close()


async def test_those_with_examples_are_named_by_pool(library: Library) -> None:
    one, bare, retired, other = record(), record(), record(state="retired"), record(tenant="acme")
    entries = [Entry(each, vector(1), vector(2)[None]) for each in (one, retired, other)]
    await library.catalogue.write([*entries, Entry(bare, vector(1))])
    assert await library.catalogue.described(PUBLIC.pools, 5) == [one.adapter_id]
    both = await library.catalogue.described([*PUBLIC.pools, pool_of(other)], 5)
    assert set(both) == {one.adapter_id, other.adapter_id}
    assert len(await library.catalogue.described([*PUBLIC.pools, pool_of(other)], 1)) == 1


async def test_example_vectors_stay_until_they_are_replaced(library: Library) -> None:
    one, other, vectors = record(), record(), np.stack([vector(1), vector(2)])
    await library.catalogue.upsert([(one, vector(1)), (other, vector(3))], {one.adapter_id: vectors})
    await library.catalogue.upsert([(replace(one, name="renamed"), vector(1))])
    found = await library.catalogue.example_vectors([one.adapter_id, other.adapter_id])
    assert set(found) == {one.adapter_id}
    assert found[one.adapter_id] == pytest.approx(vectors, abs=0.01)
    has = {candidate.ref.adapter_id: candidate.has_examples for candidate in await library.search.search(vector(1), PUBLIC, 5)}
    assert has == {one.adapter_id: True, other.adapter_id: False}
    await library.catalogue.upsert([(one, vector(1))], {one.adapter_id: vectors[:1]})
    assert (await library.catalogue.example_vectors([one.adapter_id]))[one.adapter_id].shape == (1, DIMENSION)


async def test_only_the_nearest_clusters_are_looked_into(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CLUSTERED_FROM", 0)
    axes = np.eye(DIMENSION, dtype=np.float32)
    groups = [[normalised(axes[axis] + 0.2 * axes[15 - n]) for n in range(3)] for axis in range(3)]
    records = [[record() for _ in group] for group in groups]
    for group, members in zip(groups, records, strict=True):
        await library.catalogue.upsert(list(zip(members, group, strict=True)))
    query = normalised(axes[0] + 0.5 * axes[1])

    async def found(clusters: int) -> set[str]:
        return {candidate.ref.adapter_id for candidate in await library.search.search(query, PUBLIC, 9, clusters=clusters)}

    ids = [{one.adapter_id for one in members} for members in records]
    assert await found(1) == ids[0]
    assert await found(2) == ids[0] | ids[1]
    assert await found(0) == ids[0] | ids[1] | ids[2]
    await library.catalogue.upsert([(replace(one, state="retired"), unit) for one, unit in zip(records[0], groups[0], strict=True)])
    assert await found(2) <= ids[1] | ids[2]


async def test_what_a_newer_program_added_to_a_record_stays(library: Library) -> None:
    made = record(unknown={"colour": {"deep": [1]}})
    await library.catalogue.write([Entry(made, vector(1), vector(1)[None])])
    there = await _read(library, made.adapter_id)
    assert there.unknown == made.unknown
    await library.catalogue.write([Entry(replace(there, name="renamed"), vector(1))])
    again = await _read(library, made.adapter_id)
    assert (again.name, again.unknown) == ("renamed", made.unknown)
    (found,) = await library.search.search(vector(1), PUBLIC, 1, hinted=["renamed"])
    assert found.labels == labels_of(again)
    assert (await library.catalogue.records([made.adapter_id, new_adapter_id()])) == {made.adapter_id: replace(again, examples=())}


async def test_documents_are_listed_by_their_states(library: Library) -> None:
    ids = sorted(new_adapter_id() for _ in range(4))
    for one, tenant, state in zip(ids, ("public", "acme", "public", "public"), ("proposed", "proposed", "trial", "done"), strict=True):
        await library.catalogue.write_document("planned_change", Document(one, tenant, {"state": state}))
    listed = library.catalogue.list_documents
    assert [one.document_id for one in await listed("planned_change", None, "", 10, ("proposed", "trial"))] == ids[:3]
    assert [one.document_id for one in await listed("planned_change", None, ids[0], 1, ("proposed", "trial"))] == ids[1:2]
    assert [one.document_id for one in await listed("planned_change", "public", "", 10, ("proposed", "undone"))] == ids[:1]


async def test_a_document_that_is_made_again_goes_on_where_it_was(library: Library) -> None:
    """Else one who read it before it was deleted would take the new one for it."""
    made = Document(new_adapter_id(), "public", {"n": 0})
    await library.catalogue.write_document("composition", made)
    before = await library.catalogue.get_document("composition", made.document_id)
    assert before is not None
    await library.catalogue.delete_document("composition", before)
    assert await library.catalogue.list_documents("composition", "public", "", 10) == []
    await library.catalogue.write_document("composition", made._replace(body={"n": 1}))
    for late in (library.catalogue.write_document, library.catalogue.delete_document):
        with pytest.raises(Conflict):
            await late("composition", before)
    again = await library.catalogue.get_document("composition", made.document_id)
    assert again is not None
    assert (again.body, again.revision) == ({"n": 1}, 3)
    assert await library.near.get_document("composition", made.document_id) is not None


async def test_a_library_says_what_it_was_made_with(library: Library) -> None:
    stamp = await stamped(library.catalogue, "of tests", DIMENSION)
    assert await stamped(library.catalogue, "of tests", DIMENSION) == stamp
    with pytest.raises(
        FailedPrecondition, match=r"^index: its vectors are of 'of tests' with 16 numbers, this router has 'other' with 32;"
    ):
        await stamped(library.catalogue, "other", 32)
    newer = Document(STAMP_ID, "", {**asdict(stamp), "schema": 9, "reads_from": 1, "more": 1})
    there = await library.catalogue.get_document("stamp", STAMP_ID)
    assert there is not None
    await library.catalogue.write_document("stamp", there._replace(body=newer.body))
    assert (await stamped(library.catalogue, "of tests", DIMENSION)).schema == 9, "a newer program that an older one lives with"
    there = await library.catalogue.get_document("stamp", STAMP_ID)
    assert there is not None
    await library.catalogue.write_document("stamp", there._replace(body={**there.body, "reads_from": 2}))
    with pytest.raises(FailedPrecondition, match=r"newer router \(schema 9, for programs from 2 on; this one has 1\); upgrade this router"):
        await stamped(library.catalogue, "of tests", DIMENSION)
