"""Bytes of anybody into every parser that stands where bytes enter: a value, or a sentence that names a field."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from services.optimizer.stream.counting import CountPartition
from services.optimizer.stream.joining import JoinPartition
from services.router.learning.ranker import Ranker, builtin
from smoa.access.callers import read_callers
from smoa.adapter import Adapter, decode
from smoa.errors import InvalidArgument
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, EXAMPLES, OUTCOMES, TYPES, USAGE, Received, unpack
from smoa.events import decode as decode_event
from smoa.peft import import_folder
from tests.integration.router_support import adapter_file

FILE = adapter_file(adapter_id="01J9ZC3B5T8QH7M2K4N6P0R1SV")
EXAMPLES_EACH = settings(deadline=None, derandomize=True, max_examples=300)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 6)), min_size=1, max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)

HEADER = st.tuples(st.sampled_from(["smoa-type", "smoa-schema", "smoa-sequence", "x"]), st.none() | st.binary(max_size=20))
TOPICS = st.sampled_from([DECISIONS, OUTCOMES, ADAPTER_OUTCOMES, USAGE, EXAMPLES])
CALLER = st.dictionaries(st.sampled_from(["name", "tenants", "roles", "key_sha256", "certificate"]), JSON)
SETTINGS = st.sampled_from(["peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "layers_to_transform"])


def _edited(data: bytes, edits: list[tuple[float, bytes, int]]) -> bytes:
    """Bytes put in, and bytes left out, at places along the data."""
    for place, added, left_out in edits:
        at = int(place * len(data))
        data = data[:at] + added + data[at + left_out :]
    return data


def _read(data: bytes) -> None:
    try:
        found = decode(data)
    except InvalidArgument as error:
        assert error.field.split(".")[0] in ("file", "manifest"), error  # noqa: PT017  it may as well be one
    else:
        assert isinstance(found, Adapter)


@EXAMPLES_EACH
@given(st.binary(max_size=300))
def test_adapter_files_of_any_bytes(data: bytes) -> None:
    _read(data)


@EXAMPLES_EACH
@given(EDITS)
def test_adapter_files_that_were_cut_and_patched(edits: list[tuple[float, bytes, int]]) -> None:
    _read(_edited(FILE, edits))


@EXAMPLES_EACH
@given(st.dictionaries(st.sampled_from(["name", "rank", "layers", "modules", "scaling", "scalings", "tags", "kind", "tenant", "x"]), JSON))
def test_manifests_of_any_values(changes: dict[str, object]) -> None:
    (length,) = struct.unpack("<Q", FILE[:8])
    header = json.loads(FILE[8 : 8 + length])
    header["__metadata__"]["smoa"] = json.dumps({**json.loads(header["__metadata__"]["smoa"]), **changes})
    made = json.dumps(header).encode()
    _read(struct.pack("<Q", len(made)) + made + FILE[8 + length :])


@EXAMPLES_EACH
@given(JSON)
def test_headers_of_any_values(header: object) -> None:
    made = json.dumps(header).encode()
    _read(struct.pack("<Q", len(made)) + made)


@pytest.mark.parametrize("topic", sorted(TYPES))
@EXAMPLES_EACH
@given(value=st.binary(max_size=200), headers=st.lists(HEADER, max_size=3))
def test_events_of_any_bytes(topic: str, value: bytes, headers: list[tuple[str, bytes | None]]) -> None:
    try:
        for one in unpack(topic, 0, 0, b"key", value, headers):
            decode_event(one.topic, one.value)
    except InvalidArgument as error:
        assert len(str(error)) < 2_000  # noqa: PT017  it may as well be one


@EXAMPLES_EACH
@given(st.lists(st.tuples(TOPICS, st.binary(max_size=40), st.binary(max_size=120)), max_size=8))
def test_joins_and_counts_of_any_bytes(events: list[tuple[str, bytes, bytes]]) -> None:
    received = [Received(topic, 0, number, 0, key, value, "p", number) for number, (topic, key, value) in enumerate(events)]
    joined = JoinPartition[str](0, 1, []).plan([one for one in received if one.topic in (DECISIONS, OUTCOMES)], 1)
    counted = CountPartition(1.0, {}).plan([one for one in received if one.topic not in (DECISIONS, OUTCOMES)], 1)
    for _, error in (*joined.refused, *counted.refused):
        assert error.field != "event", "found by its rules, and not by a bug"


@EXAMPLES_EACH
@given(EDITS)
def test_rankers_that_were_cut_and_patched(edits: list[tuple[float, bytes, int]]) -> None:
    try:
        Ranker.from_bytes(_edited(builtin().to_bytes(), edits))
    except InvalidArgument as error:
        assert error.field == "ranker"  # noqa: PT017  it may as well be one


@EXAMPLES_EACH
@given(JSON | st.fixed_dictionaries({"callers": st.lists(CALLER, max_size=3)}))
def test_files_of_callers_of_any_values(said: object) -> None:
    try:
        read_callers(json.dumps(said))
    except InvalidArgument as error:
        assert error.field.startswith("callers")  # noqa: PT017  it may as well be one


@settings(deadline=None, derandomize=True, max_examples=150)
@given(config=JSON | st.dictionaries(SETTINGS, JSON))
def test_peft_folders_of_any_configuration(config: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("peft")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(save({}))
    with pytest.raises(InvalidArgument):
        import_folder(folder, "base")
