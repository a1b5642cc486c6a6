"""Faust's Kafka transport, mended in two places where a starting worker lost events (docs/decisions/0002).

When partitions are assigned, Faust reads its changelogs, then opens the stream partitions and seeks them to their committed offsets, and
only then lets the flow go on. (1) What is fetched between opening and the end of the seek is handed to streams that do not take it yet,
and counts as read. (2) aiokafka's `seek_to_committed` leaves a partition alone whose commit is absent or 0, wherever it stands.
Seen as 230 to 850 lost events of 10,000 when a worker was killed in traffic.

What Faust and aiokafka keep to themselves is used in this module only, in `smoa.coordinator` and in `smoa.reader`, and each such name is in
`tests/unit/test_private_names.py`, which fails where a version has it no more; both are pinned exactly.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import aiokafka
import faust
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.auth import OAuthCredentials, SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.auth import CredentialsT
from faust.types.tuples import ack_lock

import smoa.coordinator  # noqa: F401  for its effect
from smoa.errors import Unavailable
from smoa.kafka import Kafka
from smoa.outbox import KAFKA_ERRORS

_log = logging.getLogger(__name__)
ANSWER_S: Final = 10.0
MAX_HOLES: Final = 10_000
"""Of a partition that are remembered."""
T = TypeVar("T")


def _take_error(coordinator: GroupCoordinator) -> None:
    try:
        coordinator.check_errors()
    except KafkaError as error:
        _log.warning("the group's client goes on after %r", error)
        coordinator.request_rejoin()  # a beat that failed for good is begun again by joining only


class Place(NamedTuple):
    """Where the reading of a partition goes on, and where its log begins and ends."""

    offset: int
    begin: int
    end: int


class _Thread(driver.AIOKafkaConsumerThread):
    """Reads what was committed by transactional producers only, and remembers where a log has holes: of what was not committed, and of the
    marks that end a transaction.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.holes: defaultdict[TP, dict[int, int]] = defaultdict(dict)
        self._ends: dict[TP, int] = {}
        self._newest_ms: dict[TP, int] = {}
        self.remade: set[TP] = set()
        """Where a message that was written after all others stands before them: it is of another log."""

    def _create_worker_consumer(self, transport: driver.Transport) -> aiokafka.AIOKafkaConsumer:
        made = super()._create_worker_consumer(transport)
        made._isolation_level = "read_committed"  # Faust has it for workers that write in transactions themselves only
        return made

    async def _fetch_records(self, consumer: Any, *args: Any, **kwargs: Any) -> Any:
        subscription = consumer._subscription.subscription
        for place in subscription.assignment.tps if subscription is not None and subscription.assignment is not None else ():
            state = subscription.assignment.state_value(place)
            if TP(*place) not in self._ends and state is not None and state.has_valid_position:
                self._ends[TP(*place)] = state.position  # where it begins, a hole may stand, too
        found = await super()._fetch_records(consumer, *args, **kwargs)
        for place, records in found.items():
            tp = TP(*place)
            holes, end, newest_ms = self.holes[tp], self._ends.get(tp), self._newest_ms.get(tp, 0)
            for one in records:
                if end is not None and one.offset > end:
                    holes[end] = one.offset
                elif end is not None and one.offset < end and one.timestamp > newest_ms:
                    self.remade.add(tp)
                end, newest_ms = one.offset + 1, max(newest_ms, one.timestamp)
            self._newest_ms[tp] = newest_ms
            if end is not None:
                self._ends[tp] = end
            while len(holes) > MAX_HOLES:
                del holes[next(iter(holes))]
        return found


