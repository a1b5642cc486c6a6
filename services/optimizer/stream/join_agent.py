"""The Faust agent that joins decisions with outcomes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import faust
from aiokafka import TopicPartition
from faust.types import TP

from services.optimizer.settings import OptimizerSettings
from services.optimizer.stream.changelog import JOINS, Kept, Stamp
from services.optimizer.stream.joining import JoinPartition, JoinPlan, entries_of, segment_of
from services.optimizer.stream.stage import Stage, buried, written_ms
from services.optimizer.stream.transport import Place
from smoa.events import DECISIONS, OUTCOMES, Event, Received
from smoa.outbox import BATCH_BYTES
from smoa.reader import first_after, read_at
from smoa.v1.state_pb2 import Landmark, Landmarks

_log = logging.getLogger(__name__)
LANDMARKS: Final = b"landmarks"
"""The join changelog's name of what its topics' logs are known by; its other names are numbers."""


class _Segment(NamedTuple):
    """What the changelog knows a segment by."""

    name: bytes
    stamp: Stamp


def _is_known_by(mark: Landmark, place: Place, there: Any) -> bool:
    """Whether a log is the one that a message was read from; `there` is the message that stands in its place."""
    if not mark.written_ms or mark.offset < place.begin:
        return True  # of a log that was begun again, and nothing was read of yet; or it was deleted in its time
    return there is not None and there.offset == mark.offset and there.timestamp == mark.written_ms


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
