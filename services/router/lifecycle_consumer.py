"""What happens elsewhere and matters here: adapters that other replicas changed, outcomes as they are counted, a new ranker, executors.

Every replica reads all of these topics, in no consumer group. It starts at the end of the lifecycle topic (what is older is in the index,
but for a ranker that was published while it was down) and an hour back in the outcomes, so that a restart does not forget how adapters do
of late. While Kafka is away, other replicas' changes are not heard of, and a cached answer may be as old as its time to live; whatever was
missed is read when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from google.protobuf.message import Message

from services.router.catalogue.changes import ARRIVALS
from services.router.catalogue.port import Catalogue, Document
from services.router.catalogue.records import pool_named
from services.router.catalogue.retrying import until_taken
from services.router.learning.ranker import BUILTIN, Ranker
from services.router.routing.executors import Executor
from services.router.routing.router import Router
from services.router.routing.strategies.learned import Taught
from smoa.errors import InvalidArgument, SmoaError, Unavailable
from smoa.events import ADAPTER_OUTCOMES, EXECUTORS, LIFECYCLE, decode, unpack
from smoa.identifiers import check_ulid
from smoa.kafka import Kafka
from smoa.model_shape import ModelShape
from smoa.reader import let_go
from smoa.tasks import begin, connected, end
from smoa.topics import partition_of
from smoa.v1 import events_pb2

_log = logging.getLogger(__name__)
_ERRORS = (KafkaError, OSError, asyncio.TimeoutError, SmoaError)
RANKER_ID: Final = "00000000000000000000RANKER"
"""The document that keeps the published ranker; a ULID, as all of them are."""
RANKER_KEY: Final = "ranker"
OUTCOMES_BACK_S: Final = 3600.0
_AT_ONCE: Final = 500  # messages between two looks at where they come from
_EVENTS_AT_ONCE: Final = 256  # between two looks at what else there is to do: a millisecond or two
_ARRIVALS: Final = frozenset(events_pb2.LifecycleAction.Value(f"LIFECYCLE_ACTION_{action.upper()}") for action in ARRIVALS)


async def published_ranker(catalogue: Catalogue) -> Ranker | None:
    """The ranker that was published last.

    Raises:
        InvalidArgument: it is of another version.
    """
    found = await catalogue.get_document("ranker", RANKER_ID)
    return Ranker.from_bytes(str(found.body["artefact"]).encode()) if found else None


class LifecycleConsumer:
    """Owns one consumer, and tells the router."""

    def __init__(
        self,
        kafka: Kafka | str,
        router: Router,
        catalogue: Catalogue,
        near: Catalogue,
        own_producer_id: str,
        want: Callable[[str], None] | None = None,
        timeout_s: float = 10.0,
        executors: Sequence[str] = (),
    ) -> None:
        """`near` is what routing reads. Where it is a copy, `want` has an adapter copied, and who copies it tells the router. Of executors,
        those whose addresses fit one of the patterns are believed; all, if there are none.
        """
        self._kafka, self._router, self._catalogue, self._near = Kafka.at(kafka), router, catalogue, near
        self._want, self._timeout_s, self._executors = want, timeout_s, executors
        self._unkept: Ranker | None = None
        self._own = ("smoa-producer", own_producer_id.encode())
        self._following: dict[TopicPartition, int] = {}
        self._task: asyncio.Task[None] | None = None
        self.refused = 0
        """Messages that could not be read; they stay on their topic."""

    async def start(self) -> None:
        """Take the published ranker, and begin to listen."""
        await self.take_kept_ranker()
        self._task = begin(self._run(), "lifecycle-consumer")

    async def take_kept_ranker(self) -> None:
        """Decide with the ranker that the library keeps, unless another one has been announced meanwhile."""
        try:
            if self._router.learned.ranker.version == BUILTIN:
                self._router.learned.ranker = await published_ranker(self._near) or self._router.learned.ranker
        except InvalidArgument as error:
            _log.warning("%s; the learned strategy goes on untrained", error)

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            await end(self._task)

    async def _run(self) -> None:
        delay_s = 0.1
        while True:
            consumer = AIOKafkaConsumer(
                LIFECYCLE,
                ADAPTER_OUTCOMES,
                EXECUTORS,
                **self._kafka.options(),
                enable_auto_commit=False,
                auto_offset_reset="earliest",  # of a topic that was made anew; where else to begin, `_place` says
                isolation_level="read_committed",
                metadata_max_age_ms=10_000,
            )
            try:
                async with asyncio.timeout(self._timeout_s):
                    await connected(consumer.start())
                await self._listen(consumer)
            except _ERRORS as error:
                _log.info("news from %s cannot be read or kept (%r); other replicas' changes show late", self._kafka, error)
            finally:
                await let_go(consumer, self._timeout_s)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 5.0)

    async def _listen(self, consumer: AIOKafkaConsumer) -> None:
        placed: frozenset[TopicPartition] = frozenset()
        while True:
            if (assigned := frozenset(consumer.assignment())) != placed:  # topics appear, and grow, after the start
                await self._place(consumer, assigned)
                placed = assigned
            batch = await consumer.getmany(timeout_ms=500, max_records=_AT_ONCE)
            if consumer.assignment() != placed:
                continue  # the client has forgotten every position: what it read last may lie behind a gap
            for partition, messages in batch.items():
                for message in messages:
                    await self._read(message)
                    self._following[partition] = message.offset + 1
                    await asyncio.sleep(0)
            await self._keep_ranker()
            await asyncio.sleep(0)

    async def _place(self, consumer: AIOKafkaConsumer, partitions: frozenset[TopicPartition]) -> None:
        """Go to where each was left; else, at first, to its end, or where there is something older to know; one that is new, from its
        beginning.
        """
        placed, now_ms = dict[TopicPartition, int](), int(time.time() * 1000)
        ends = await consumer.end_offsets(list(partitions)) if partitions else {}  # before anything is looked for: what comes now is read
        outcomes = {one: now_ms - int(OUTCOMES_BACK_S * 1000) for one in partitions if one.topic == ADAPTER_OUTCOMES}
        back = await consumer.offsets_for_times(outcomes) if outcomes else {}
        rankers = partition_of(RANKER_KEY.encode(), max(1, sum(one.topic == LIFECYCLE for one in partitions)))
        for partition in partitions:
            if partition in self._following:
                consumer.seek(partition, self._following[partition])
            elif (found := back.get(partition)) is not None:
                consumer.seek(partition, found.offset)
            elif self._following:
                await consumer.seek_to_beginning(partition)
            else:
                if partition == TopicPartition(LIFECYCLE, rankers):
                    await self._take_last_ranker(consumer, partition, ends[partition])
                consumer.seek(partition, ends[partition])
            async with asyncio.timeout(self._timeout_s):
                placed[partition] = await consumer.position(partition)
        if not self._following:
            self._router.cache.clear()  # what changed before this moment, and after a cached answer, is not heard of
        self._following |= placed  # all or none: what was placed half would pass for a topic that grew

    async def _take_last_ranker(self, consumer: AIOKafkaConsumer, partition: TopicPartition, end: int) -> None:
        """One may have been published while this router was down; what else is in its partition before `end` was in the index by then."""
        last = None
        await consumer.seek_to_beginning(partition)
        while await consumer.position(partition) < end:
            for messages in (await consumer.getmany(partition, timeout_ms=500, max_records=_AT_ONCE)).values():
                last = next((one for one in reversed(messages) if one.key == RANKER_KEY.encode() and one.offset < end), last)
            await asyncio.sleep(0)
        if last is not None:
            await self._read(last)

    async def _read(self, message: ConsumerRecord[bytes, bytes]) -> None:
        if message.value is None or self._own in message.headers:  # a tombstone; or this router's own news
            return
        try:
            events = unpack(message.topic, message.partition, message.offset, message.key, message.value, message.headers)
            for number, one in enumerate(events, 1):
                await self._take(decode(one.topic, one.value))
                if number % _EVENTS_AT_ONCE == 0:
                    await asyncio.sleep(0)  # a message may hold tens of thousands
        except InvalidArgument as error:
            self.refused += 1
            _log.warning("%s/%d/%d was not understood: %s", message.topic, message.partition, message.offset, error)
        except _ERRORS:
            raise
        except Exception:  # noqa: BLE001  a bug that one message finds must not end the feed of all that come after it
            self.refused += 1
            _log.exception("%s/%d/%d was left out", message.topic, message.partition, message.offset)

    async def _take(self, event: Message) -> None:
        if isinstance(event, events_pb2.AdapterOutcome):
            # Of a trial's control that adapter was not asked; a correction is for `smoa router learn`, which takes what stands.
            if event.HasField("success") and not event.trial.control and not event.HasField("corrects"):
                taught = Taught(event.success, min(max(event.weight, 0.0), 1.0), event.context, event.expected, event.user)
                self._router.learned.observe(event.tenant, event.adapter_id, taught, used=not event.taught)
                if event.HasField("closeness"):
                    close = event.closeness
                    self._router.judge.thresholds.observe(
                        event.tenant, event.base_model, close.value, close.stands_for, right=event.success
                    )
        elif isinstance(event, events_pb2.LifecycleEvent):
            await self._changed(event)
        elif isinstance(event, events_pb2.ExecutorStatus):
            self._reported(event)

    def _reported(self, status: events_pb2.ExecutorStatus) -> None:
        if self._executors and not any(fnmatchcase(status.address, pattern) for pattern in self._executors):
            raise InvalidArgument("address", f"{status.address!r} is none of SMOA_ROUTER_EXECUTORS", "correct one of the two")
        if status.leaving:
            self._router.executors.leave(status.address)
            return
        load = (status.running + status.waiting) / max(status.rows, 1)
        active, hosted = frozenset(status.active), frozenset(status.hosted)
        shape = ModelShape.from_message(status.model) if status.HasField("model") else None
        self._router.executors.report(
            Executor(
                status.address,
                status.base_model,
                status.free_slots,
                active,
                hosted,
                load,
                status.reported_at_us,
                shape,
                status.base_model_name,
            ),
            now_us=time.time_ns() // 1000,
        )

    async def _keep_ranker(self) -> None:
        """Write down the ranker that was announced last; again later, if the catalogue is away: it decides meanwhile."""
        if (ranker := self._unkept) is not None:
            with suppress(Unavailable):
                await until_taken(lambda: self._keep(ranker))
                self._unkept = None

    async def _keep(self, ranker: Ranker) -> None:
        there = await self._catalogue.get_document("ranker", RANKER_ID) or Document(RANKER_ID, "", {})
        await self._catalogue.write_document("ranker", there._replace(body={"artefact": ranker.to_bytes().decode()}))

    async def _changed(self, event: events_pb2.LifecycleEvent) -> None:
        if event.action == events_pb2.LIFECYCLE_ACTION_RANKER_PUBLISHED:
            self._router.learned.ranker = self._unkept = ranker = Ranker.from_bytes(event.ranker)
            await self._keep_ranker()
            _log.info("the learned strategy decides with ranker %s now", ranker.version)
            return
        check_ulid(event.adapter_id)
        if self._want is not None:
            self._want(event.adapter_id)
        else:
            pool = pool_named(event.tenant, event.base_model, shared=event.shared)
            self._router.adapter_changed(event.adapter_id, pool, arrived=event.action in _ARRIVALS)
            if event.action == events_pb2.LIFECYCLE_ACTION_CANARY and (there := await self._catalogue.get(event.adapter_id)) is not None:
                self._router.canaries.update([there[0]])
