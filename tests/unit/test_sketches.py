"""Sketches are made once for a file, whoever starts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from services.optimizer.control import sketches
from services.optimizer.control.sketches import Sketches
from services.optimizer.policy.merging import SKETCH_VERSION
from smoa.adapter import Adapter, Manifest, decode, encode, new_adapter_id
from smoa.errors import NotFound, ResourceExhausted, Unavailable
from smoa.store import AdapterStore
from smoa.v1.state_pb2 import KeptSketch


class Filed(NamedTuple):
    """An adapter and its file's digest."""

    adapter_id: str
    digest: str


class Worker:
    """Sketches as a worker that has just started has them, and which files it read."""

    def __init__(self, store: AdapterStore) -> None:
        self.store = store
        self.read: list[str] = []
        self.refused: list[str] = []
        self.sketches = Sketches(store, self._read)

    async def _read(self, one: object, refuse: object) -> Adapter | None:
        assert isinstance(one, Filed)
        self.read.append(one.digest)
        try:
            return decode(await self.store.get(one.digest))
        except NotFound as error:
            self.refused.append(str(error))
            return None

    async def find(self, *adapters: Filed) -> list[np.ndarray]:
        """Those that were found."""
        await self.sketches.find(adapters, self.refused.append)
        return [self.sketches[one.digest].sketch for one in adapters if one.digest in self.sketches]


async def _filed(store: AdapterStore, seed: int) -> Filed:
    manifest = Manifest(
        adapter_id=new_adapter_id(), name="a", kind="lora_xs", base_model="b", rank=4, modules=("q_proj",), layers=(0, 1), tenant="t"
    )
    cores = np.random.default_rng(seed).standard_normal((2, 4, 4)).astype(np.float32)
    adapter = Adapter(manifest, {"q_proj": cores, "q_proj.s": np.ones((2, 4), np.float32)})
    return Filed(manifest.adapter_id, await store.put(encode(adapter)))


async def test_a_worker_that_starts_reads_no_file_whose_sketch_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches, "AT_ONCE", 3)  # a few rounds
    store = AdapterStore(str(tmp_path))
    adapters = [await _filed(store, seed) for seed in range(7)]
    first, second = Worker(store), Worker(store)
    made = await first.find(*adapters, adapters[0])
    assert sorted(first.read) == sorted(one.digest for one in adapters)
    assert await first.find(*adapters, adapters[0]) == made, "those that are known stay"
    kept = await second.find(*adapters, adapters[0])
    assert second.read == []
    np.testing.assert_array_equal(kept, made)
    assert [second.sketches[one.digest].layers for one in adapters] == [(0, 1)] * 7
    assert {len(one) for one in made} == {256}


@pytest.mark.parametrize("what", ["another version", "too short", "no message"])
async def test_what_does_not_compare_is_made_again(tmp_path: Path, what: str) -> None:
    store = AdapterStore(str(tmp_path))
    one = await _filed(store, 0)
    made = await Worker(store).find(one)
    key = store.sketch_key(one.digest)
    kept = KeptSketch.FromString(await store.get_object(key))
    other = {
        "another version": KeptSketch(version=SKETCH_VERSION + 1, layers=kept.layers, values=kept.values).SerializeToString(),
        "too short": KeptSketch(version=SKETCH_VERSION, layers=kept.layers, values=kept.values[:-1]).SerializeToString(),
        "no message": b"\xff" * 40,
    }[what]
    await store.put_object(key, other)
    worker = Worker(store)
    np.testing.assert_array_equal(await worker.find(one), made)
    assert worker.read == [one.digest]
    assert KeptSketch.FromString(await store.get_object(key)) == kept


async def test_a_file_that_goes_takes_its_sketch_along(tmp_path: Path) -> None:
    store = AdapterStore(str(tmp_path))
    one, other = await _filed(store, 0), await _filed(store, 1)
    assert len(await Worker(store).find(one, other)) == 2
    await store.delete(one.digest)
    assert [key async for key in store.list_objects("sketches")] == [store.sketch_key(other.digest)]
    worker = Worker(store)
    assert len(await worker.find(one, other)) == 1
    assert [one.digest in worker.sketches, other.digest in worker.sketches] == [False, True]
    assert len(worker.refused) == 1


async def test_a_store_that_is_full_costs_the_work_again_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = AdapterStore(str(tmp_path))
    one = await _filed(store, 0)

    async def full(key: str, data: object) -> None:
        raise ResourceExhausted("store: is full", "free space")

    worker = Worker(store)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(store, "put_object", full)
        assert len(await worker.find(one)) == 1
    assert "is not kept" in caplog.text
    again = Worker(store)
    assert len(await again.find(one)) == 1
    assert again.read == [one.digest]


async def test_a_store_that_cannot_be_read_is_told_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass goes on with the others: the store may be away, or its rights be for files alone."""
    store = AdapterStore(str(tmp_path))
    one = await _filed(store, 0)

    async def away(key: str) -> bytes:
        raise Unavailable("store: cannot be read")

    monkeypatch.setattr(store, "get_object", away)
    worker = Worker(store)
    assert len(await worker.find(one)) == 1
    assert worker.read == [one.digest]


async def test_a_file_goes_also_where_its_sketch_may_not_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = AdapterStore(str(tmp_path))
    one = await _filed(store, 0)
    delete = store.delete_object

    async def refused(key: str) -> None:
        if key.startswith("sketches/"):
            raise Unavailable("store: may not")
        await delete(key)

    monkeypatch.setattr(store, "delete_object", refused)
    with caplog.at_level(logging.WARNING):
        await store.delete(one.digest)
    assert await store.absent([one.digest]) == {one.digest}
    assert "stays" in caplog.text


async def test_of_those_that_nobody_asks_for_as_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches, "LEAST_KEPT", 1)
    store = AdapterStore(str(tmp_path))
    adapters = [await _filed(store, seed) for seed in range(6)]
    worker = Worker(store)
    await worker.find(*adapters)
    worker.sketches.forget({adapters[0].digest})
    assert [one.digest in worker.sketches for one in adapters] == [True, False, False, False, True, True]
