"""The broker: connections, and what each of Kafka's requests does to the store and the groups.

Everything runs on one loop, and the store's calls run on it too: each is one short local write or read that the answer needs anyway, and
nobody else runs in this process.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from aiokafka import errors

from services.broker.batches import NO_PRODUCER, Header, UnreadableBatchError, split
from services.broker.coordinator import Coordinator
from services.broker.store import OutOfOrderError, Partition, StorageError, Store
from services.broker.wire import REQUESTS, Fields, Frame, by_topic, decoded, encoded, read_frame
from smoa.tasks import begin, end

_log = logging.getLogger(__name__)
NODE: Final = 1
DEFAULT_PARTITIONS: Final = 4
MAX_CONNECTIONS: Final = 512
MAX_PARTITIONS: Final = 4096
"""Of all topics together."""
MAX_FETCH_BYTES: Final = 32 * 2**20
MAX_WAIT_S: Final = 30.0
OLDEST: Final = {1: 4}
"""The first version of a request that is served, where it is not 0. Produce says 0, as Kafka 4 does too: librdkafka takes another number
for a broker that it cannot write to."""
_LATEST, _EARLIEST = -1, -2
_API_VERSIONS: Final = 18
Handler = Callable[[Fields], Awaitable[Fields | None]]


class Broker:
    """One node that leads every partition and coordinates every group."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._coordination = coordinator = Coordinator(store)
        self._connections: set[asyncio.Task[None]] = set()
        self._arrivals: dict[int, set[asyncio.Event]] = {}
        """Fetches that wait for records, by the partition's row."""
        self._compaction: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self.port = 0
        self._handlers: Mapping[int, Handler] = {
            0: self._produce,
            1: self._fetch,
            2: self._list_offsets,
            3: self._metadata,
            8: coordinator.commit,
            9: coordinator.committed,
            10: self._coordinator,
            11: coordinator.join,
            12: coordinator.heartbeat,
            13: coordinator.leave,
            14: coordinator.sync,
            19: self._create_topics,
            22: self._producer_id,
        }

    async def start(self, port: int) -> None:
        """Listen on loopback; 0 chooses a free port.

        Raises:
            OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Let the connections go, and what waits on them."""
        if self._server is not None:
            self._server.close()
        for task in (*self._connections, *([self._compaction] if self._compaction else ())):
            await end(task)
        self._coordination.close()
        if self._server is not None:
            await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MAX_CONNECTIONS:
            _log.warning("a connection is refused: %d are open", MAX_CONNECTIONS)
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        except asyncio.CancelledError:
            pass  # this broker stops
        except ValueError as error:
            _log.warning("a connection is closed: %s is not for this broker", error)
        finally:
            self._connections.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            frame = await read_frame(reader)
            if frame.api_key == _API_VERSIONS:
                writer.write(self._versions(frame))
            elif (handler := self._handlers.get(frame.api_key)) is None:
                raise ValueError(f"request {frame.api_key}")
            elif (answer := await handler(decoded(frame))) is not None:
                writer.write(encoded(frame, answer))
            await writer.drain()

    def _versions(self, frame: Frame) -> bytes:
        known = (frame.api_key, frame.version) in REQUESTS
        versions = [
            {"api_key": key, "min_version": OLDEST.get(key, 0), "max_version": max(version for other, version in REQUESTS if other == key)}
            for key in (*self._handlers, _API_VERSIONS)
        ]
        code = errors.NoError.errno if known else errors.UnsupportedVersionError.errno
        answer = {"error_code": code, "api_versions": versions, "throttle_time_ms": 0}
        return encoded(frame, answer, None if known else 0)  # to a version from the future, Kafka answers in the first

    def _partition(self, topic: str, number: int) -> Partition | None:
        partitions = self._store.topics.get(topic, ())
        return partitions[number] if 0 <= number < len(partitions) else None

    # Records

    async def _produce(self, request: Fields) -> Fields | None:
        work: list[tuple[Partition, list[tuple[Header, bytes]]]] = []
        answered: dict[tuple[str, int], tuple[int, int]] = {}
        for topic in request["topics"]:
            for one in topic["partitions"]:
                where = (topic["topic"], one["partition"])
                if (partition := self._partition(*where)) is None:
                    answered[where] = (errors.UnknownTopicOrPartitionError.errno, -1)
                    continue
                code, offset, fresh = _accepted(partition, one["messages"] or b"")
                answered[where] = (code, offset)
                if fresh:
                    work.append((partition, fresh))
        try:
            self._store.append(work)
        except StorageError as error:
            _log.error("records are refused, their producers try again: %s", error)
            answered |= {(partition.topic, partition.number): (errors.KafkaStorageError.errno, -1) for partition, _ in work}
            work = []
        for partition, _ in work:
            for event in self._arrivals.get(partition.row, ()):
                event.set()
            if partition.wants_compaction and (self._compaction is None or self._compaction.done()):
                self._compaction = begin(self._compact(), "compaction")
        if request["required_acks"] == 0:
            return None

        def partition_answer(topic: str, number: int) -> Fields:
            code, offset = answered[topic, number]
            partition = self._partition(topic, number)
            start = partition.start if partition else -1
            return {"partition": number, "error_code": code, "offset": offset, "timestamp": -1, "log_start_offset": start} | {
                "record_errors": [],
                "error_message": None,
            }

        return {"topics": by_topic(answered, partition_answer), "throttle_time_ms": 0}

    async def _compact(self) -> None:
        """Compact what wants it, a step at a time, between requests."""
        for partitions in list(self._store.topics.values()):
            for partition in partitions:
                if partition.wants_compaction:
                    for _ in self._store.compact(partition):
                        await asyncio.sleep(0)

    async def _fetch(self, request: Fields) -> Fields:
        wanted = [(topic["topic"], one) for topic in request["topics"] for one in topic["partitions"]]
        arrived, max_wait_s = asyncio.Event(), min(request["max_wait_time"] / 1000, MAX_WAIT_S)
        most_bytes = max(1, min(request.get("max_bytes", MAX_FETCH_BYTES), MAX_FETCH_BYTES))
        rows = [partition.row for topic, one in wanted if (partition := self._partition(topic, one["partition"]))]
        for row in rows:
            self._arrivals.setdefault(row, set()).add(arrived)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(max_wait_s):
                    while True:
                        arrived.clear()
                        found, size, failed = self._read(wanted, most_bytes)
                        if failed or size >= min(request["min_bytes"], most_bytes):
                            break
                        await arrived.wait()
        finally:
            for row in rows:
                self._arrivals[row].discard(arrived)
        # `topics` inside is aiokafka's name of the topic.
        topics = [{"topics": one["topic"], "partitions": one["partitions"]} for one in by_topic(found, lambda *where: found[where])]
        return {"throttle_time_ms": 0, "error_code": 0, "session_id": 0, "topics": topics}

    def _read(self, wanted: Iterable[tuple[str, Fields]], most_bytes: int) -> tuple[dict[tuple[str, int], Fields], int, bool]:
        """Answers by partition, their bytes, and whether one is an error."""
        found: dict[tuple[str, int], Fields] = {}
        size, failed = 0, False
        for topic, one in wanted:
            number, offset = one["partition"], one["fetch_offset"]
            partition, records, code = self._partition(topic, number), b"", 0
            if partition is None:
                code = errors.UnknownTopicOrPartitionError.errno
            elif not partition.start <= offset <= partition.end:
                code = errors.OffsetOutOfRangeError.errno
            elif offset < partition.end and size < most_bytes:
                records = self._store.read(partition, offset, min(one["max_bytes"], most_bytes - size))
            end = partition.end if partition else -1
            found[topic, number] = {
                "partition": number,
                "error_code": code,
                "highwater_offset": end,
                "last_stable_offset": end,
                "log_start_offset": partition.start if partition else -1,
                "aborted_transactions": None,
                "preferred_read_replica": -1,
                "message_set": records,
            }
            size, failed = size + len(records), failed or code != 0
        return found, size, failed

    async def _list_offsets(self, request: Fields) -> Fields:
        asked = {(topic["topic"], one["partition"]): one["timestamp"] for topic in request["topics"] for one in topic["partitions"]}

        def answer(topic: str, number: int) -> Fields:
            partition, timestamp_ms = self._partition(topic, number), asked[topic, number]
            code, offset, time_ms = 0, -1, -1
            if partition is None:
                code = errors.UnknownTopicOrPartitionError.errno
            elif timestamp_ms == _LATEST:
                offset = partition.end
            elif timestamp_ms == _EARLIEST:
                offset = partition.start
            elif (found := self._store.first_since(partition, timestamp_ms)) is not None:
                offset, time_ms = found
            told = {"partition": number, "error_code": code, "timestamp": time_ms, "offset": offset, "leader_epoch": -1}
            return told | {"offsets": [offset]}

        return {"throttle_time_ms": 0, "topics": by_topic(asked, answer)}

    async def _producer_id(self, request: Fields) -> Fields:
        # Chosen so that no restart gives one twice, without a note of the last.
        return {"throttle_time_ms": 0, "error_code": 0, "producer_id": secrets.randbits(48), "producer_epoch": 0}

    # Topics

    async def _metadata(self, request: Fields) -> Fields:
        names = request["topics"]
        if names is None:
            names = list(self._store.topics)
        elif request.get("allow_auto_topic_creation", True):
            for name in names:
                if name not in self._store.topics:
                    self._create(name, DEFAULT_PARTITIONS, {})
        node = {"node_id": NODE, "host": "127.0.0.1", "port": self.port, "rack": None}
        return {
            "throttle_time_ms": 0,
            "brokers": [node],
            "cluster_id": "smoa",
            "controller_id": NODE,
            "topics": [_topic_metadata(name, self._store.topics.get(name, ())) for name in names],
        }

    async def _create_topics(self, request: Fields) -> Fields:
        told = []
        for one in request["create_topic_requests"]:
            name, partitions = one["topic"], one["num_partitions"]
            partitions = DEFAULT_PARTITIONS if partitions == -1 else partitions
            settings = {item["config_key"]: item["config_value"] for item in one["configs"]}
            code = self._create(name, partitions, settings, validate_only=request.get("validate_only", False))
            told.append({"topic": name, "error_code": code, "error_message": None})
        return {"throttle_time_ms": 0, "topic_errors": told}

    def _create(self, name: str, partitions: int, settings: Mapping[str, str | None], *, validate_only: bool = False) -> int:
        """0, or the error code."""
        there = sum(map(len, self._store.topics.values()))
        if name in self._store.topics:
            return int(errors.TopicAlreadyExistsError.errno)
        if not _is_topic_name(name):
            return int(errors.InvalidTopicError.errno)
        if not 1 <= partitions <= MAX_PARTITIONS - there:
            return int(errors.InvalidPartitionsError.errno)
        if not validate_only:
            try:
                self._store.create(name, partitions, {key: value for key, value in settings.items() if value is not None})
            except StorageError as error:
                _log.error("topic %s is not made: %s", name, error)
                return int(errors.KafkaStorageError.errno)
        return 0

    async def _coordinator(self, request: Fields) -> Fields:
        return {"throttle_time_ms": 0, "error_code": 0, "error_message": None, "coordinator_id": NODE} | {
            "host": "127.0.0.1",
            "port": self.port,
        }


