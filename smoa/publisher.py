"""Sends spooled events to Kafka in order, off the request path, for as long as it takes."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder

from smoa.errors import SmoaError
from smoa.events import Event, headers
from smoa.spool import Spool, Spooled
from smoa.tasks import begin, end
from smoa.topics import partition_of

_log = logging.getLogger(__name__)
_ERRORS = (KafkaError, OSError, asyncio.TimeoutError, SmoaError)
_BATCH_BYTES = 256 * 1024
_GATHER_S = 0.02
"""Pause between batches that were not full: an event sent alone costs as much processor as fifty sent together, and nobody waits for it."""


class EventPublisher:
    """Owns the spool and one idempotent producer. `publish` returns once the event is on disk."""

    def __init__(self, bootstrap: str, spool: Spool, batch_events: int = 500, timeout_s: float = 10.0) -> None:
        self._bootstrap, self._spool, self._batch_events, self._timeout_s = bootstrap, spool, batch_events, timeout_s
        self._wake, self._empty = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def producer_id(self) -> str:
        """What the events of this process carry in their headers."""
        return self._spool.producer_id

    @property
    def waiting(self) -> int:
        """Events accepted and not yet acknowledged by Kafka."""
        return len(self._spool)

    def publish(self, events: Sequence[Event]) -> None:
        """Accept events durably, without waiting for Kafka. A commit takes microseconds, so it runs on the loop.

        Raises:
            InvalidArgument: an event is larger than Kafka takes.
            ResourceExhausted: Kafka has been away for so long that the spool is full.
            Unavailable: the disk does not take it.
        """
        self._spool.append(events)
        self._empty.clear()
        self._wake.set()

    async def start(self) -> None:
        """Begin sending, starting with what an earlier process left."""
        self._task = begin(self._run(), "event-publisher")

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything was acknowledged; False when time ran out (the rest stays on disk)."""
        if not len(self._spool):
            return True
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def stop(self, drain_s: float = 5.0) -> None:
        """Drain within `drain_s`, stop sending and close the spool."""
        if self._task is not None:
            await self.drain(drain_s)
            await end(self._task)
        self._spool.close()

    async def _run(self) -> None:
        delay_s = 0.1
        while True:
            producer = AIOKafkaProducer(
                bootstrap_servers=self._bootstrap,
                acks="all",
                enable_idempotence=True,
                request_timeout_ms=int(self._timeout_s * 1000),
                linger_ms=5,
                max_batch_size=_BATCH_BYTES,
            )
            try:
                async with asyncio.timeout(self._timeout_s):  # not wait_for, which loses a cancellation that comes as its work ends
                    await producer.start()
                while True:
                    await self._send_batch(producer)
                    delay_s = 0.1
            except _ERRORS as error:
                _log.warning("events do not reach kafka at %s (%r); %d wait on disk", self._bootstrap, error, len(self._spool))
            finally:
                with suppress(*_ERRORS):
                    async with asyncio.timeout(self._timeout_s):
                        await producer.stop()
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 5.0)

    async def _pack(self, producer: AIOKafkaProducer, spooled: Sequence[Spooled]) -> dict[tuple[str, int], list[BatchBuilder]]:
        """The client's batches by topic and partition, in order. Packed here: `send` takes 80 us a message, most of it not packing."""
        partitions = {topic: len(await producer.partitions_for(topic)) for topic in {one.event.topic for one in spooled}}
        packed: defaultdict[tuple[str, int], list[BatchBuilder]] = defaultdict(list)
        for one in spooled:
            made = one.event
            batches = packed[made.topic, partition_of(made.key, partitions[made.topic])]
            named = headers(made.type_name, self._spool.producer_id, one.sequence)
            while not batches or batches[-1].append(timestamp=None, key=made.key, value=made.value, headers=named) is None:
                batches.append(producer.create_batch())  # the last one is full; an empty one takes any message
        return packed

    async def _send_batch(self, producer: AIOKafkaProducer) -> None:
        self._wake.clear()
        batch = self._spool.peek(self._batch_events)
        if not batch:
            self._empty.set()
            await self._wake.wait()
            return
        # Idempotent sends never time out by themselves; after a timeout the whole batch goes again, with the same sequences.
        async with asyncio.timeout(self._timeout_s):
            packed = await self._pack(producer, batch)
            sends = [await producer.send_batch(one, topic, partition=number) for (topic, number), ones in packed.items() for one in ones]
            await asyncio.gather(*sends)
        self._spool.remove(batch[-1].sequence)
        if len(batch) < self._batch_events:
            await asyncio.sleep(_GATHER_S)
