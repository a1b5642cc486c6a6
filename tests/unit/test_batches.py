"""Record batches: splitting, placing and compacting them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st

from services.broker.batches import UnreadableBatchError, compacted, header_of, placed, records_of, split


def batch_of(records: Sequence[tuple[bytes | None, bytes | None]], at_ms: int = 1000) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=7, producer_epoch=0, base_sequence=3, batch_size=2**30
    )
    for place, (key, value) in enumerate(records):
        builder.append(place, at_ms, key, value, [])
    return bytes(builder.build())


PAIRS = st.lists(st.tuples(st.binary(max_size=2), st.none() | st.binary(max_size=9)), min_size=1, max_size=8)


@given(st.lists(PAIRS, min_size=1, max_size=4), st.integers(0, 2**40))
def test_a_placed_batch_has_its_records_at_their_offsets(several: list[list[tuple[bytes, bytes | None]]], base: int) -> None:
    found = split(b"".join(map(batch_of, several)))
    assert [header.records for header, _ in found] == list(map(len, several))
    for (_, batch), pairs in zip(found, several, strict=True):
        moved = placed(batch, base)
        assert [(one.offset, one.key, one.value) for one in records_of(moved) or ()] == [(base + i, *pair) for i, pair in enumerate(pairs)]
        assert split(moved)


@given(PAIRS, st.integers(1, 200))
def test_bytes_that_are_cut_or_changed_are_refused(pairs: list[tuple[bytes, bytes | None]], cut: int) -> None:
    batch = batch_of(pairs)
    with pytest.raises(UnreadableBatchError):
        split(batch[: len(batch) - min(cut, len(batch) - 1)])
    with pytest.raises(UnreadableBatchError):
        split(batch[:-1] + bytes([batch[-1] ^ 1]))


@given(PAIRS, PAIRS, st.integers(0, 2**40), st.booleans())
def test_compaction_keeps_the_newest_at_its_offset(
    first: list[tuple[bytes, bytes | None]], later: list[tuple[bytes, bytes | None]], base: int, old: bool
) -> None:
    batches = [placed(batch_of(first), base), placed(batch_of(later), base + len(first))]
    everything = [one for batch in batches for one in records_of(batch) or ()]
    newest = {one.key: one.offset for one in everything if one.key is not None}
    wanted = [one for one in everything if newest[one.key or b""] == one.offset and (one.value is not None or not old)]
    left = [compacted(batch, newest, 2000 if old else 500) for batch in batches]
    assert [one for batch in left if batch for one in records_of(batch) or ()] == wanted
    for before, after in zip(batches, left, strict=True):
        if after is not None:
            assert (header_of(after).base_offset, header_of(after).last_offset_delta) == (
                header_of(before).base_offset,
                header_of(before).last_offset_delta,
            )
            assert DefaultRecordBatch(after).validate_crc()


def test_a_batch_whose_last_record_is_elsewhere_is_refused() -> None:
    """It would give an offset twice."""
    batch = bytearray(batch_of([(b"a", b"1"), (b"b", b"2")]))
    batch[23:27] = (-2).to_bytes(4, "big", signed=True)
    batch[17:21] = calc_crc32c(bytes(batch[21:])).to_bytes(4, "big")
    with pytest.raises(UnreadableBatchError, match="not a whole record batch"):
        split(bytes(batch))


def test_a_batch_that_cannot_be_read_is_kept_whole() -> None:
    batch = bytearray(batch_of([(b"a", b"1"), (b"b", b"2")]))
    batch[-3] = 0x7F  # a length that is not there
    assert records_of(bytes(batch)) is None
    assert compacted(bytes(batch), {}, 0) == bytes(batch)
