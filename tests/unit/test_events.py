"""The event codec: each topic carries its one type, and everything else is refused with the reason."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from smoa import events
from smoa.errors import InvalidArgument
from smoa.v1 import common_pb2, events_pb2, feedback_pb2, router_pb2

MESSAGES: dict[str, Message] = {
    events.DECISIONS: router_pb2.Decision(
        decision_id="d", tenant="t", strategy=common_pb2.ROUTING_STRATEGY_HYBRID, cached=True, decided_at_us=1 << 50
    ),
    events.OUTCOMES: feedback_pb2.Outcome(decision_id="d", tenant="t", success=True, score=0.5),
    events.USAGE: events_pb2.UsageEvent(adapter_id="a", tenant="t", decision_id="d", tokens=7, total_us=9),
    events.ADAPTER_OUTCOMES: events_pb2.AdapterOutcome(adapter_id="a", source_topic="s", source_offset=3, used=True, success=False),
    events.LIFECYCLE: events_pb2.LifecycleEvent(adapter_id="a", reason="because", parents=["b", "c"], digest="f" * 64),
    events.EXECUTORS: events_pb2.ExecutorStatus(address="h:1", base_model="b", active=["a"], hosted=["a", "c"], rows=16, leaving=True),
    events.DEAD_LETTER: events_pb2.DeadLetter(topic="s", partition=1, offset=2, key=b"\xff", value=b"\x00\xff", reason="bad"),
}
each_topic = pytest.mark.parametrize("topic", events.TYPES)


def test_every_topic_has_an_example() -> None:
    assert set(MESSAGES) == set(events.TYPES)


@each_topic
def test_round_trip(topic: str) -> None:
    made = events.event(topic, "key", MESSAGES[topic])
    assert (made.topic, made.key, made.type_name) == (topic, b"key", MESSAGES[topic].DESCRIPTOR.full_name)
    assert events.decode(topic, made.value, events.headers(made.type_name, "producer", 4)) == MESSAGES[topic]


@each_topic
def test_headers_may_be_absent(topic: str) -> None:
    made = events.event(topic, "key", MESSAGES[topic])
    assert events.decode(topic, made.value, []) == MESSAGES[topic]


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
        events.decode(topic, b"x", [("smoa-type", b"smoa.v1.Other")])
    assert str(caught.value).startswith(f"smoa-type: 'smoa.v1.Other' does not belong on {topic}; produce smoa.v1.")


@each_topic
def test_wrong_schema_header_is_refused(topic: str) -> None:
    made = events.event(topic, "key", MESSAGES[topic])
    with pytest.raises(InvalidArgument) as caught:
        events.decode(topic, made.value, [("smoa-schema", b"2")])
    assert str(caught.value) == "smoa-schema: '2' is not known to this version; produce schema 1 or upgrade the reader"


@each_topic
@pytest.mark.parametrize("value", [b"", None])
def test_empty_value_is_refused(topic: str, value: bytes | None) -> None:
    with pytest.raises(InvalidArgument, match=f"^value: of a {topic} message is empty; "):
        events.decode(topic, value, [])


@each_topic
@pytest.mark.parametrize("value", [b"\xff\xff\xff", b"not a message", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
def test_garbage_is_refused(topic: str, value: bytes) -> None:
    with pytest.raises(InvalidArgument, match=f"^value: is not a {MESSAGES[topic].DESCRIPTOR.full_name} \\("):
        events.decode(topic, value, events.headers(MESSAGES[topic].DESCRIPTOR.full_name))


def test_header_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^smoa-type: "):
        events.decode(events.USAGE, b"x", [("smoa-type", b"\xff\xfe")])


def test_header_without_value_does_not_break_the_reader() -> None:
    made = events.event(events.USAGE, "key", MESSAGES[events.USAGE])
    foreign: list[tuple[str, bytes]] = [("trace", None)]  # type: ignore[list-item]
    assert events.decode(events.USAGE, made.value, foreign) == MESSAGES[events.USAGE]


def test_encoding_is_deterministic() -> None:
    assert len({events.event(events.LIFECYCLE, "k", MESSAGES[events.LIFECYCLE]).value for _ in range(5)}) == 1
