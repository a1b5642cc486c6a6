"""What the Faust agents share: state that is a worker's by partition and generation (docs/decisions/0002 says why it is written this way).

A batch goes in steps, each durable before the next: the new state to the changelog; the coordinator confirms that this worker is still
the owner; then what the batch emits; then the commit of its end. Any failure begins the batch again, and whoever repeats it, this worker
or its successor, comes to the same. Faust's own commits are off: they go by what its streams acknowledge, also what they passed over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence, Sized
from typing import Any, Final, Generic, TypeVar

import faust
from aiokafka import ConsumerRecord
from faust.types import TP

from services.optimizer.settings import OptimizerSettings
from services.optimizer.stream.changelog import Changelog, Kept, Stamp, stamp_of
from services.optimizer.stream.transport import Consumer, Place
from smoa.dead_letters import letter, shortened
from smoa.errors import InvalidArgument, Unavailable
from smoa.events import DEAD_LETTER, TYPES, Event, Received, event, headers, unpack
from smoa.outbox import Outbox, Record, Refused, records_of
from smoa.reader import read_range
from smoa.service import end_now
from smoa.topics import Topic, partition_of

_log = logging.getLogger(__name__)
MESSAGES_AT_ONCE: Final = 256
"""Most messages of a batch; each may hold many events."""
WITHIN_S: Final = 0.05
ADOPTED_AT_ONCE: Final = 1000
GAP_AT_ONCE: Final = 1000
"""Messages that are read at a time of those that did not come by themselves."""
RETRY_S: Final = (0.1, 5.0)
QUIET_S: Final = 3.0
"""After so long without a message from a partition a stage looks whether there are any."""

P = TypeVar("P", bound=Sized)


class Stage(ABC, Generic[P]):
    """What the join and the counter have in common: whose a partition is, where its state comes from, and when a batch is done."""

    topics: tuple[str, ...]

    def __init__(self, app: faust.App, settings: OptimizerSettings, changelog: Topic) -> None:
        self._app, self._settings = app, settings
        self._changelog = Changelog(settings.kafka, changelog.name, self._check)
        self._outbox = Outbox(settings.kafka)
        self._lock = asyncio.Lock()
        self._moved()
        self._heard_s: dict[TP, float] = {}
        self._failures = 0
        self._refused_s: float | None = None
        """When the batch that is not confirmed was refused first."""
        self.done_events = self.dead_letters = self.begun_again = 0
        self.generation = -1
        self.parts: dict[int, P] = {}
        self._next: dict[TP, int] = {}
        """Where each partition's reading goes on."""
        self._went_back: set[TP] = set()
        self._to_commit: dict[TP, int] = {}
        # Keys and values stay bytes (the app's serialisers are raw). No Schema object: one that is shared stops the stream silently.
        topic = app.topic(*self.topics, key_type=bytes, value_type=bytes, allow_empty=True)
        app.agent(topic, name=type(self).__name__.lower())(self.run)

    def owned(self) -> set[int]:
        """The partitions that are this worker's."""
        return {tp.partition for tp in self._app.consumer.assignment() if tp.topic == self.topics[0]}

    async def run(self, stream: Any) -> None:
        """The agent."""
        try:
            async for events in stream.take_events(MESSAGES_AT_ONCE, within=WITHIN_S):
                await self._finish([one.message for one in events])
        except Exception:  # noqa: BLE001 - not to go on
            # Faust acknowledges a batch whose agent fails, and goes on without it. Ending at once leaves it to be read again.
            _log.exception("the %s cannot go on; this worker ends, and its successor begins with this batch", type(self).__name__)
            end_now(70)

    def lag(self) -> dict[str, int]:
        """Messages of each topic that were there at the last fetch and are not done, in this worker's partitions. From any thread."""
        found = dict.fromkeys(self.topics, 0)
        for tp, place in list(self._next.items()):
            found[tp.topic] += max(0, self._consumer.newest(tp) - place)
        return found

    async def _finish(self, messages: Sequence[Any]) -> None:
        delay_s = RETRY_S[0]
        self._refused_s = None
        while True:
            try:
                async with self._lock:
                    if await self._attempt(messages):
                        self._refused_s = None
                        return
                self._refused_s = self._refused_s or time.monotonic()
                self.begun_again += 1
            except Unavailable as error:
                self._failures += 1
                self.begun_again += 1
                _log.warning("a batch of %d messages begins again: %s", len(messages), error)
            await asyncio.sleep(delay_s)  # Kafka is away, or the group is being shared out anew: neither tells when it is over
            delay_s = min(2 * delay_s, RETRY_S[1])

    @property
    def refused_s(self) -> float:
        """For how long the coordinator has not confirmed a batch."""
        return 0.0 if self._refused_s is None else time.monotonic() - self._refused_s

    @property
    def is_member(self) -> bool:
        """True while this worker's state is of the generation that its client is in."""
        return self.generation == self._app.consumer_generation_id and self._consumer.is_member(self.generation)

    def outlived(self, partitions: int) -> str:
        """Why this worker must begin anew; nothing if it need not."""
        return self._consumer.outlived(self.topics, partitions)

    def rejoin(self) -> None:
        """Have the group share out its partitions anew."""
        self._consumer.rejoin()

    def _moved(self) -> None:
        self._moved_s = time.monotonic()

    @property
    def still_s(self) -> float:
        """For how long a batch has been at one step. Every step has a deadline of its own, so this tells of a fault."""
        return time.monotonic() - self._moved_s if self._lock.locked() else 0.0

    async def _attempt(self, messages: Sequence[Any]) -> bool:
        self._moved()
        mine = await self.load({message.partition for message in messages})
        if mine is None:
            return False
        taken, whole = await self._in_order([one for one in messages if one.generation_id == self.generation and one.partition in mine])
        self._heard_s |= dict.fromkeys((tp for tp, several in taken.items() if several), self._moved_s)  # not of what is dropped
        return await self._carry_out(taken) and whole

    async def _carry_out(self, taken: Mapping[TP, Sequence[Any]]) -> bool:
        """Do what follows from each partition's next messages, and commit that; False when this worker must not go on."""
        begins = {tp: self._next[tp] for tp in taken}
        ends = {tp: several[-1].offset + 1 for tp, several in taken.items()}
        work: defaultdict[int, list[Received]] = defaultdict(list)
        letters: list[Event] = []
        for tp, several in taken.items():
            for one in several:
                place = (tp.topic, tp.partition, one.offset)
                if self._is_done(tp, one):
                    continue
                try:
                    work[tp.partition] += unpack(*place, one.key, one.value, _headers(one))
                except InvalidArgument as error:
                    letters.append(buried(Received(*place, 0, one.key or b"", one.value or b"", "", 0), str(error)))
        if taken and not await self._process(work, begins, letters):
            return False
        await self._mark(taken)
        self.done_events += sum(map(len, work.values()))
        self._next |= ends
        self._to_commit |= ends
        if self._to_commit:
            if not await self._confirmed(self._to_commit):
                return False
            self._to_commit = {}
        return True

    async def catch_up(self) -> None:
        """Read from the log what is there and was not handed on: Faust passes over messages, and if they are the last of a partition,
        nothing follows that would show it.

        Raises:
            Unavailable: Kafka does not answer.
        """
        generation, now_s = self.generation, time.monotonic()
        quiet = [tp for tp in self._next if now_s >= self._heard_s[tp] + QUIET_S]
        if not quiet:
            return
        ends = await self._consumer.ends(quiet)
        async with self._lock:
            self._moved()
            if generation != self.generation or await self.load(self.owned()) is None:
                return
            self._heard_s |= dict.fromkeys(quiet, self._moved_s)
            try:
                for tp, end in ends.items():
                    begin = self._next[tp]
                    if begin < end and not await self._read_on(tp, begin, end):
                        return
                    if begin <= end:
                        self._went_back.discard(tp)
                    elif tp in self._went_back:  # not only while a new leader finds out where its log ends
                        _log.error(
                            "%s %d ends at %d, where %d was read; this worker ends, and its successor finds out why", *tp, end, begin
                        )
                        end_now(70)
                    else:
                        self._went_back.add(tp)
            except Unavailable:
                self._failures += 1  # what is sent again must not be taken for what was sent first
                raise

    async def _read_on(self, tp: TP, begin: int, end: int) -> bool:
        """A batch of what stands at [begin, end); False when this worker must not go on."""
        self._moved()
        found = await read_range(self._settings.kafka, *tp, begin, end, MESSAGES_AT_ONCE)
        _log.info("%s %d: the client passed over %d to %d; %d messages are read from the log now", *tp, begin, end, len(found))
        if not found:
            self._next[tp] = end  # a hole, which nothing will come from
            return True
        return await self._carry_out({tp: found})

    async def _in_order(self, messages: Sequence[Any]) -> tuple[dict[TP, list[Any]], bool]:
        """The messages by where they stand, none twice and none left out, and whether that is all of them.

        Faust passes over messages while the group is being shared out anew, and relies on seeking back afterwards; messages that it has
        fetched by then keep it from reading them again. Effects must not overtake each other, so what it left out is read from the log.
        """
        taken: defaultdict[TP, list[Any]] = defaultdict(list)
        for one in messages:
            tp = TP(one.topic, one.partition)
            wanted = taken[tp][-1].offset + 1 if taken.get(tp) else self._next[tp]
            if one.offset > wanted and not self._consumer.is_hole(tp, wanted, one.offset):
                left_out = await read_range(self._settings.kafka, *tp, wanted, one.offset, GAP_AT_ONCE)
                _log.info(
                    "%s %d: Kafka's client passed over %d to %d; %d messages are read from the log now",
                    *tp,
                    wanted,
                    one.offset,
                    len(left_out),
                )
                taken[tp] += left_out
                if len(left_out) == GAP_AT_ONCE:
                    return dict(taken), False
            if one.offset >= wanted:
                taken[tp].append(one)
        return dict(taken), True

    @property
    def _consumer(self) -> Consumer:
        consumer = self._app.consumer
        assert isinstance(consumer, Consumer)
        return consumer

    async def load(self, wanted: set[int]) -> set[int] | None:
        """Read what is not in memory of this generation's state; returns which of the wanted are this worker's, or None when it changes.

        Raises:
            Unavailable: a changelog cannot be read.
        """
        generation = int(self._app.consumer_generation_id)
        if not self._consumer.is_member(generation):
            return None  # before anything is written: what is refused is written again at every try
        if generation != self.generation:
            self.generation = generation
            self.parts, self._next, self._to_commit, self._heard_s = {}, {}, {}, {}
            self._went_back = set()
        mine = wanted & self.owned()
        lacking = sorted(mine - self.parts.keys())
        if not lacking:
            return mine
        self._moved()
        # All at once: the request waits its turn behind a fetch, which takes 1.5 s where nothing comes.
        everywhere = await self._consumer.places([TP(topic, partition) for topic in self.topics for partition in lacking])
        for partition in lacking:
            began = time.monotonic()
            kept = await self._changelog.read(partition, self._moved)
            found = {tp: place for tp, place in everywhere.items() if tp.partition == partition}
            places = {tp: place.offset for tp, place in found.items()}
            if kept and kept[-1].stamp.generation > generation:
                if not await self._confirmed(places):  # this worker has been replaced
                    return None
                await self._adopt(partition, kept)  # the broker had forgotten the group, and counts its generations anew
                return None
            part = await asyncio.to_thread(self._made, partition, kept)
            if elsewhere := await self._found_again(partition, part, found):
                places |= elsewhere
                if not await self._confirmed(places):
                    return None
            await self._open(partition, part, {tp.topic: offset for tp, offset in places.items()})
            self.parts[partition] = part
            self._next |= places
            self._heard_s |= dict.fromkeys(places, time.monotonic())
            _log.info("%s %d: %d values in %.1f s", self._changelog.topic, partition, len(part), time.monotonic() - began)
        return mine if generation == int(self._app.consumer_generation_id) else None

    async def _adopt(self, partition: int, kept: Sequence[Kept]) -> None:
        """Write values under this worker's stamp. What fails in the middle is done again."""
        _log.warning("%s %d is of a later generation than the group's: taken over", self._changelog.topic, partition)
        mine = [self._changelog.record(partition, *one) for one in self._renamed(kept)]
        theirs = [self._changelog.record(partition, one.name, one.stamp, None) for one in kept if one.stamp != self.stamp]
        for records in (mine, theirs):
            for start in range(0, len(records), ADOPTED_AT_ONCE):
                self._moved()
                await self._outbox.send(records[start : start + ADOPTED_AT_ONCE])

    @property
    def stamp(self) -> Stamp:
        """What this worker writes under."""
        return stamp_of(self.generation, self._failures)

    async def loaded(self) -> bool:
        """Load all that is this worker's; False while it changes."""
        async with self._lock:
            self._moved()
            return await self.load(self.owned()) is not None

    async def close(self) -> None:
        """Let the producer go."""
        await self._outbox.close()

    async def _confirmed(self, done: Mapping[TP, int]) -> bool:
        return await self._consumer.confirm(self.generation, done)

    @abstractmethod
    def _check(self, one: Kept) -> None:
        """Raise DecodeError or ValueError for a record that is none."""

    @abstractmethod
    def _made(self, partition: int, kept: Sequence[Kept]) -> P: ...

    async def _open(self, partition: int, part: P, places: Mapping[str, int]) -> None:
        """What is to be done before a partition's state is used; `places` is where its reading goes on, by topic."""

    def _is_done(self, tp: TP, message: Any) -> bool:
        """Whether a message that comes was done by those before this state began."""
        return False

    async def _found_again(self, partition: int, part: P, places: Mapping[TP, Place]) -> Mapping[TP, int]:
        """Where the reading goes on elsewhere than at the commit, for it is of another log."""
        return {}

    async def _mark(self, taken: Mapping[TP, Sequence[Any]]) -> None:
        """Note what logs are known by later, beside the commit."""

    @abstractmethod
    def _renamed(self, kept: Sequence[Kept]) -> list[Kept]:
        """The same values under this worker's stamp, whose order among each other their names keep."""

    @abstractmethod
    async def _process(self, work: Mapping[int, Sequence[Received]], done: Mapping[TP, int], letters: Sequence[Event]) -> bool: ...

    async def _emit(self, events: Sequence[Event], tombstones: Sequence[Record] = ()) -> None:
        self.dead_letters += sum(one.topic == DEAD_LETTER for one in events)
        try:
            await self._send(events, tombstones)
        except Refused:
            if not any(one.topic == DEAD_LETTER for one in events):
                raise
            await self._send([shortened(one) if one.topic == DEAD_LETTER else one for one in events], tombstones)

    async def _send(self, events: Sequence[Event], tombstones: Sequence[Record]) -> None:
        records = records_of([(one, 0) for one in events], dict.fromkeys((one.topic for one in events), self._settings.partitions))
        if records or tombstones:
            await self._outbox.send([*records, *tombstones])

    async def _forward(self, misplaced: Sequence[Received]) -> None:
        """Send events that are not in their key's partition to it, as those of their producers: what was counted stays so."""
        partitions = self._settings.partitions
        await self._outbox.send(
            Record(
                one.topic,
                partition_of(one.key, partitions),
                one.key,
                one.value,
                headers(TYPES[one.topic].DESCRIPTOR.full_name, one.producer_id, one.sequence),
            )
            for one in misplaced
        )


def buried(one: Received, reason: str) -> Event:
    """An event that cannot be used, kept with the reason; the stream goes on."""
    _log.warning("to %s: %s %d:%d.%d: %s", DEAD_LETTER, one.topic, one.partition, one.offset, one.place, reason)
    return event(DEAD_LETTER, f"{one.topic}:{one.partition}:{one.offset}:{one.place}", letter(one, reason, time.time_ns() // 1000))


def written_ms(message: Any) -> int:
    """When a message was written; Faust has it in seconds."""
    return int(message.timestamp if isinstance(message, ConsumerRecord) else (message.timestamp or 0) * 1000)


def _headers(message: Any) -> list[tuple[str, bytes | None]]:
    found: Any = message.headers or {}
    return list(found.items() if isinstance(found, dict) else found)
