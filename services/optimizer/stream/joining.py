"""Joining decisions with their outcomes: one partition's open decisions, as a store that its changelog can make again.

Exactly once is made of four parts (docs/decisions/0002). The join gives every decision and every verdict one effect, whatever is sent
again: it knows which event brought what. What it emits names that event, and a replayed event emits the same again, so the counter, which
keeps the last position applied of each lane, drops it. The shell (`stream`) lets effects out only after the state behind them is durable
and the worker's membership is confirmed. And whatever a worker writes is stamped with its generation, so that one that was paused and
replaced cannot overwrite its successor.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from services.optimizer.stream.effects import Lane, examples_of, is_silent, join_decision, join_outcome, place_of_verdict
from services.optimizer.stream.isolating import without_failing
from smoa.errors import InvalidArgument
from smoa.events import (
    ADAPTER_OUTCOMES,
    DECISIONS,
    EXAMPLES,
    MAX_PACKED,
    OUTCOMES,
    Event,
    Received,
    check_outcome,
    decode,
    event,
)
from smoa.topics import partition_of
from smoa.v1 import feedback_pb2, router_pb2
from smoa.v1.events_pb2 import Example
from smoa.v1.state_pb2 import JoinEntry, JoinSegment, Landmark
from smoa.verdicts import EVERY_SOURCE

INCARNATION: Final = 2**52
"""Added to positions for each time that a topic was made anew or lost its end: they rise, whatever its offsets do."""
_AS_REPORTED: Final = (
    *("tenant", "success", "reported_at_us", "input", "output", "corrected_output", "right_adapter_id"),
    *("source", "revision", "withdrawn"),
)
"""Fields of a verdict that are its outcome's."""
_OVERHEAD_BYTES: Final = 300
"""What Python keeps of a decision beside its state."""


N = TypeVar("N", bound=Hashable)
"""What a segment is known by."""


def entries_of(value: bytes) -> list[JoinEntry]:
    """The entries of a segment, as the changelog has it.

    Raises:
        DecodeError: it is none.
    """
    return [JoinEntry.FromString(one) for one in JoinSegment.FromString(value).entries]


@dataclass(slots=True, eq=False)
class Segment(Generic[N]):
    """One record of the join's changelog. It goes, in one piece, when the last decision whose newest state it holds is forgotten."""

    name: N
    seen_us: int
    decision_ids: list[str]
    live: int = 0


@dataclass
class JoinPlan:
    """What some events come to, before anything of it is so."""

    entries: dict[str, JoinEntry] = field(default_factory=dict)
    effects: list[Event] = field(default_factory=list)
    refused: list[tuple[Received, InvalidArgument]] = field(default_factory=list)
    misplaced: list[Received] = field(default_factory=list)
    """Decisions and outcomes that are not in their key's partition: to be sent again to the right one."""

    def split(self, most_bytes: int) -> list[list[JoinEntry]]:
        """The entries in groups, each of about so many bytes at most."""
        groups: list[list[JoinEntry]] = []
        size = 0
        for entry in self.entries.values():
            added = entry.ByteSize()
            if not groups or size + added > most_bytes:
                groups.append([])
                size = 0
            groups[-1].append(entry)
            size += added
        return groups


