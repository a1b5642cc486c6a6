"""Tensors of safetensors files: the library's own reader decides what is one."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from smoa.errors import InvalidArgument
from smoa.tensor_file import BFLOAT16, all_finite, read_tensors, write_tensors

DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=5), st.integers(0, 99))
def test_what_is_written_is_read_back_and_not_copied(kinds: list[tuple[np.dtype[Any], list[int]]], seed: int) -> None:
    numbers = np.random.default_rng(seed)
    tensors = {f"t{place}": np.asarray(numbers.standard_normal(shape)).astype(dtype) for place, (dtype, shape) in enumerate(kinds)}
    data = write_tensors(tensors, {"a": "b"})
    assert write_tensors(dict(reversed(tensors.items())), {"a": "b"}) == data
    found, metadata = read_tensors(data)
    assert (set(found), metadata) == (set(tensors), {"a": "b"})
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
        assert not found[name].size or start < found[name].__array_interface__["data"][0] < start + len(data)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_an_altered_header_is_read_as_the_library_reads_it(data: st.DataObject) -> None:
    file = bytearray(save({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 3))):
        file[data.draw(st.integers(0, len(file) - 33))] = data.draw(st.sampled_from(list(b'0123456789[]{}":,aF\xff\x00')))
    try:
        wanted = {name: entry["data"] for name, entry in deserialize(bytes(file))}  # type: ignore[no-untyped-call]
    except SafetensorError:
        wanted = None
    try:
        found = {name: tensor.tobytes() for name, tensor in read_tensors(bytes(file))[0].items()}
    except InvalidArgument:  # another dtype
        return
    except ValueError:
        found = None
    if found is not None and wanted is not None:
        assert found == {name: bytes(body) for name, body in wanted.items()}
    else:
        assert found is None, "what the library refuses is not read"


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"__metadata__": {"a": 1}},
        {"__metadata__": []},
    ],
)
def test_a_header_that_says_what_is_not_so_is_refused(header: object) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(ValueError, match=r"header|left over|unpack|missing|hold"):
        read_tensors(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(ValueError, match="header"):
        read_tensors(struct.pack("<Q", 200_000) + b"[" * 200_000)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_but_nan_and_the_infinities_is_finite(dtype: np.dtype[Any]) -> None:
    if dtype.itemsize == 2:
        every = np.arange(2**16, dtype=np.uint16).view(dtype)
        with np.errstate(invalid="ignore"):
            wanted = np.isfinite(every[::7])
        np.testing.assert_array_equal([all_finite(every[place : place + 1]) for place in range(0, 2**16, 7)], wanted)
    assert all_finite(np.zeros((2, 3), dtype).T)
    assert all_finite(np.zeros(0, dtype))
    for wrong in (np.nan, np.inf, -np.inf):
        assert not all_finite(np.array([0, wrong, 1], dtype))
