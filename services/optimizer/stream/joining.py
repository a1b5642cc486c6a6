"""Joining decisions with their outcomes: one partition's part, as pure functions and a store that its changelog can make again.

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

from services.optimizer.stream.isolating import without_failing
from smoa.errors import InvalidArgument
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, EXAMPLES, MAX_PACKED, OUTCOMES, Event, Received, check_outcome, decode, event
from smoa.topics import partition_of
from smoa.v1 import feedback_pb2, router_pb2
from smoa.v1.events_pb2 import AdapterOutcome, Example, TrialEffect
from smoa.v1.state_pb2 import JoinEntry, JoinSegment, Landmark, Verdict

FAILURES: Final = "failures/"
"""Before a tenant's name: the key of its corrected failures."""
INCARNATION: Final = 2**52
"""Added to positions for each time that a topic was made anew or lost its end: they rise, whatever its offsets do."""
MAX_CLAIMS: Final = 4
"""Tenants whose verdicts on a decision are kept before the decision itself has come."""
_OVERHEAD_BYTES: Final = 300
"""What Python keeps of a decision beside its state."""


N = TypeVar("N", bound=Hashable)
"""What a segment is known by."""


class Lane:
    """Where events come from: positions rise along it."""

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition


def join_decision(entry: JoinEntry, decision: router_pb2.Decision, position: int, lane: Lane) -> list[AdapterOutcome]:
    """A decision came: changes the entry and returns the effects.

    The same event again (a replay) has the same effects again; another event of the same decision has none.
    """
    if not entry.decided:
        entry.decided, entry.tenant, entry.decided_position = True, decision.tenant, position
        entry.decided_at_us, entry.task_id = decision.decided_at_us, decision.task_id
        entry.adapter_ids.extend(one.adapter_id for one in decision.adapters)
        entry.weights.extend(one.weight for one in decision.adapters)
        entry.user = decision.user
        for adapter in decision.adapters:
            if adapter.HasField("trial"):
                entry.on_trial[adapter.adapter_id].CopyFrom(adapter.trial)
        if decision.HasField("closeness"):
            entry.closeness.CopyFrom(decision.closeness)
            entry.base_model = decision.base_model
        if decision.context:
            entry.context, expected = decision.context, {one.adapter_id: one.expected for one in decision.ranked}
            entry.expected.extend(expected.get(one.adapter_id, 0.0) for one in decision.adapters)
        for other in [one for one in entry.verdicts if one.tenant != decision.tenant]:
            entry.verdicts.remove(other)
        entry.early = len(entry.verdicts) > 0
    elif entry.decided_position != position:
        return []
    return _effects(entry, lane, position, entry.decided_at_us, entry.verdicts[0] if entry.early else None, used=True)


def join_outcome(entry: JoinEntry, outcome: feedback_pb2.Outcome, position: int, lane: Lane) -> list[AdapterOutcome]:
    """An outcome came, perhaps before its decision: changes the entry and returns the effects. The first verdict stands.

    Raises:
        InvalidArgument: the decision is another tenant's, or too many tenants claim one that has not come.
    """
    tenant = outcome.tenant or "public"
    if entry.decided and entry.tenant != tenant:
        raise InvalidArgument(
            "tenant", f"{tenant[:80]!r} did not ask for this decision", "report outcomes under the tenant that was routed"
        )
    verdict = next((one for one in entry.verdicts if one.tenant == tenant), None)
    if verdict is None:
        if len(entry.verdicts) >= MAX_CLAIMS:
            raise InvalidArgument(
                "tenant", f"{tenant[:80]!r} is one of too many that claim a decision that has not come", f"at most {MAX_CLAIMS} may"
            )
        verdict = entry.verdicts.add(
            tenant=tenant,
            success=outcome.success,
            position=position,
            reported_at_us=outcome.reported_at_us,
            right_adapter_id=outcome.right_adapter_id,
        )
        if outcome.HasField("score"):
            verdict.score = outcome.score
        if not entry.decided:
            verdict.input, verdict.output, verdict.corrected_output = outcome.input, outcome.output, outcome.corrected_output
    elif verdict.position != position:
        return []
    if not entry.decided or entry.early:
        return []
    return _effects(entry, lane, position, _reported_at_us(entry, verdict), verdict, used=False)


