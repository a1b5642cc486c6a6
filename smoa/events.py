"""Event codec: protobuf values, the headers that name them, and the topics they travel on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from smoa.errors import InvalidArgument
from smoa.identifiers import check_ulid
from smoa.limits import MAX_EXAMPLE_CHARACTERS
from smoa.rules import check_rules
from smoa.v1 import changes_pb2, events_pb2, feedback_pb2, router_pb2

SCHEMA: Final = "1"
DECISIONS: Final = "smoa.decisions.v1"
OUTCOMES: Final = "smoa.outcomes.v1"
USAGE: Final = "smoa.usage.v1"
ADAPTER_OUTCOMES: Final = "smoa.adapter-outcomes.v1"
EXAMPLES: Final = "smoa.examples.v1"
LIFECYCLE: Final = "smoa.lifecycle.v1"
EXECUTORS: Final = "smoa.executors.v1"
DEAD_LETTER: Final = "smoa.dead-letter.v1"
AUDIT: Final = "smoa.audit.v1"
CHANGES: Final = "smoa.changes.v1"
PACKED: Final = frozenset({DECISIONS, OUTCOMES, USAGE, ADAPTER_OUTCOMES, EXAMPLES})
"""Topics whose messages may hold many events each (`EventBatch`): the compacted ones cannot, for compaction goes by a message's key."""

MAX_PACKED: Final = 65_536
_NAME_IT: Final = "name the id that the registry gave"
_BATCH_NAME: Final = events_pb2.EventBatch.DESCRIPTOR.full_name

TYPES: Final[dict[str, type[Message]]] = {
    DECISIONS: router_pb2.Decision,
    OUTCOMES: feedback_pb2.Outcome,
    USAGE: events_pb2.UsageEvent,
    ADAPTER_OUTCOMES: events_pb2.AdapterOutcome,
    EXAMPLES: events_pb2.Example,
    LIFECYCLE: events_pb2.LifecycleEvent,
    EXECUTORS: events_pb2.ExecutorStatus,
    DEAD_LETTER: events_pb2.DeadLetter,
    AUDIT: events_pb2.AuditEvent,
    CHANGES: changes_pb2.PlannedChange,
}


class Event(NamedTuple):
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
        raise InvalidArgument("event", f"a {topic} event needs a key", "key it by its decision_id, adapter_id or address")
    return Event(topic, key.encode(), message.SerializeToString(deterministic=True), message.DESCRIPTOR.full_name)


class Received(NamedTuple):
    """One event as it came from Kafka, not decoded yet."""

    topic: str
    partition: int
    offset: int
    place: int
    """In its message."""
    key: bytes
    value: bytes
    producer_id: str
    """Empty where the sender gave none."""
    sequence: int

    @property
    def position(self) -> int:
        """Rises along a partition, through the events of a message too."""
        return self.offset * MAX_PACKED + self.place


def pack(events: Iterable[tuple[bytes, bytes, int]]) -> bytes:
    """The value of one message with many events (key, value, sequence) of one partition of a topic in `PACKED`."""
    packed = [events_pb2.PackedEvent(key=key, value=value, sequence=sequence) for key, value, sequence in events]
    return events_pb2.EventBatch(events=packed).SerializeToString()


def headers(type_name: str, producer_id: str = "", sequence: int = 0) -> list[tuple[str, bytes]]:
    """Kafka headers of an event; producer and sequence let a reader tell a repeated send."""
    named = [("smoa-type", type_name.encode()), ("smoa-schema", SCHEMA.encode())]
    if producer_id:
        named += [("smoa-producer", producer_id.encode()), ("smoa-sequence", str(sequence).encode())]
    return named


