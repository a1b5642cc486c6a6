"""The adapter store over a directory."""

from __future__ import annotations

from pathlib import Path

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
    with pytest.raises(InvalidArgument, match=r"^file: 7 bytes is over the 6 byte limit; "):
        await AdapterStore(str(tmp_path), max_bytes=6).get(digest)


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "../" + "a" * 61])
def test_key_refuses_what_is_no_digest(digest: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^digest: .* is not a sha256 in lower-case hex; "):
        AdapterStore.key(digest)
