"""Files that strangers put into the store: each is refused by its field, in little time and memory."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import pytest

from services.router.learning.ranker import Ranker
from smoa.adapter import decode
from smoa.errors import InvalidArgument
from tests.integration.router_support import adapter_file


def file_of(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _with_manifest(manifest: str) -> bytes:
    return file_of(json.dumps({"__metadata__": {"smoa": manifest}}).encode())


def _changed(**changes: Any) -> bytes:
    """A good file, but for fields of its manifest."""
    data = adapter_file()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    manifest = {**json.loads(header["__metadata__"]["smoa"]), **changes}
    header["__metadata__"]["smoa"] = json.dumps(manifest)
    return file_of(json.dumps(header).encode(), data[8 + length :])


FILES: dict[str, bytes] = {
    "empty": b"",
    "a few bytes": b"\x01\x02",
    "no header": struct.pack("<Q", 0),
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "the longest number": b"\xff" * 8 + b"{}",
    "no JSON": file_of(b"\xff\xff"),
    "a list": file_of(b"[]"),
    "nested without end": file_of(b"[" * 200_000),
    "nested objects": file_of(b'{"a":' * 100_000),
    "no manifest": file_of(b"{}"),
    "a manifest nested without end": _with_manifest("[" * 200_000),
    "a manifest of NaN": _with_manifest("NaN"),
    "a manifest that is a list": _with_manifest("[]"),
    "a manifest that is a number": _with_manifest("3"),
    "metadata that is a number": file_of(b'{"__metadata__": 3}'),
    "metadata of lists": file_of(b'{"__metadata__": {"smoa": []}}'),
    "an unknown field": _changed(root=True),
    "an id that is a key of another kind": _changed(adapter_id="examples/01J9ZC3B5T8QH7M2K4N6P0R1SV/acme"),
    "an id of two lines": _changed(adapter_id="01J9ZC3B5T8QH7M2K4N6P0R1SV\n"),
    "an id of no ULID": _changed(adapter_id="ranker"),
    "a name with an escape": _changed(name="\x1b]0;owned\x07"),
    "a name with a colour": _changed(name="\x1b[31mred"),
    "a name of two lines": _changed(name="a\nb"),
    "a tag with a null": _changed(tags=["a\x00b"]),
    "a name of right to left": _changed(name="\u202egnp.exe"),
    "a long name": _changed(name="x" * 100_000),
    "many tags": _changed(tags=["x"] * 10_000),
    "a tenant with a slash": _changed(tenant="acme/base"),
    "a tenant that is everybody": _changed(tenant="*"),
    "a huge rank": _changed(rank=2**62),
    "a rank that is true": _changed(rank=True),
    "a scaling of infinity": _changed(scaling=1e999),
    "a version of none": _changed(version=0),
    "layers without end": _changed(layers=[10**30]),
    "other weights": adapter_file()[:-4] + b"\x00\x00\x00\x01",
    "a part": adapter_file()[:-1],
    "more than it says": adapter_file() + b"\x00",
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES.keys())
def test_a_file_of_anything_is_refused_by_its_field(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(data)
    assert caught.value.field.split(".")[0] in ("file", "manifest")
    assert len(str(caught.value)) < 1_500


def test_a_header_of_hundreds_of_thousands_of_tensors_takes_no_memory() -> None:
    empty = '"dtype":"F32","shape":[0],"data_offsets":[0,0]'
    data = file_of(("{" + ",".join(f'"{number}":{{{empty}}}' for number in range(900_000)) + "}").encode())
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match=r"file: is not a whole safetensors file \(its header has [\d,]+ bytes, over 1,048,576\)"):
        decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 200_000,
        b"[]",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "features": 3}',
        json.dumps({**json.loads(Ranker("v", 0.0, (1.0,) * 8, (0.0,) * 8, (1.0,) * 8).to_bytes()), "bias": 10**400}).encode(),
        Ranker("v", float("nan"), (1.0,) * 8, (0.0,) * 8, (1.0,) * 8).to_bytes(),
        Ranker("v", 0.0, (1.0,) * 8, (0.0,) * 8, (0.0,) * 8).to_bytes(),
        Ranker("v", 0.0, (1.0,) * 9, (0.0,) * 8, (1.0,) * 8).to_bytes(),
    ],
    ids=lambda data: data[:20].decode(),
)
def test_a_ranker_of_anything_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"^ranker: "):
        Ranker.from_bytes(data)