def _reported_at_us(entry: JoinEntry, outcome: feedback_pb2.Outcome | Verdict) -> int:
    """When an outcome was reported: no earlier than its decision, whatever its sender's clock or unit. Whoever counts it knows the present,
    and takes it for the latest that it can be.
    """
    return max(outcome.reported_at_us, entry.decided_at_us)


def entries_of(value: bytes) -> list[JoinEntry]:
    """The entries of a segment, as the changelog has it.

    Raises:
        DecodeError: it is none.
    """
    return [JoinEntry.FromString(one) for one in JoinSegment.FromString(value).entries]


def is_silent(tenant: str, silent: Container[str]) -> bool:
    """Whether nothing of a tenant's texts may be kept; `*` is everybody."""
    return tenant in silent or "*" in silent


def key_of(adapter_id: str, tenant: str) -> str:
    """What a tenant's examples of an adapter are known by."""
    return f"{adapter_id}/{tenant}"


def example_of(entry: JoinEntry, outcome: feedback_pb2.Outcome | Verdict) -> Example | None:
    """What can be learned from the outcome that counts for a decision, if it gave its texts."""
    if not outcome.input:
        return None
    if outcome.success and outcome.output and entry.adapter_ids:
        _, adapter_id = max(zip(entry.weights, entry.adapter_ids, strict=True))
        key, output = key_of(adapter_id, entry.tenant), outcome.output
    elif not outcome.success and outcome.corrected_output:
        key, output = f"{FAILURES}{entry.tenant}", outcome.corrected_output
    else:
        return None
    return Example(
        key=key,
        decision_id=entry.decision_id,
        tenant=entry.tenant,
        input=outcome.input,
        output=output,
        occurred_at_us=_reported_at_us(entry, outcome),
        adapter_ids=() if outcome.success else entry.adapter_ids,
    )


def _effects(entry: JoinEntry, lane: Lane, position: int, at_us: int, verdict: Verdict | None, *, used: bool) -> list[AdapterOutcome]:
    """What an event means to each adapter of its decision, and to one that is said to have been right."""
    adapter_ids, on_trial = entry.adapter_ids, entry.on_trial

    def effect(adapter_id: str, success: bool | None, weight: float) -> AdapterOutcome:
        return AdapterOutcome(
            adapter_id=adapter_id,
            decision_id=entry.decision_id,
            tenant=entry.tenant,
            source_topic=lane.topic,
            source_partition=lane.partition,
            source_position=position,
            success=success,
            score=verdict.score if verdict is not None and verdict.HasField("score") else None,
            weight=weight,
            occurred_at_us=at_us,
            task_id=entry.task_id,
            context=entry.context if verdict is not None else b"",
            user=entry.user if verdict is not None else b"",
        )

    made = []
    for place, (adapter_id, weight) in enumerate(zip(adapter_ids, entry.weights, strict=True)):
        one = effect(adapter_id, None if verdict is None else verdict.success, weight)
        one.used = used
        if adapter_id in on_trial and (side := on_trial[adapter_id]).stands_for:
            one.trial.CopyFrom(TrialEffect(parents=side.stands_for, share=side.share))
        if used:
            one.together.extend([*adapter_ids[:place], *adapter_ids[place + 1 :]])
        if entry.expected and verdict is not None:
            one.expected = entry.expected[place]
        made.append(one)
    for child, parents in _controls(entry).items() if on_trial else ():
        one = effect(child, None if verdict is None else verdict.success, 0.0)
        one.used = used
        one.trial.CopyFrom(TrialEffect(parents=parents, control=True, share=on_trial[parents[0]].share))
        made.append(one)
    if verdict is None:
        return made
    if made and entry.HasField("closeness"):
        made[0].closeness.CopyFrom(entry.closeness)
        made[0].base_model = entry.base_model
    if verdict.right_adapter_id and (entry.context or entry.user):
        right = effect(verdict.right_adapter_id, success=True, weight=1.0)
        right.taught = True
        made.append(right)
    return made


