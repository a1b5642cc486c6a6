"""Kafka's record batches (magic 2): bytes that a broker passes on, of which it reads the header and, to compact them, the records.

Layout: https://kafka.apache.org/documentation/#recordbatch. The checksum covers what comes after it, so that a broker may write the
offset of the first record, which stands before it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Final, NamedTuple

from aiokafka.errors import KafkaError, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES: Final = _HEADER.size
_OFFSET: Final = struct.Struct(">q")
_CHECKSUM_AT: Final = 17
_CHECKED_FROM: Final = 21
_LAST_OFFSET_AT: Final = 23
_BEFORE_LENGTH: Final = 12
"""Bytes that `length` does not count."""
NO_PRODUCER: Final = -1


class UnreadableBatchError(Exception):
    """Bytes that are not record batches of magic 2, or whose checksum is wrong."""


class Header(NamedTuple):
    """The fixed part of a record batch."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    checksum: int
    attributes: int
    last_offset_delta: int
    first_timestamp_ms: int
    last_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int


def header_of(batch: bytes) -> Header:
    """The header of a stored batch."""
    return Header._make(_HEADER.unpack_from(batch))


def split(record_set: bytes) -> list[tuple[Header, bytes]]:
    """The batches that a producer sent, each checked.

    Raises:
        UnreadableBatchError: not whole batches of magic 2 with records and a right checksum.
    """
    found = []
    place = 0
    while place < len(record_set):
        if len(record_set) - place < _HEADER.size:
            raise UnreadableBatchError("ends in the middle of a batch's header")
        header = Header._make(_HEADER.unpack_from(record_set, place))
        end = place + _BEFORE_LENGTH + header.length
        # Every client numbers a batch's records from 0 on: another last one would give an offset twice.
        counted = header.records >= 1 and header.last_offset_delta == header.records - 1
        if header.magic != 2 or not counted or not place + _HEADER.size <= end <= len(record_set):
            raise UnreadableBatchError("is not a whole record batch of magic 2")
        batch = record_set[place:end]
        if not DefaultRecordBatch(batch).validate_crc():
            raise UnreadableBatchError("has a wrong checksum")
        found.append((header, batch))
        place = end
    return found


def placed(batch: bytes, base_offset: int) -> bytes:
    """The batch with its first record at this offset."""
    return _OFFSET.pack(base_offset) + batch[_OFFSET.size :]


class Record(NamedTuple):
    """What compaction looks at."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def records_of(batch: bytes) -> list[Record] | None:
    """The records of a batch, all of them; None if they cannot be read here, for one because of how they are compressed."""
    try:
        return [Record(one.offset, one.timestamp, one.key, one.value, one.headers) for one in DefaultRecordBatch(batch)]
    except (UnsupportedCodecError, KafkaError, ValueError, EOFError, OSError, zlib.error):
        return None


def compacted(batch: bytes, newest: Mapping[bytes, int], tombstones_until_ms: int) -> bytes | None:
    """The batch without the records that later ones replace, and without tombstones of before that time; None if nothing is left.

    `newest` says the last offset of each key. Records keep their offsets. A batch whose records cannot be read stays as it is.
    """
    records = records_of(batch)
    if records is None:
        return batch
    kept = [
        one
        for one in records
        if one.key is None or (newest.get(one.key) == one.offset and (one.value is not None or one.timestamp_ms >= tombstones_until_ms))
    ]
    if len(kept) == len(records):
        return batch
    if not kept:
        return None
    header = header_of(batch)
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=NO_PRODUCER, producer_epoch=-1, base_sequence=-1, batch_size=2**30
    )
    for one in kept:
        builder.append(one.offset - header.base_offset, one.timestamp_ms, one.key, one.value, one.headers)
    rebuilt = bytearray(builder.build())
    # It still ends where it ended: a reader that stands behind its last record goes on after it, and not at it for ever.
    struct.pack_into(">i", rebuilt, _LAST_OFFSET_AT, header.last_offset_delta)
    struct.pack_into(">I", rebuilt, _CHECKSUM_AT, calc_crc32c(rebuilt[_CHECKED_FROM:]))
    return placed(bytes(rebuilt), header.base_offset)
