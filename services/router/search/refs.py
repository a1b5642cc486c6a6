"""What a decision needs of an adapter, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from services.router.catalogue.record_file import Written
from services.router.catalogue.records import AdapterRef, Candidate, Labels

_REF: Final = Struct("<26si32s?")


class Refs:
    """What a decision needs of an adapter, by row, in 63 bytes each: it is made without reading the file."""

    def __init__(self) -> None:
        self._packed = bytearray()

    def put(self, written: Sequence[Written]) -> None:
        """Keep those of some rows."""
        missing = (max(one.row for one in written) + 1) * _REF.size - len(self._packed)
        if missing > 0:
            self._packed += bytes(max(missing, len(self._packed) // 8))
        for one in written:
            named = (one.ref.adapter_id.encode(), one.ref.version, bytes.fromhex(one.ref.digest))
            _REF.pack_into(self._packed, one.row * _REF.size, *named, one.has_examples)

    def candidate(self, row: int, cosine: float, labels: Labels | None = None) -> Candidate:
        """The adapter of a row, found with a cosine."""
        adapter_id, version, digest, has_examples = _REF.unpack_from(self._packed, row * _REF.size)
        return Candidate(AdapterRef(adapter_id.decode(), version, digest.hex()), cosine, labels, has_examples)