def _accepted(partition: Partition, record_set: bytes) -> tuple[int, int, list[tuple[Header, bytes]]]:
    """An error code, the offset that the first batch gets or got, and the batches that are new."""
    try:
        batches = split(record_set)
        known = [partition.offset_if_duplicate(header) if header.producer_id != NO_PRODUCER else None for header, _ in batches[:1]]
    except UnreadableBatchError as error:
        _log.warning("a batch for %s %d is refused: it %s", partition.topic, partition.number, error)
        return errors.CorruptRecordException.errno, -1, []
    except OutOfOrderError as error:
        _log.warning("a batch for %s %d is refused: %s", partition.topic, partition.number, error)
        return errors.OutOfOrderSequenceNumber.errno, -1, []
    if known and known[0] is not None:
        return 0, known[0], []
    return 0, partition.end, batches


def _is_topic_name(name: str) -> bool:
    return 1 <= len(name) <= 249 and name not in (".", "..") and all(one.isascii() and (one.isalnum() or one in "._-") for one in name)


def _topic_metadata(name: str, partitions: Iterable[Partition]) -> Fields:
    described = [
        {"error_code": 0, "partition": one.number, "leader": NODE, "replicas": [NODE], "isr": [NODE], "offline_replicas": []}
        for one in partitions
    ]
    unknown = errors.UnknownTopicOrPartitionError if _is_topic_name(name) else errors.InvalidTopicError
    code = 0 if described else unknown.errno
    return {"error_code": code, "topic": name, "is_internal": False, "partitions": described}
