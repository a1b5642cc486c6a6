"""The adapter store over a directory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import TypeVarTuple

import pytest

from smoa.adapter import digest_of
from smoa.errors import InvalidArgument, NotFound
from smoa.store import AdapterStore


async def test_put_get_delete(tmp_path: Path) -> None:
    store = AdapterStore(str(tmp_path))
    digest = await store.put(b"content")
    assert digest == digest_of(b"content") == await store.put(b"content")
    assert await store.get(digest) == b"content"
    await store.delete(digest)
    await store.delete(digest)
    with pytest.raises(NotFound, match=r"^adapter file '[0-9a-f]{64}' was not found; "):
        await store.get(digest)


async def test_altered_object_is_refused(tmp_path: Path) -> None:
    store = AdapterStore(str(tmp_path))
    digest = await store.put(b"content")
    (tmp_path / store.key(digest)).write_bytes(b"other")
    with pytest.raises(InvalidArgument, match=f"^digest: stored content of {digest[:12]} has sha256 "):
        await store.get(digest)


async def test_oversized_object_is_refused(tmp_path: Path) -> None:
    digest = await AdapterStore(str(tmp_path)).put(b"content")
    assert await AdapterStore(str(tmp_path), 7, "X_BYTES").get(digest) == b"content"
    with pytest.raises(InvalidArgument, match=r"^file: 7 bytes is over the 6 byte limit; push a smaller adapter, or raise X_BYTES$"):
        await AdapterStore(str(tmp_path), 6, "X_BYTES").get(digest)


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "../" + "a" * 61])
def test_key_refuses_what_is_no_digest(digest: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^digest: .* is not a sha256 in lower-case hex; "):
        AdapterStore.key(digest)


@pytest.mark.parametrize("location", ["folder", "memory:///"])
async def test_what_is_archived_is_read_there_and_comes_back(tmp_path: Path, location: str) -> None:
    store = AdapterStore(location if "://" in location else str(tmp_path / location))
    digest = await store.put(b"content")
    for _ in range(2):
        await store.archive(digest)
    assert [key async for key in store.list_objects("")] == [store.archive_key(digest)]
    assert await store.get(digest) == b"content"
    assert b"".join([part async for part in store.parts(digest, 3)]) == b"content"
    assert await store.absent([digest]) == set()
    for _ in range(2):
        await store.bring_back(digest)
    assert await store.get_object(store.key(digest)) == b"content"
    await store.archive(digest)
    assert [key async for key in store.list_objects("")] == [store.archive_key(digest)]
    await store.bring_back(digest)
    await store.delete_object(store.key(digest))  # as whoever archives it at the same time does
    assert await store.get(digest) == b"content"
    await store.delete(digest)
    assert [key async for key in store.list_objects("")] == []
    await store.archive(digest)
    await store.bring_back(digest)


async def test_which_files_are_absent(tmp_path: Path) -> None:
    store = AdapterStore(str(tmp_path))
    there = [await store.put(bytes([number])) for number in range(20)]
    assert await store.absent([*there, "a" * 64, "b" * 64]) == {"a" * 64, "b" * 64}
    assert await store.absent([]) == set()
    memory = AdapterStore("memory:///")
    assert await memory.absent([await memory.put(b"content"), "a" * 64]) == {"a" * 64}


async def test_listing_goes_on_past_the_first_page(tmp_path: Path) -> None:
    store = AdapterStore(str(tmp_path))
    for number in range(60):
        await store.put_object(f"registrations/{number:03d}", b"x")
    assert sorted([key async for key in store.list_objects("registrations")]) == [f"registrations/{number:03d}" for number in range(60)]


Parts = TypeVarTuple("Parts")


class Watched(asyncio.SelectorEventLoop):
    """Notes which threads hand it their results."""

    def __init__(self) -> None:
        self.threads: set[threading.Thread] = set()
        super().__init__()

    def call_soon_threadsafe(
        self, callback: Callable[[*Parts], object], *arguments: *Parts, context: Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio`."""
        self.threads.add(threading.current_thread())
        return super().call_soon_threadsafe(callback, *arguments, context=context)


def test_no_thread_works_for_it_that_the_end_of_the_process_would_cut_off(tmp_path: Path) -> None:
    async def use() -> None:
        store = AdapterStore(str(tmp_path))
        digest = await store.put(b"content")
        assert await store.get(digest) == await store.get_object(store.key(digest))
        assert [key async for key in store.list_objects("adapters")] == [store.key(digest)]
        await store.delete(digest)

    loop = Watched()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(use())
    assert loop.threads
    assert not [one for one in loop.threads if one.name.startswith("Dummy")], "Python waits for no such thread: it aborts with it"
