"""The event codec: each topic carries its one type, and everything else is refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from smoa import events
from smoa.errors import InvalidArgument
from smoa.outbox import records_of
from smoa.topics import partition_of
from smoa.v1 import changes_pb2, common_pb2, events_pb2, feedback_pb2, router_pb2

MESSAGES: dict[str, Message] = {
    events.DECISIONS: router_pb2.Decision(
        decision_id="d", tenant="t", strategy=common_pb2.ROUTING_STRATEGY_HYBRID, cached=True, decided_at_us=1 << 50
    ),
    events.OUTCOMES: feedback_pb2.Outcome(decision_id="d", tenant="t", success=True, score=0.5),
    events.USAGE: events_pb2.UsageEvent(adapter_id="a", tenant="t", decision_id="d", tokens=7, total_us=9),
    events.ADAPTER_OUTCOMES: events_pb2.AdapterOutcome(adapter_id="a", source_topic="s", source_position=3, used=True, success=False),
    events.EXAMPLES: events_pb2.Example(key="a/t", decision_id="d", tenant="t", input="in", output="out", adapter_ids=["a"]),
    events.LIFECYCLE: events_pb2.LifecycleEvent(adapter_id="a", reason="because", parents=["b", "c"], digest="f" * 64),
    events.EXECUTORS: events_pb2.ExecutorStatus(address="h:1", base_model="b", active=["a"], hosted=["a", "c"], rows=16, leaving=True),
    events.DEAD_LETTER: events_pb2.DeadLetter(topic="s", partition=1, offset=2, key=b"\xff", value=b"\x00\xff", reason="bad"),
    events.AUDIT: events_pb2.AuditEvent(caller="c", method="m", tenant="t", subject="a", roles=["library"], status="OK", count=1),
    events.CHANGES: changes_pb2.PlannedChange(change_id="c", tenant="t", kind=changes_pb2.CHANGE_KIND_PRUNE, adapter_ids=["a"]),
}
each_topic = pytest.mark.parametrize("topic", events.TYPES)


Headers = Sequence[tuple[str, bytes | None]]


def _read(topic: str, value: bytes | None, headers: Headers) -> Message:
    [one] = events.unpack(topic, 1, 7, b"key", value, headers)
    return events.decode(topic, one.value)


def test_every_topic_has_an_example() -> None:
    assert set(MESSAGES) == set(events.TYPES)


@each_topic
def test_round_trip(topic: str) -> None:
    made = events.event(topic, "key", MESSAGES[topic])
    assert (made.topic, made.key, made.type_name) == (topic, b"key", MESSAGES[topic].DESCRIPTOR.full_name)
    assert _read(topic, made.value, events.headers(made.type_name, "producer", 4)) == MESSAGES[topic]


@each_topic
def test_headers_may_be_absent(topic: str) -> None:
    made = events.event(topic, "key", MESSAGES[topic])
    assert _read(topic, made.value, []) == MESSAGES[topic]


def test_headers() -> None:
    assert events.headers("T") == [("smoa-type", b"T"), ("smoa-schema", b"1")]
    assert events.headers("T", "p", 12) == [
        ("smoa-type", b"T"),
        ("smoa-schema", b"1"),
        ("smoa-producer", b"p"),
        ("smoa-sequence", b"12"),
    ]


@each_topic
def test_message_of_another_topic_is_not_encoded(topic: str) -> None:
    other = events_pb2.UsageEvent() if topic != events.USAGE else feedback_pb2.Outcome()
    wanted = MESSAGES[topic].DESCRIPTOR.full_name
    with pytest.raises(InvalidArgument) as caught:
        events.event(topic, "key", other)
    assert str(caught.value) == f"event: {topic} carries {wanted}, not {other.DESCRIPTOR.full_name}; use its own topic"


@each_topic
def test_empty_key_is_refused(topic: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^event: a {topic} event needs a key; "):
        events.event(topic, "", MESSAGES[topic])


@each_topic
def test_wrong_type_header_is_refused(topic: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        _read(topic, b"x", [("smoa-type", b"smoa.v1.Other")])
    assert str(caught.value).startswith(f"smoa-type: 'smoa.v1.Other' does not belong on {topic}; produce smoa.v1.")


@each_topic
def test_wrong_schema_header_is_refused(topic: str) -> None:
    made = events.event(topic, "key", MESSAGES[topic])
    with pytest.raises(InvalidArgument) as caught:
        _read(topic, made.value, [("smoa-schema", b"2")])
    assert str(caught.value) == "smoa-schema: '2' is not known to this version; produce schema 1 or upgrade the reader"


@each_topic
@pytest.mark.parametrize("value", [b"", None])
def test_empty_value_is_refused(topic: str, value: bytes | None) -> None:
    with pytest.raises(InvalidArgument, match=f"^value: of a {topic} message is empty; "):
        _read(topic, value, [])


@each_topic
@pytest.mark.parametrize("value", [b"\xff\xff\xff", b"not a message", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
def test_garbage_is_refused(topic: str, value: bytes) -> None:
    with pytest.raises(InvalidArgument, match=f"^value: is not a {MESSAGES[topic].DESCRIPTOR.full_name} \\("):
        _read(topic, value, events.headers(MESSAGES[topic].DESCRIPTOR.full_name))


def test_header_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^smoa-type: "):
        _read(events.USAGE, b"x", [("smoa-type", b"\xff\xfe")])


def test_header_without_value_does_not_break_the_reader() -> None:
    made = events.event(events.USAGE, "key", MESSAGES[events.USAGE])
    assert _read(events.USAGE, made.value, [("trace", None)]) == MESSAGES[events.USAGE]


def test_encoding_is_deterministic() -> None:
    assert len({events.event(events.LIFECYCLE, "k", MESSAGES[events.LIFECYCLE]).value for _ in range(5)}) == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(events.TYPES)), st.integers(0, 5), st.integers(0, 60)), max_size=60), st.integers(80, 4000)
)
def test_packed_events_come_back_in_order_with_their_numbers(chosen: list[tuple[str, int, int]], batch_bytes: int) -> None:
    sent = [
        (events.Event(topic, f"k{key}".encode(), b"v" * size, MESSAGES[topic].DESCRIPTOR.full_name), number)
        for number, (topic, key, size) in enumerate(chosen)
    ]
    records = records_of(sent, dict.fromkeys(events.TYPES, 4), "me", batch_bytes)
    back: dict[tuple[str, int], list[tuple[bytes, bytes, str, int]]] = {}
    for offset, one in enumerate(records):
        read = events.unpack(one.topic, one.partition, offset, one.key, one.value, one.headers)
        assert [event.position for event in read] == [offset * events.MAX_PACKED + place for place in range(len(read))]
        assert len(read) == 1 or one.topic in events.PACKED
        back.setdefault((one.topic, one.partition), []).extend((e.key, e.value, e.producer_id, e.sequence) for e in read)
    wanted: dict[tuple[str, int], list[tuple[bytes, bytes, str, int]]] = {}
    for made, number in sent:
        wanted.setdefault((made.topic, partition_of(made.key, 4)), []).append((made.key, made.value, "me", number))
    assert back == wanted


def test_a_batch_where_none_may_stand_is_refused() -> None:
    value, named = events.pack([(b"a", b"b", 1)] * 2), events.headers("smoa.v1.EventBatch")
    with pytest.raises(InvalidArgument, match=r"^smoa-type: 'smoa.v1.EventBatch' does not belong on smoa.lifecycle.v1; "):
        events.unpack(events.LIFECYCLE, 0, 0, b"a", value, named)


def test_a_batch_of_garbage_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^value: is not a smoa.v1.EventBatch \("):
        events.unpack(events.USAGE, 0, 0, b"a", b"\xff\xff\xff", events.headers("smoa.v1.EventBatch"))


def test_a_batch_of_more_events_than_positions_is_refused() -> None:
    value = events.pack([(b"", b"", 0)] * (events.MAX_PACKED + 1))
    with pytest.raises(InvalidArgument, match=r"^events: holds 65,537; put at most 65,536 in one message$"):
        events.unpack(events.USAGE, 0, 0, b"a", value, events.headers("smoa.v1.EventBatch"))


@pytest.mark.parametrize("sequence", [b"", b"-1", b"x", b"9" * 19, "\u0663".encode()])
def test_a_number_that_is_none_is_refused(sequence: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"^smoa-sequence: .* is not a number; "):
        events.unpack(events.USAGE, 0, 0, b"a", b"", [("smoa-sequence", sequence)])
