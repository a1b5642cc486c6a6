"""The Faust agent that counts what decisions and outcomes mean to each adapter."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import faust
from faust.types import TP

from services.optimizer.settings import OptimizerSettings
from services.optimizer.stream.changelog import COUNTS, Kept, Stamp
from services.optimizer.stream.counting import EPOCH, CountPartition, CountPlan, check_value
from services.optimizer.stream.examples import ExamplePartition
from services.optimizer.stream.purged import sums_alone
from services.optimizer.stream.stage import Stage, buried, written_ms
from smoa.adapter import new_adapter_id
from smoa.errors import Unavailable
from smoa.events import ADAPTER_OUTCOMES, EXAMPLES, USAGE, Event, Received
from smoa.outbox import place_of
from smoa.topics import partition_of
from smoa.v1.events_pb2 import AdapterOutcome, Example
from smoa.v1.state_pb2 import AdapterCounts, CountsEpoch

ELSEWHERE_S: Final = 60.0
FADE_EVERY_S: Final = 3600.0
Stamps: TypeAlias = tuple[Stamp, ...]
"""Of one value: more than one between writing it anew and deleting what was there."""


def _of_its_own(one: Received) -> Received:
    """An event that is sent on to another partition, in a lane and of a producer of its own: those that came there directly may be later,
    and are counted already.
    """
    if one.topic == ADAPTER_OUTCOMES:
        effect = AdapterOutcome.FromString(one.value)
        effect.source_topic = f"{effect.source_topic}@{one.partition}"
        return one._replace(value=effect.SerializeToString())
    return one._replace(producer_id=f"{one.producer_id}@{one.partition}") if one.producer_id else one


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