class Consumer(driver.Consumer):
    """See the module."""

    _thread: _Thread
    logger = logging.getLogger("mode.consumer")  # else what every Faust service says of its start and end is said in this module's name

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    def outlived(self, topics: Sequence[str], partitions: int) -> str:
        """Why a worker that began with so many partitions of some topics must begin anew; nothing if it need not."""
        client: Any = getattr(self._thread._consumer, "_client", None)
        for topic in topics if client is not None else ():
            there = len(client.cluster.partitions_for_topic(topic) or ())
            if there > partitions:
                return f"{topic} has {there} partitions, and had {partitions}"
        if remade := next(iter(self._thread.remade), None):
            return f"{remade.topic} {remade.partition} was made anew"
        return ""

    def is_hole(self, tp: TP, begin: int, end: int) -> bool:
        """True if the client has seen that there is nothing for readers at [begin, end)."""
        return self._thread.holes[tp].get(begin) == end

    async def confirm(self, generation: int, done: Mapping[TP, int]) -> bool:
        """Ask the group's coordinator, by committing what is `done` (the next offsets), whether this worker still owns what it did.

        True means that at some moment after the call began, no other worker had these partitions, and none can have read a changelog
        before that.

        Raises:
            Unavailable: no answer.
        """
        return await self._ask(self._confirm(generation, done), "the group's coordinator does not answer")

    async def places(self, where: Sequence[TP]) -> dict[TP, Place]:
        """Where reading goes on: at the group's commit, or, where there is none or it cannot be of this log, at the beginning.

        Raises:
            Unavailable: no answer.
        """
        return await self._ask(self._places(where), f"no commits of {where[0].topic}")

    async def ends(self, where: Sequence[TP]) -> dict[TP, int]:
        """The next offset that the log of each will give.

        Raises:
            Unavailable: no answer.
        """
        return await self._ask(self._ends(where), f"no end of {where[0].topic}")

    def look(self) -> bool:
        """False when the client has left its group for good, or failed in a way of which nothing is known.

        It hands some errors to whoever looks, and until then neither beats nor joins again; Faust never looks.
        """
        coordinator = getattr(self._thread._consumer, "_coordinator", None)
        task = getattr(coordinator, "_coordination_task", None)  # there once it has started
        if coordinator is None or task is None:
            return True
        pending = coordinator._pending_exception
        if isinstance(pending, KafkaError) and not task.done():
            self._thread.thread_loop.call_soon_threadsafe(_take_error, coordinator)
        return not task.done() and isinstance(pending, KafkaError | None)

    def rejoin(self) -> None:
        """Have the group share out anew: an assignment that was made while a topic was not there lacks it, and a worker that takes its
        place again, by its instance id, is given the same one.
        """
        if (coordinator := getattr(self._thread._consumer, "_coordinator", None)) is not None:
            self._thread.thread_loop.call_soon_threadsafe(coordinator.request_rejoin)

    def is_member(self, generation: int) -> bool:
        """True while the client is in this generation of its group and is not about to join another."""
        coordinator = getattr(self._thread._consumer, "_coordinator", None)
        if coordinator is None or (subscription := coordinator._subscription.subscription) is None:  # there once it has started
            return False
        return bool(coordinator.generation == generation and not coordinator.need_rejoin(subscription))

    def newest(self, tp: TP) -> int:
        """The end of a partition's log at the last fetch; 0 before the first."""
        try:
            return self._thread.highwater(tp) or 0
        except (AssertionError, IllegalStateError):  # it has been taken away
            return 0

    async def _ask(self, asking: Coroutine[object, object, T], what: str) -> T:
        """Let the client's own loop do it, in time."""
        asked = asyncio.run_coroutine_threadsafe(asking, self._thread.thread_loop)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.wrap_future(asked)
        except KAFKA_ERRORS as error:
            raise Unavailable(f"kafka: {what} ({error!r})") from error

    async def _ends(self, where: Sequence[TP]) -> dict[TP, int]:
        found = await self._thread._ensure_consumer().end_offsets([TopicPartition(*tp) for tp in where])
        return {TP(*tp): offset for tp, offset in found.items()}

    async def _places(self, where: Sequence[TP]) -> dict[TP, Place]:
        consumer, asked = self._thread._ensure_consumer(), [TopicPartition(*tp) for tp in where]
        first, ends = await consumer.beginning_offsets(asked), await consumer.end_offsets(asked)
        committed = await consumer._coordinator.fetch_committed_offsets(asked)  # `committed` asks for one at a time
        places = {}
        for tp in asked:
            place = committed[tp].offset if tp in committed else 0  # those of a topic that is deleted go with it
            if 0 < place < first[tp]:
                _log.error("%s %d: %d messages were deleted before they were counted; give Kafka more retention", *tp, first[tp] - place)
            places[TP(*tp)] = Place(max(place, first[tp]) if place <= ends[tp] else first[tp], first[tp], ends[tp])
        return places

    async def commit(self, topics: object = None, start_new_transaction: bool = True) -> bool:
        """Nothing: the stages commit what they have done. What Faust noted for its own commits is let go, or it would grow for ever."""
        with ack_lock:
            for noted in (self._acked, self._acked_index, self._gap):
                noted.clear()
        return False

    async def force_commit(self, topics: object = None, start_new_transaction: bool = True) -> bool:
        """Nothing, too."""
        return False

    async def _confirm(self, generation: int, done: Mapping[TP, int]) -> bool:
        # A broker answers a connection's requests in turn. A commit behind the request to join comes when the generation has changed; the
        # client takes that refusal for the loss of its membership and joins as somebody new, and the group begins to share out anew.
        if not self.is_member(generation):
            return False
        consumer = self._thread._ensure_consumer()
        try:
            if done:
                await consumer.commit({TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in done.items()})
        except (CommitFailedError, IllegalStateError):
            return False
        return bool(consumer._coordinator.generation == generation)

    async def perform_seek(self) -> None:
        """Seek with the stream partitions shut, and open them when there is somebody to take what comes."""
        streams = self._streams(self.assignment())
        self.pause_partitions(streams)
        await super().perform_seek()
        self.app.flow_control.resume()
        self.resume_flow()
        self.resume_partitions(streams)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every stream partition to its commit, those without one, or that end before it, to their beginning."""
        committed = {TP(*tp): offset for tp, offset in (await super().seek_to_committed()).items()}
        streams = self._streams(set(committed))
        ends = await self.ends(sorted(streams)) if streams else {}
        fresh = {tp for tp in streams if not 0 < (committed[tp] or 0) <= ends[tp]}
        for tp, offset in (await self.earliest_offsets(*fresh)).items() if fresh else ():
            await self._seek(TP(*tp), offset)
        return {tp: None if tp in fresh else offset for tp, offset in committed.items()}  # type: ignore[misc]

    def _streams(self, partitions: set[TP]) -> set[TP]:
        """Those that are not of a changelog, which recovery reads by itself."""
        changelogs = self.app.tables.changelog_topics
        return {tp for tp in partitions if tp.topic not in changelogs}


class Transport(driver.Transport):
    """See the module."""

    Consumer = Consumer


def credentials_of(kafka: Kafka) -> CredentialsT | None:
    """How Faust's clients say who they are; nothing where Kafka asks for nothing.

    Raises:
        FailedPrecondition: a file that cannot be read.
    """
    options = kafka.options()
    context = options.get("ssl_context")
    if provider := options.get("sasl_oauth_token_provider"):
        return OAuthCredentials(oauth_cb=provider, ssl_context=context)
    if mechanism := options.get("sasl_mechanism"):
        user, password = options["sasl_plain_username"], options["sasl_plain_password"]
        return SASLCredentials(username=user, password=password, mechanism=mechanism, ssl_context=context)
    return SSLCredentials(context) if context is not None else None


def consumer_of(app: faust.App) -> Consumer | None:
    """The app's, once Faust has made it: to ask the app for it would make it."""
    made = app._consumer
    return made if isinstance(made, Consumer) else None


def mend(app: faust.App) -> None:
    """Give the app the mended transport."""
    app.transport = Transport(app.conf.broker, app, app.loop)