class JoinPartition(Generic[N]):
    """The open decisions of one partition, as long as time and bytes allow."""

    def __init__(
        self,
        partition: int,
        partitions: int,
        records: Iterable[tuple[N, bytes]],
        silent: Container[str] = frozenset(),
        text_room: int = 2**40,
        landmarks: Mapping[str, Landmark] | None = None,
        weights: Mapping[str, float] = EVERY_SOURCE,
    ) -> None:
        """`records`: names and values of its changelog's segments, the oldest first; what a later one says stands.

        Texts are not kept of tenants in `silent`, nor with outcomes that wait for their decision once so many bytes are held: what can be
        learned from must not push out what is to be counted. `landmarks`: what each topic's log is known by.
        `weights`: of verdicts, by source.
        """
        self.landmarks = dict(landmarks or {})
        self._silent, self._text_room, self._weights = silent, text_room, weights
        self._lanes = {topic: Lane(topic, partition) for topic in (DECISIONS, OUTCOMES)}
        self._partition, self._partitions = partition, partitions
        # Two of them, of texts and bytes: a pair for each decision would be looked through by the garbage collector again and again.
        self._known: dict[str, bytes] = {}
        self._segment_of: dict[str, Segment[N]] = {}
        self._segments: dict[N, Segment[N]] = {}
        self._undecided: dict[str, int] = {}
        self.held_bytes = 0
        self.obsolete: list[N] = []
        """Segments that can be deleted from the changelog: whoever has done it takes them off."""
        for name, value in records:
            self._add(name, entries_of(value))

    def __len__(self) -> int:
        return len(self._known)

    def plan(self, events: Sequence[Received], now_us: int) -> JoinPlan:
        """What the events come to; nothing is changed."""
        plan, left_out = without_failing(lambda these: self._plan(these, now_us), events)
        plan.refused += left_out
        return plan

    def _plan(self, events: Sequence[Received], now_us: int) -> JoinPlan:
        plan = JoinPlan()
        # Decisions first: an outcome that waits for its decision keeps its texts meanwhile. Lanes may interleave in any way.
        for one in sorted(events, key=lambda one: one.topic != DECISIONS):
            try:
                self._plan_one(plan, one, now_us)
            except InvalidArgument as error:
                plan.refused.append((one, error))
        return plan

    def _plan_one(self, plan: JoinPlan, one: Received, now_us: int) -> None:
        message = decode(one.topic, one.value)
        assert isinstance(message, router_pb2.Decision | feedback_pb2.Outcome)
        decision_id = message.decision_id
        check_key(one, decision_id)
        if (entry := plan.entries.get(decision_id)) is None:
            known = self._known.get(decision_id)
            if not known and partition_of(one.key, self._partitions) != self._partition:
                plan.misplaced.append(one)  # its sender places keys otherwise than Kafka's own clients, or its topic has grown since
                return
            entry = JoinEntry.FromString(known) if known else JoinEntry(decision_id=decision_id, first_seen_us=now_us)
        mark = self.landmarks.get(one.topic)
        examples: list[Example] = []
        position = one.position + (INCARNATION * mark.incarnation if mark else 0)
        if isinstance(message, router_pb2.Decision):
            if is_silent(message.tenant, self._silent):
                message.ClearField("context")
                message.ClearField("user")
            made = join_decision(entry, message, position, self._lanes[DECISIONS])
            if entry.early and entry.decided_position == position:
                for place, verdict in enumerate(entry.verdicts[: entry.early]):
                    examples += examples_of(entry, place, verdict)
        else:
            check_outcome(message)
            if is_silent(message.tenant or "public", self._silent) or (not entry.decided and self.held_bytes > self._text_room):
                for text in ("input", "output", "corrected_output"):
                    message.ClearField(text)
            made = join_outcome(entry, message, position, self._lanes[OUTCOMES], self._weights)
            if entry.decided and (message.input or len(entry.verdicts) > 1):
                brought = place_of_verdict(entry, entry.tenant, position)
                if brought is not None and brought >= entry.early:
                    examples = examples_of(entry, brought, message)
        if examples:
            plan.effects += [event(EXAMPLES, one.key, one) for one in examples if not is_silent(one.tenant, self._silent)]
        plan.entries[decision_id] = entry
        plan.effects += [event(ADAPTER_OUTCOMES, effect.adapter_id, effect) for effect in made]

    def apply(self, name: N, entries: Sequence[JoinEntry]) -> None:
        """Take entries whose segment is durable under `name`."""
        self._add(name, entries)

    def _add(self, name: N, entries: Sequence[JoinEntry]) -> None:
        segment = Segment(name, max((entry.first_seen_us for entry in entries), default=0), [])
        self._segments[name] = segment
        for entry in entries:
            self._drop(entry.decision_id)
            if not entry.decided and not entry.verdicts:  # forgotten
                continue
            value = entry.SerializeToString()
            self._known[entry.decision_id], self._segment_of[entry.decision_id] = value, segment
            segment.decision_ids.append(entry.decision_id)
            segment.live += 1
            self.held_bytes += len(value) + _OVERHEAD_BYTES
            if not entry.decided:
                self._undecided[entry.decision_id] = entry.first_seen_us

    def _drop(self, decision_id: str) -> None:
        if (value := self._known.pop(decision_id, None)) is None:
            return
        self._undecided.pop(decision_id, None)
        segment = self._segment_of.pop(decision_id)
        self.held_bytes -= len(value) + _OVERHEAD_BYTES
        segment.live -= 1
        if not segment.live and self._segments.pop(segment.name, None) is not None:
            self.obsolete.append(segment.name)

    def forget(self, older_than_us: int, max_bytes: int) -> None:
        """Drop segments that are too old or do not fit any more, the oldest first."""
        while self._segments:
            segment = next(iter(self._segments.values()))
            if segment.live and segment.seen_us >= older_than_us and self.held_bytes <= max_bytes:
                break
            del self._segments[segment.name]
            self.obsolete.append(segment.name)
            for decision_id in segment.decision_ids:
                if self._segment_of.get(decision_id) is segment:
                    self._drop(decision_id)

    def unmatched(self, older_than_us: int) -> Iterator[Received]:
        """Outcomes that waited for their decision for too long, as they came; `forgotten` ends their waiting."""
        for decision_id, since_us in self._undecided.items():
            if since_us < older_than_us:
                for verdict in JoinEntry.FromString(self._known[decision_id]).verdicts:
                    outcome = feedback_pb2.Outcome(decision_id=decision_id)
                    for name in _AS_REPORTED:
                        setattr(outcome, name, getattr(verdict, name))
                    if verdict.HasField("score"):
                        outcome.score = verdict.score
                    place = divmod(verdict.position % INCARNATION, MAX_PACKED)
                    yield Received(OUTCOMES, self._partition, *place, decision_id.encode(), outcome.SerializeToString(), "", 0)

    @staticmethod
    def forgotten(decision_ids: Iterable[str]) -> JoinPlan:
        """A plan that says that these are to be forgotten."""
        return JoinPlan({decision_id: JoinEntry(decision_id=decision_id) for decision_id in decision_ids})


def check_key(one: Received, wanted: str) -> None:
    """Raise InvalidArgument unless the event's key is the id in its value."""
    if not wanted or one.key != wanted.encode():
        raise InvalidArgument(
            "key", f"of the message is {one.key[:80]!r}, its value names {wanted[:80]!r}", "key it by the id in its value"
        )


def segment_of(entries: Iterable[JoinEntry]) -> bytes:
    """The changelog's record of some entries."""
    return JoinSegment(entries=[entry.SerializeToString() for entry in entries]).SerializeToString()
