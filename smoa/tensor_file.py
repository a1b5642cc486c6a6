"""Safetensors files in numpy: tensors as views of the file's bytes, bfloat16 included (numpy has it by `ml_dtypes`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from mmap import mmap
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from smoa.errors import InvalidArgument
from smoa.strict_json import parse_json

Array = NDArray[np.floating]
"""Of a numpy float, or of BFLOAT16, which numpy does not count among them and which computes as they do."""
BFLOAT16: Final[np.dtype[Any]] = np.dtype(ml_dtypes.bfloat16)
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
DTYPES: Final = frozenset(_DTYPES.values())
MAX_HEADER_BYTES: Final = 2**20
"""Of an adapter, which needs about 120 for each of its tensors."""
_BFLOAT16_INFINITY: Final = 0x7F80


class _Entry(NamedTuple):
    """Where the header says that a tensor is; offsets in bytes from the header's end."""

    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


def _offsets(entry: Mapping[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    return begin, end


def read_metadata(beginning: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, of which its first `MAX_HEADER_BYTES` are enough.

    Raises:
        ValueError: it is none.
    """
    found = _header_of(beginning)[0].get("__metadata__", {})
    if not isinstance(found, dict):
        raise ValueError("its metadata is no object")
    return found


def _header_of(data: bytes | mmap) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    body = 8 + int.from_bytes(data[:8], "little")
    if not 8 < body <= len(data):
        raise ValueError(f"{len(data):,} bytes do not hold its header")
    if body > MAX_HEADER_BYTES:  # what is parsed takes some twenty times as much
        raise ValueError(f"its header has {body:,} bytes, over {MAX_HEADER_BYTES:,}")
    try:
        header = parse_json(data[8:body])
    except ValueError as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, body


def read_tensors(data: bytes | mmap) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors of a safetensors file, as read-only views of `data`, and its metadata.

    Raises:
        ValueError: it is not a whole safetensors file.
        InvalidArgument: a tensor is not of floats of 16 bits or more.
    """
    header, body = _header_of(data)
    try:
        metadata = header.pop("__metadata__", {})
        entries = [_Entry(*_offsets(entry), name, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()]
        sound = all(type(value) is str for value in metadata.values()) and all(
            type(one.dtype) is str and all(type(number) is int and number >= 0 for number in (one.begin, one.end, *one.shape))
            for one in entries
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header lacks something: {error!r}") from error
    if not sound:
        raise ValueError("its header holds a value of a wrong type")
    tensors: dict[str, Array] = {}
    end = 0
    for one in sorted(entries):
        dtype = _DTYPES.get(one.dtype)
        if dtype is None:
            raise InvalidArgument(
                "file", f"dtype {one.dtype} of {one.name} is not supported", "save weights as float16, bfloat16 or float32"
            )
        count = math.prod(one.shape)
        if one.begin != end or one.end - one.begin != count * dtype.itemsize or body + one.end > len(data):
            raise ValueError(f"{one.name} is not where its header says")
        tensors[one.name] = np.frombuffer(data, dtype, count, body + one.begin).reshape(one.shape)
        end = one.end
    if body + end != len(data):
        raise ValueError(f"{len(data) - body - end:,} bytes are left over")
    return tensors, metadata


def write_tensors(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file; the same for the same tensors, in whatever order they come."""
    return bytes(save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, dict(metadata)))


def all_finite(tensor: Array) -> bool:
    """True where no number is NaN or infinite."""
    if tensor.dtype == BFLOAT16:  # by its bits, which is ten times as fast as by its numbers
        return bool((tensor.view(np.uint16) & 0x7FFF).max(initial=0) < _BFLOAT16_INFINITY)
    return bool(np.isfinite(tensor).all())
