"""The two Faust agents: decisions and outcomes are joined, and what they mean to each adapter is counted."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import faust
from aiokafka import TopicPartition
from faust.types import TP

from services.optimizer.settings import OptimizerSettings
from services.optimizer.stream.changelog import COUNTS, JOINS, Kept, Stamp
from services.optimizer.stream.counting import EPOCH, CountPartition, CountPlan, check_value
from services.optimizer.stream.examples import ExamplePartition
from services.optimizer.stream.joining import JoinPartition, JoinPlan, entries_of, segment_of
from services.optimizer.stream.purged import sums_alone
from services.optimizer.stream.stage import Stage, buried, written_ms
from services.optimizer.stream.transport import Place
from smoa.adapter import new_adapter_id
from smoa.errors import Unavailable
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, EXAMPLES, OUTCOMES, USAGE, Event, Received
from smoa.outbox import BATCH_BYTES, place_of
from smoa.reader import first_after, read_at
from smoa.topics import partition_of
from smoa.v1.events_pb2 import AdapterOutcome, Example
from smoa.v1.state_pb2 import AdapterCounts, CountsEpoch, Landmark, Landmarks

_log = logging.getLogger(__name__)
ELSEWHERE_S: Final = 60.0
LANDMARKS: Final = b"landmarks"
"""The join changelog's name of what its topics' logs are known by; its other names are numbers."""
FADE_EVERY_S: Final = 3600.0


Stamps: TypeAlias = tuple[Stamp, ...]
"""Of one value: more than one between writing it anew and deleting what was there."""


class _Segment(NamedTuple):
    """What the changelog knows a segment by."""

    name: bytes
    stamp: Stamp


def _is_known_by(mark: Landmark, place: Place, there: Any) -> bool:
    """Whether a log is the one that a message was read from; `there` is the message that stands in its place."""
    if not mark.written_ms or mark.offset < place.begin:
        return True  # of a log that was begun again, and nothing was read of yet; or it was deleted in its time
    return there is not None and there.offset == mark.offset and there.timestamp == mark.written_ms


def _of_its_own(one: Received) -> Received:
    """An event that is sent on to another partition, in a lane and of a producer of its own: those that came there directly may be later,
    and are counted already.
    """
    if one.topic == ADAPTER_OUTCOMES:
        effect = AdapterOutcome.FromString(one.value)
        effect.source_topic = f"{effect.source_topic}@{one.partition}"
        return one._replace(value=effect.SerializeToString())
    return one._replace(producer_id=f"{one.producer_id}@{one.partition}") if one.producer_id else one


class Join(Stage[JoinPartition[_Segment]]):
    """Decisions and outcomes in, what they mean to each adapter out."""

    topics = (DECISIONS, OUTCOMES)

    def __init__(self, app: faust.App, settings: OptimizerSettings) -> None:
        super().__init__(app, settings, JOINS)
        self._last_name = 0
        self._marked: dict[int, set[Stamp]] = {}
        """Stamps of the landmarks that are in the changelog."""

    def _check(self, one: Kept) -> None:
        if one.name == LANDMARKS:
            Landmarks.FromString(one.value)
        else:
            int(one.name)
            entries_of(one.value)

    def _made(self, partition: int, kept: Sequence[Kept]) -> JoinPartition[_Segment]:
        segments = [(_Segment(one.name, one.stamp), one.value) for one in kept if one.name != LANDMARKS]
        landmarks = [Landmarks.FromString(one.value).topics for one in kept if one.name == LANDMARKS]  # the last stands
        self._marked[partition] = {one.stamp for one in kept if one.name == LANDMARKS}
        text_room = self._settings.join_max_bytes // (2 * self._settings.partitions)
        silent, known = self._settings.silent_tenants, dict(landmarks[-1]) if landmarks else None
        return JoinPartition(partition, self._settings.partitions, segments, silent, text_room, known, self._settings.source_weights)

    def _renamed(self, kept: Sequence[Kept]) -> list[Kept]:
        return [Kept(LANDMARKS if one.name == LANDMARKS else self._next_name(), self.stamp, one.value) for one in kept]

    async def _found_again(self, partition: int, part: JoinPartition[_Segment], places: Mapping[TP, Place]) -> Mapping[TP, int]:
        """A topic that was deleted and made anew has offsets that begin again, below those that were counted; so has, for a while, one that
        lost its last part. What is read of them from now on comes after what was read, whatever its offset.
        """
        marks = {tp: mark for tp in places if (mark := part.landmarks.get(tp.topic)) is not None}
        at = {TopicPartition(*tp): mark.offset for tp, mark in marks.items() if mark.written_ms and mark.offset < places[tp].end}
        there = {TP(*tp): one for tp, one in (await read_at(self._settings.kafka, at)).items()}
        elsewhere: dict[TP, int] = {}
        for tp, mark in marks.items():
            place = places[tp]
            if _is_known_by(mark, place, there.get(tp)) and mark.offset < place.end:
                if place.offset <= mark.offset:  # the group was forgotten, not the topic, or its commit came short: all up to there is done
                    elsewhere[tp] = max(place.begin, mark.offset + 1)
                continue
            # Another message stands there, or none: the log's first one tells whether it is another log, or lost its last part.
            where = TopicPartition(*tp)
            first = (await read_at(self._settings.kafka, {where: place.begin})).get(where)
            is_same = first is not None and first.timestamp <= mark.written_ms
            _log.error("%s %d %s; what comes is counted on", *tp, "lost messages that were counted" if is_same else "was made anew")
            elsewhere[tp] = await first_after(self._settings.kafka, where, mark.written_ms) if is_same else place.begin
            part.landmarks[tp.topic] = Landmark(offset=elsewhere[tp] - 1, incarnation=mark.incarnation + 1)
        return elsewhere

    async def _open(self, partition: int, part: JoinPartition[_Segment], places: Mapping[str, int]) -> None:
        """Keep that logs begin again, after where they are read on: whoever loads between the two finds the same, and nothing was read."""
        if any(not mark.written_ms for mark in part.landmarks.values()):
            await self._write_landmarks({partition: part})

    async def _mark(self, taken: Mapping[TP, Sequence[Any]]) -> None:
        marked = {tp.partition: self.parts[tp.partition] for tp in taken}
        for tp, messages in taken.items():
            landmarks = marked[tp.partition].landmarks
            incarnation = landmarks[tp.topic].incarnation if tp.topic in landmarks else 0
            landmarks[tp.topic] = Landmark(offset=messages[-1].offset, written_ms=written_ms(messages[-1]), incarnation=incarnation)
        if marked:
            await self._write_landmarks(marked)

    async def _write_landmarks(self, marked: Mapping[int, JoinPartition[_Segment]]) -> None:
        """Make them durable, and those of earlier stamps gone."""
        await self._outbox.send(
            self._changelog.record(partition, LANDMARKS, self.stamp, Landmarks(topics=part.landmarks).SerializeToString())
            for partition, part in marked.items()
        )
        gone = [(partition, stamp) for partition in marked for stamp in self._marked.get(partition, set()) - {self.stamp}]
        self._marked.update((partition, {self.stamp}) for partition in marked)
        await self._emit([], [self._changelog.record(partition, LANDMARKS, stamp, None) for partition, stamp in gone])

    def _next_name(self) -> bytes:
        """Rises with every call, and from process to process."""
        self._last_name = max(self._last_name + 1, time.time_ns())
        return b"%020d" % self._last_name

    async def _process(self, work: Mapping[int, Sequence[Received]], done: Mapping[TP, int], letters: Sequence[Event]) -> bool:
        now_us = time.time_ns() // 1000
        plans = {partition: self.parts[partition].plan(events, now_us) for partition, events in work.items()}
        if not await self._write(plans, done):
            return False
        outgoing = list(letters)
        for plan in plans.values():
            outgoing += plan.effects
            outgoing += [buried(one, str(error)) for one, error in plan.refused]
        await self._emit(outgoing)
        await self._forward([one for plan in plans.values() for one in plan.misplaced])
        await self._sweep()
        return True

    async def _write(self, plans: Mapping[int, JoinPlan], done: Mapping[TP, int]) -> bool:
        """Make the plans so, in segments of a size that a broker takes; False when this worker must not go on."""
        segments = [
            (partition, _Segment(self._next_name(), self.stamp), entries)
            for partition, plan in plans.items()
            for entries in plan.split(BATCH_BYTES)
        ]
        if segments:
            await self._outbox.send(self._changelog.record(partition, *name, segment_of(entries)) for partition, name, entries in segments)
        if not await self._confirmed(done):
            return False
        for partition, name, entries in segments:
            self.parts[partition].apply(name, entries)
        return True

    async def _sweep(self) -> None:
        """Delete segments that hold nothing new any more."""
        for partition, part in self.parts.items():
            gone = list(part.obsolete)
            await self._emit([], [self._changelog.record(partition, *name, None) for name in gone])
            del part.obsolete[: len(gone)]

    async def tidy(self) -> None:
        """Put aside outcomes whose decision did not come in time, and forget decisions for whose outcome nobody waits any more.

        Raises:
            Unavailable: Kafka is away; the next call does the same.
        """
        async with self._lock:
            if await self.load(self.owned()) is None:
                return
            now_us = time.time_ns() // 1000
            grace_s = self._settings.join_grace_s
            share = self._settings.join_max_bytes // max(len(self.parts), 1)
            for partition, part in self.parts.items():
                self._moved()
                # A worker that was replaced must not delete what its successor needs.
                places = {tp: offset for tp, offset in self._next.items() if tp.partition == partition}
                if not await self._confirmed(places):
                    return
                part.forget(now_us - int(self._settings.join_ttl_s * 1e6), share)
                late = list(part.unmatched(now_us - int(grace_s * 1e6)))
                if late:
                    reason = f"decision_id: no decision of this id came within {grace_s:g} s; route first, or replay it when it has come"
                    await self._emit([buried(one, reason) for one in late])
                    if not await self._write({partition: part.forgotten({one.key.decode() for one in late})}, places):
                        return
            await self._sweep()


class Count(Stage[CountPartition]):
    """What events mean to each adapter in, its counts kept."""

    topics = (ADAPTER_OUTCOMES, USAGE, EXAMPLES)

    def __init__(self, app: faust.App, settings: OptimizerSettings) -> None:
        super().__init__(app, settings, COUNTS)
        self._stamps: dict[int, dict[str, Stamps]] = {}
        """Of the values that are in the changelog, by name."""
        self._same: dict[Stamps, Stamps] = {}
        """Nearly all have those of a few: they share them."""
        self._elsewhere: dict[int, tuple[float, ExamplePartition]] = {}
        """Other workers' examples by partition, and when they were read."""
        self._faded_s = -FADE_EVERY_S  # at once: the clock may have begun with this machine
        self._purged: set[str] = set()
        """Ids of those whose sums alone are to be kept."""
        self.aside: frozenset[str] = frozenset()
        """Tenants that have an incident: what is said of their answers now is set aside."""
        self.changed: set[str] = set()
        self.refused_reports = 0
        """Counts that the registry did not take: they were less than it had of the same epoch."""
        self.refused: set[str] = set()
        """Ids of the adapters whose last report it did not take."""

    def _check(self, one: Kept) -> None:
        check_value(one.name.decode(), one.value)

    def _made(self, partition: int, kept: Sequence[Kept]) -> CountPartition:
        values: dict[str, bytes] = {}
        stamps: dict[str, Stamps] = {}
        for one in kept:
            name = one.name.decode()
            values[name] = one.value  # the last stands
            stamps[name] = self._shared((*stamps.get(name, ()), one.stamp))
        self._stamps[partition] = stamps
        return self._part(values)

    def _shared(self, stamps: Stamps) -> Stamps:
        return self._same.setdefault(stamps, stamps)

    async def _open(self, partition: int, part: CountPartition, places: Mapping[str, int]) -> None:
        """Name the counts of a changelog that has just begun, before any of them is told: what came before it is not in them."""
        if part.epoch is None:
            epoch = CountsEpoch(epoch=new_adapter_id(), began_at_us=time.time_ns() // 1000, began_at_offset=places)
            await self._outbox.send([self._changelog.record(partition, EPOCH.encode(), self.stamp, epoch.SerializeToString())])
            self._stamps[partition][EPOCH] = self._shared((self.stamp,))
            part.epoch = epoch

    def _is_done(self, tp: TP, message: Any) -> bool:
        """When the group is forgotten, too, all is read again. A topic that was made anew has what was written later."""
        epoch = self.parts[tp.partition].epoch
        assert epoch is not None
        return message.offset < epoch.began_at_offset.get(tp.topic, 0) and written_ms(message) * 1000 <= epoch.began_at_us

    def _renamed(self, kept: Sequence[Kept]) -> list[Kept]:
        return [Kept(name, self.stamp, value) for name, value in {one.name: one.value for one in kept}.items()]

    async def _process(self, work: Mapping[int, Sequence[Received]], done: Mapping[TP, int], letters: Sequence[Event]) -> bool:
        now_us, partitions = time.time_ns() // 1000, self._settings.partitions
        placed: dict[int, list[Received]] = {}
        misplaced: list[Received] = []  # of a topic that has grown since: whoever counts them looks where their keys belong
        for partition, events in work.items():
            placed[partition] = []
            for one in events:
                (placed[partition] if place_of(one.key, partitions) == partition else misplaced).append(one)
        plans = {partition: self.parts[partition].plan(events, now_us, self.aside) for partition, events in placed.items()}
        if misplaced:
            if not await self._confirmed(done):
                return False
            await self._forward([_of_its_own(one) for one in misplaced])
        return await self._write(plans, done, letters)

    async def _write(self, plans: Mapping[int, CountPlan], done: Mapping[TP, int], letters: Sequence[Event] = ()) -> bool:
        """Make the plans so; False when this worker must not go on."""
        written = [(partition, name, value) for partition, plan in plans.items() for name, value in plan.values.items()]
        records = [
            self._changelog.record(partition, name.encode(), self.stamp, value) for partition, name, value in written if value is not None
        ]
        replaced = [
            (partition, name.encode(), old)
            for partition, name, value in written
            for old in self._stamps[partition].get(name, ())
            if value is None or old != self.stamp
        ]
        if records:
            await self._outbox.send(records)
        if not await self._confirmed(done):
            return False
        for partition, plan in plans.items():
            self.parts[partition].apply(plan)
            self.changed |= plan.counts.keys()
        for partition, name, value in written:
            if value is not None:
                self._stamps[partition][name] = self._shared((*self._stamps[partition].get(name, ()), self.stamp))
        outgoing = [*letters, *(buried(one, str(error)) for plan in plans.values() for one, error in plan.refused)]
        await self._emit(outgoing, [self._changelog.record(*one, None) for one in replaced])
        for partition, name, value in written:
            self._stamps[partition][name] = self._shared((self.stamp,))
            if value is None:
                del self._stamps[partition][name]
        return True

    def owns(self, adapter_id: str) -> bool:
        """True when this worker counts the adapter."""
        return partition_of(adapter_id.encode(), self._settings.partitions) in self.owned()

    def counts(self, adapter_id: str) -> AdapterCounts | None:
        """An owned adapter's counts."""
        part = self.parts.get(partition_of(adapter_id.encode(), self._settings.partitions))
        return part.get(adapter_id) if part else None

    def elsewhere(self, adapter_id: str) -> Iterator[tuple[AdapterCounts, CountsEpoch]]:
        """Counts of an adapter, with their names, that stand where its key belonged before the topics grew."""
        mine = partition_of(adapter_id.encode(), self._settings.partitions)
        for partition, part in self.parts.items():
            if partition != mine and part.epoch is not None and (counts := part.get(adapter_id)) is not None:
                yield counts, part.epoch

    def epoch_of(self, adapter_id: str) -> CountsEpoch | None:
        """What the counts of an owned adapter are called, and since when they hold everything."""
        part = self.parts.get(partition_of(adapter_id.encode(), self._settings.partitions))
        return part.epoch if part else None

    def counted_since(self, adapter_id: str) -> int | None:
        """Since when (microseconds) all that happened to an adapter is in its counts here and there; None if another worker counts it."""
        epoch = self.epoch_of(adapter_id) if self.owns(adapter_id) else None
        if epoch is None:
            return None
        return time.time_ns() // 1000 if adapter_id in self.refused else epoch.began_at_us

    def counted_from(self) -> float:
        """No adapter's counts of this worker begin before that (microseconds)."""
        return min((part.epoch.began_at_us for part in self.parts.values() if part.epoch is not None), default=math.inf)

    async def examples_of(self, key: str) -> list[Example]:
        """The examples of a key, as another worker had them `ELSEWHERE_S` ago at most.

        Raises:
            Unavailable: another worker's cannot be read.
        """
        partition, now_us = partition_of(key.encode(), self._settings.partitions), time.time_ns() // 1000
        if (part := self.parts.get(partition)) is not None:
            return part.examples.get(key, now_us)
        read_at_s, elsewhere = self._elsewhere.get(partition, (-ELSEWHERE_S, None))
        if elsewhere is None or time.monotonic() > read_at_s + ELSEWHERE_S:
            elsewhere = self._part({one.name.decode(): one.value for one in await self._changelog.read(partition)}).examples
            self._elsewhere[partition] = (time.monotonic(), elsewhere)
        return elsewhere.get(key, now_us)

    async def tidy(self) -> None:
        """Once an hour, forget what is older than examples are kept for, and what is not needed of adapters that were purged.

        Raises:
            Unavailable: Kafka is away; the next call does the same.
        """
        if time.monotonic() < self._faded_s + FADE_EVERY_S:
            return
        async with self._lock:
            if await self.load(self.owned()) is None:
                return
            try:
                if all([await self._tidy_one(partition) for partition in self.parts]):
                    self._faded_s = time.monotonic()
                    self._purged.clear()
            except Unavailable:
                self._failures += 1  # what is sent again must not be taken for what was sent first
                raise

    async def _tidy_one(self, partition: int) -> bool:
        part = self.parts[partition]
        self._moved()
        places = {tp: offset for tp, offset in self._next.items() if tp.partition == partition}
        plan = CountPlan.of_examples(await asyncio.to_thread(part.examples.faded, time.time_ns() // 1000))
        for adapter_id in self._purged:
            if (counts := part.get(adapter_id)) is not None and counts != (sums := sums_alone(counts)):
                plan.counts[adapter_id], plan.values[adapter_id] = sums, sums.SerializeToString()
        # What is gone from memory and not from the changelog: its deletion failed.
        plan.values.update((name, None) for name in self._stamps[partition] if name not in part)
        return not plan.values or await self._write({partition: plan}, places)

    def _part(self, values: Mapping[str, bytes]) -> CountPartition:
        room = self._settings.examples_max_bytes // self._settings.partitions
        settings = self._settings
        return CountPartition(settings.half_life_s, values, room, settings.examples_retention_s, settings.silent_tenants)

    def forget(self, adapter_ids: Iterable[str]) -> None:
        """Keep only the sums of adapters that were purged so long ago that no event of them can come: with the next tidying."""
        self._purged.update(one for one in adapter_ids if self.counts(one) is not None)

    def all_counted(self) -> Iterator[str]:
        """Ids of the adapters with counts that this worker owns."""
        for part in self.parts.values():
            yield from part
