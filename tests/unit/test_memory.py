"""What the cache gets, of which memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from services.executor.memory import cache_blocks, free_bytes
from services.executor.settings import ExecutorSettings
from smoa.errors import InvalidArgument


def _blocks(free: int, **changes: int) -> int:
    return cache_blocks(ExecutorSettings(**changes), block_bytes=100, block_tokens=16, context=200, free=free)  # type: ignore[arg-type]


def test_the_cache_is_what_the_rows_need_or_half_of_what_is_free_or_what_was_asked_for() -> None:
    assert _blocks(10**9, rows=4) == 4 * 13
    assert _blocks(3000, rows=4) == 15
    assert _blocks(10**9, rows=4, cache_bytes=10_000) == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_bytes": 1200}, "1,200 holds 192 tokens, under the context of 200; give at least 1,300, or lower SMOA_EXECUTOR_CONTEXT"),
        ({}, "1,000 of 2,000 free bytes holds 160 tokens, under the context of 200; give at least 1,300, or lower SMOA_EXECUTOR_CONTEXT"),
    ],
)
def test_a_cache_that_does_not_hold_one_context_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        _blocks(2000, **changes)
    assert str(caught.value) == f"SMOA_EXECUTOR_CACHE_BYTES: {message}"


def test_a_container_counts(tmp_path: Path) -> None:
    available = psutil.virtual_memory().available
    assert free_bytes("cpu", tmp_path / "none") > available / 2
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_bytes("cpu", tmp_path) == 400
    (tmp_path / "memory.max").write_text("500\n")
    assert free_bytes("cpu", tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes("cpu", tmp_path) > available / 2
