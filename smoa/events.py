"""Event codec: protobuf values, the headers that name them, and the topics they travel on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError, Message

from smoa.errors import InvalidArgument
from smoa.v1 import events_pb2, feedback_pb2, router_pb2

SCHEMA: Final = "1"
DECISIONS: Final = "smoa.decisions.v1"
OUTCOMES: Final = "smoa.outcomes.v1"
USAGE: Final = "smoa.usage.v1"
ADAPTER_OUTCOMES: Final = "smoa.adapter-outcomes.v1"
LIFECYCLE: Final = "smoa.lifecycle.v1"
EXECUTORS: Final = "smoa.executors.v1"
DEAD_LETTER: Final = "smoa.dead-letter.v1"

TYPES: Final[dict[str, type[Message]]] = {
    DECISIONS: router_pb2.Decision,
    OUTCOMES: feedback_pb2.Outcome,
    USAGE: events_pb2.UsageEvent,
    ADAPTER_OUTCOMES: events_pb2.AdapterOutcome,
    LIFECYCLE: events_pb2.LifecycleEvent,
    EXECUTORS: events_pb2.ExecutorStatus,
    DEAD_LETTER: events_pb2.DeadLetter,
}


@dataclass(frozen=True)
class Event:
    """One message as it goes to Kafka."""

    topic: str
    key: bytes
    value: bytes
    type_name: str


def event(topic: str, key: str, message: Message) -> Event:
    """Encode `message` for `topic`.

    Raises:
        InvalidArgument: the topic carries another type, or the key is empty.
    """
    wanted = TYPES[topic]
    if not isinstance(message, wanted):
        raise InvalidArgument(
            "event", f"{topic} carries {wanted.DESCRIPTOR.full_name}, not {message.DESCRIPTOR.full_name}", "use its own topic"
        )
    if not key:
        raise InvalidArgument("event", f"a {topic} event needs a key", "key it by the id that design.md names")
    return Event(topic, key.encode(), message.SerializeToString(deterministic=True), message.DESCRIPTOR.full_name)


def headers(type_name: str, producer_id: str = "", sequence: int = 0) -> list[tuple[str, bytes]]:
    """Kafka headers of an event; producer and sequence let a reader tell a repeated send."""
    named = [("smoa-type", type_name.encode()), ("smoa-schema", SCHEMA.encode())]
    if producer_id:
        named += [("smoa-producer", producer_id.encode()), ("smoa-sequence", str(sequence).encode())]
    return named


def decode(topic: str, value: bytes | None, found: Iterable[tuple[str, bytes]]) -> Message:
    """Parse a message's value by its topic and headers.

    Raises:
        InvalidArgument: another schema or type than the topic's, an empty value, or bytes that are not that message.
    """
    named = {name: (content or b"").decode("utf-8", "replace") for name, content in found}  # Kafka allows a null header
    wanted = TYPES[topic]
    if (schema := named.get("smoa-schema", SCHEMA)) != SCHEMA:
        raise InvalidArgument("smoa-schema", f"{schema!r} is not known to this version", f"produce schema {SCHEMA} or upgrade the reader")
    if (type_name := named.get("smoa-type", wanted.DESCRIPTOR.full_name)) != wanted.DESCRIPTOR.full_name:
        raise InvalidArgument("smoa-type", f"{type_name!r} does not belong on {topic}", f"produce {wanted.DESCRIPTOR.full_name}")
    if not value:
        raise InvalidArgument("value", f"of a {topic} message is empty", f"produce a serialised {wanted.DESCRIPTOR.full_name}")
    try:
        return wanted.FromString(value)
    except DecodeError as error:
        raise InvalidArgument(
            "value", f"is not a {wanted.DESCRIPTOR.full_name} ({error})", "serialise it with the contracts of smoa.v1"
        ) from error