def _controls(entry: JoinEntry) -> dict[str, list[str]]:
    """By the children that parents of the decision are compared with: those parents, in the decision's order."""
    found: dict[str, list[str]] = {}
    for adapter_id in entry.adapter_ids:
        if adapter_id in entry.on_trial and (child := entry.on_trial[adapter_id].control_of):
            found.setdefault(child, []).append(adapter_id)
    return found


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
    ) -> None:
        """`records`: names and values of its changelog's segments, the oldest first; what a later one says stands.

        Texts are not kept of tenants in `silent`, nor with outcomes that wait for their decision once so many bytes are held: what can be
        learned from must not push out what is to be counted. `landmarks`: what each topic's log is known by.
        """
        self.landmarks = dict(landmarks or {})
        self._silent, self._text_room = silent, text_room
        self._lanes = {topic: Lane(topic, partition) for topic in (DECISIONS, OUTCOMES)}
        self._partition, self._partitions = partition, partitions
        self._known: dict[str, tuple[Segment[N], bytes]] = {}
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
            entry = JoinEntry.FromString(known[1]) if known else JoinEntry(decision_id=decision_id, first_seen_us=now_us)
        mark = self.landmarks.get(one.topic)
        example, position = None, one.position + (INCARNATION * mark.incarnation if mark else 0)
        if isinstance(message, router_pb2.Decision):
            if is_silent(message.tenant, self._silent):
                message.ClearField("context")
                message.ClearField("user")
            made = join_decision(entry, message, position, self._lanes[DECISIONS])
            if entry.early and entry.decided_position == position:
                example = example_of(entry, entry.verdicts[0])
        else:
            check_outcome(message)
            if is_silent(message.tenant or "public", self._silent) or (not entry.decided and self.held_bytes > self._text_room):
                for text in ("input", "output", "corrected_output"):
                    message.ClearField(text)
            made = join_outcome(entry, message, position, self._lanes[OUTCOMES])
            if entry.decided and not entry.early and entry.verdicts[0].position == position:
                example = example_of(entry, message)
        if example is not None and not is_silent(example.tenant, self._silent):
            plan.effects.append(event(EXAMPLES, example.key, example))
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
            self._known[entry.decision_id] = (segment, value)
            segment.decision_ids.append(entry.decision_id)
            segment.live += 1
            self.held_bytes += len(value) + _OVERHEAD_BYTES
            if not entry.decided:
                self._undecided[entry.decision_id] = entry.first_seen_us

    def _drop(self, decision_id: str) -> None:
        if (known := self._known.pop(decision_id, None)) is None:
            return
        self._undecided.pop(decision_id, None)
        segment, value = known
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
                if (known := self._known.get(decision_id)) is not None and known[0] is segment:
                    self._drop(decision_id)

    def unmatched(self, older_than_us: int) -> Iterator[Received]:
        """Outcomes that waited for their decision for too long, as they came; `forgotten` ends their waiting."""
        for decision_id, since_us in self._undecided.items():
            if since_us < older_than_us:
                for verdict in JoinEntry.FromString(self._known[decision_id][1]).verdicts:
                    outcome = feedback_pb2.Outcome(
                        decision_id=decision_id, tenant=verdict.tenant, success=verdict.success, reported_at_us=verdict.reported_at_us
                    )
                    if verdict.HasField("score"):
                        outcome.score = verdict.score
                    outcome.input, outcome.output, outcome.corrected_output = verdict.input, verdict.output, verdict.corrected_output
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