def unpack(
    topic: str, partition: int, offset: int, key: bytes | None, value: bytes | None, found: Iterable[tuple[str, bytes | None]]
) -> Sequence[Received]:
    """The events of one message, in order: one, or those of an `EventBatch`.

    Raises:
        InvalidArgument: another schema, a batch where none may stand, or bytes that are not one.
    """
    named = {name: (content or b"").decode("utf-8", "replace") for name, content in found}  # Kafka allows a null header
    if (schema := named.get("smoa-schema", SCHEMA)) != SCHEMA:
        raise InvalidArgument("smoa-schema", f"{schema!r} is not known to this version", f"produce schema {SCHEMA} or upgrade the reader")
    wanted = TYPES[topic].DESCRIPTOR.full_name
    type_name, producer_id = named.get("smoa-type", wanted), named.get("smoa-producer", "")
    if type_name == _BATCH_NAME and topic in PACKED:
        batch = _parsed(events_pb2.EventBatch, value).events
        if len(batch) > MAX_PACKED:
            raise InvalidArgument("events", f"holds {len(batch):,}", f"put at most {MAX_PACKED:,} in one message")
        return [Received(topic, partition, offset, i, one.key, one.value, producer_id, one.sequence) for i, one in enumerate(batch)]
    if type_name != wanted:
        raise InvalidArgument("smoa-type", f"{type_name!r} does not belong on {topic}", f"produce {wanted}")
    sequence = named.get("smoa-sequence", "0")
    if not sequence.isascii() or not sequence.isdigit() or len(sequence) > 18:
        raise InvalidArgument("smoa-sequence", f"{sequence[:40]!r} is not a number", "number a producer's events from 0")
    return [Received(topic, partition, offset, 0, key or b"", value or b"", producer_id, int(sequence))]


def decode(topic: str, value: bytes) -> Message:
    """The message of an event.

    Raises:
        InvalidArgument: an empty value, bytes that are not the topic's message, or one that breaks a rule of its contract.
    """
    if not value:
        raise InvalidArgument("value", f"of a {topic} message is empty", f"produce a serialised {TYPES[topic].DESCRIPTOR.full_name}")
    message = _parsed(TYPES[topic], value)
    check_rules(message)
    return message


def adapter_ids_of(decision: router_pb2.Decision) -> list[str]:
    """The ids of a decision's adapters, which its effects are keyed by.

    Raises:
        InvalidArgument: one of them can be no adapter's.
    """
    names = [one.adapter_id for one in decision.adapters]
    if "" in names or "/" in "".join(names):
        place, name = next((place, name) for place, name in enumerate(names) if not name or "/" in name)
        raise InvalidArgument(f"adapters[{place}].adapter_id", f"{name!r} names no adapter", _NAME_IT)
    for place, one in enumerate(decision.adapters):
        if one.HasField("trial") and "/" in (name := one.trial.control_of):
            raise InvalidArgument(f"adapters[{place}].trial.control_of", f"{name!r} names no adapter", _NAME_IT)
    return names


def check_outcome(outcome: feedback_pb2.Outcome, prefix: str = "") -> None:
    """Raise InvalidArgument unless an outcome's texts can be kept, and what it names can be an adapter; `prefix` goes before the field's
    name.
    """
    if outcome.right_adapter_id:
        check_ulid(outcome.right_adapter_id, f"{prefix}right_adapter_id", "send the id of a registered adapter, or leave it out")
    if outcome.withdrawn and not outcome.revision:
        raise InvalidArgument(f"{prefix}revision", "is 0, and the outcome is withdrawn", "give one above that of what is taken back")
    for field in ("input", "output", "corrected_output"):
        if (length := len(getattr(outcome, field))) > MAX_EXAMPLE_CHARACTERS:
            remedy = f"give at most {MAX_EXAMPLE_CHARACTERS:,}, or leave the texts out"
            raise InvalidArgument(f"{prefix}{field}", f"has {length:,} characters", remedy)


_M = TypeVar("_M", bound=Message)


def _parsed(wanted: type[_M], value: bytes | None) -> _M:
    try:
        return wanted.FromString(value or b"")
    except DecodeError as error:
        raise InvalidArgument(
            "value", f"is not a {wanted.DESCRIPTOR.full_name} ({error})", "serialise it with the contracts of smoa.v1"
        ) from error
