"""Sends spooled events to Kafka in order, off the request path, for as long as it takes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from smoa.dead_letters import letter, shortened
from smoa.errors import SmoaError
from smoa.events import DEAD_LETTER, Event, Received, event
from smoa.kafka import Kafka
from smoa.outbox import Outbox, Refused, records_of
from smoa.spool import Spool
from smoa.tasks import begin, end

_log = logging.getLogger(__name__)
_GATHER_S = 0.02
"""Pause between batches that were not full: an event sent alone costs as much processor as fifty sent together, and nobody waits for it."""
RETRY_S: Final = (0.1, 5.0)
REFUSED_TIMES: Final = 8
"""So often an event is sent by itself, over 15 seconds, before it is put aside: a broker in trouble may refuse what it takes later."""


class EventPublisher:
    """Owns the spool and one producer. `publish` returns once the event is on disk."""

    def __init__(self, kafka: Kafka | str, spool: Spool, batch_events: int = 64, timeout_s: float = 10.0) -> None:
        self._spool, self._batch_events = spool, batch_events
        self._at_once, self._refusal = batch_events, ""
        self._outbox = Outbox(kafka, timeout_s)
        self.put_aside = 0
        """Events that Kafka never took; they are among the dead letters."""
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

    def publish(self, events: Sequence[Event], leave_bytes: int = 0, owner: str = "") -> None:
        """Accept events durably, without waiting for Kafka. A commit takes microseconds, so it runs on the loop. `leave_bytes` of the spool
        stay free for others, and an `owner` has a share of it.

        Raises:
            InvalidArgument: an event is larger than Kafka takes.
            ResourceExhausted: Kafka has been away for so long that the spool is full.
            Unavailable: the disk does not take it.
        """
        self._spool.append(events, leave_bytes, owner)
        self._sent()

    def _sent(self) -> None:
        self._empty.clear()
        self._wake.set()

    def check_room(self, size: int) -> None:
        """Raise ResourceExhausted unless the spool has so many bytes left."""
        self._spool.check_room(size)

    @contextmanager
    def room_for(self, events: Sequence[Event], owner: str = "") -> Iterator[Callable[[Sequence[Event]], None]]:
        """Keep room for events of at most this size until the end of the context; yields `publish` for those that take it, called once.

        So a request is refused before anything is done for it, not when it is done.

        Raises:
            InvalidArgument: an event is larger than Kafka takes.
            ResourceExhausted: Kafka has been away for so long that the spool is full.
        """
        kept = [self._spool.keep_room(events, owner)]

        def publish(events: Sequence[Event]) -> None:
            self._spool.give_room(kept.pop(), owner)
            self._spool.append(events, owner=owner, promised=True)
            self._sent()

        try:
            yield publish
        finally:
            if kept:
                self._spool.give_room(kept.pop(), owner)

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
        delay_s, refused = RETRY_S[0], 0
        try:
            while True:
                try:
                    if refused >= REFUSED_TIMES:
                        await self._put_aside()
                    else:
                        await self._send_batch()
                    delay_s, refused = RETRY_S[0], 0
                    self._at_once = min(self._batch_events, 2 * self._at_once)
                    continue
                except Refused as error:
                    self._refusal = str(error)
                    if self._at_once > 1:  # one of them: which is found by halves
                        self._at_once //= 2
                        continue
                    refused += 1
                except SmoaError as error:
                    _log.warning("%d events wait on disk: %s", len(self._spool), error)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_S[1])
        finally:
            await self._outbox.close()

    async def _send_batch(self) -> None:
        self._wake.clear()
        batch = self._spool.peek(self._at_once)
        if not batch:
            self._empty.set()
            await self._wake.wait()
            return
        # After a failure the same events go again with the same sequences.
        partitions = {topic: await self._outbox.partitions(topic) for topic in {one.event.topic for one in batch}}
        await self._outbox.send(records_of([(one.event, one.sequence) for one in batch], partitions, self._spool.producer_id))
        self._spool.remove(batch[-1].sequence)
        if len(batch) < self._at_once:
            await asyncio.sleep(_GATHER_S)

    async def _put_aside(self) -> None:
        """Send the first event to the dead letters, or, if they do not take it all, its beginning, so that those behind it go on.

        Raises:
            Unavailable: Kafka is away.
            Refused: the dead letters do not take it, either.
        """
        (first,) = self._spool.peek(1)
        sent, me = first.event, self._spool.producer_id
        one = Received(sent.topic, -1, first.sequence, 0, sent.key, sent.value, me, first.sequence)
        _log.error("an event of %s is not taken by Kafka, and goes to %s: %s", sent.topic, DEAD_LETTER, self._refusal)
        dead = event(DEAD_LETTER, f"{me}:{first.sequence}", letter(one, self._refusal, time.time_ns() // 1000))
        places = {DEAD_LETTER: await self._outbox.partitions(DEAD_LETTER)}
        try:
            await self._outbox.send(records_of([(dead, first.sequence)], places, me))
        except Refused:
            await self._outbox.send(records_of([(shortened(dead), first.sequence)], places, me))
        self._spool.remove(first.sequence)
        self.put_aside += 1
