"""The Faust side: two agents over exactly-counted state (docs/decisions/0002 says why it is written this way).

Each value in a table is written locally and sent to the changelog on the event's own partition, and those sends are awaited before the
batch is acknowledged. State goes first: a record replayed after a crash finds it and emits the same again, which the counter knows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable
from typing import Any

import faust
from faust.types import TP, EventT

from services.optimizer.statistics import (
    Counts,
    Effect,
    Joined,
    Source,
    TenantMismatchError,
    count_effect,
    count_usage,
    join_decision,
    join_outcome,
)
from smoa.errors import InvalidArgument
from smoa.events import ADAPTER_OUTCOMES, DEAD_LETTER, DECISIONS, OUTCOMES, USAGE, Event, decode, event, headers
from smoa.topics import partition_of
from smoa.v1 import events_pb2, feedback_pb2, router_pb2

_log = logging.getLogger(__name__)
SEND_TIMEOUT_S = 30.0


class Effects:
    """What a batch does to the outside: sends in flight, awaited together."""

    def __init__(self, app: faust.App, partitions: int) -> None:
        self._app, self._partitions = app, partitions
        self._sends: list[Awaitable[Any]] = []

    async def send(self, topic: str, key: bytes, value: bytes | None, partition: int | None = None, type_name: str = "") -> None:
        """Hand a record to the producer; `settle` waits for its acknowledgement."""
        where = partition_of(key, self._partitions) if partition is None else partition
        named = headers(type_name) if type_name else None
        self._sends.append(await self._app.producer.send(topic, key, value, where, None, named))

    async def settle(self) -> None:
        """Wait until Kafka has them all."""
        sends, self._sends = self._sends, []
        if sends:
            await asyncio.wait_for(asyncio.gather(*sends), SEND_TIMEOUT_S)


class Statistics:
    """The stream application's tables, and the agents that fill them."""

    def __init__(self, app: faust.App, partitions: int, join_ttl_s: float) -> None:
        self.app, self.partitions, self._join_ttl_s = app, partitions, join_ttl_s
        # Keys and values stay bytes (the app's serialisers are raw). No Schema object: one shared with a table stops the stream silently.
        self._joins: Any = app.Table("joins", key_type=bytes, value_type=bytes, partitions=partitions)
        self._counts: Any = app.Table("counts", key_type=bytes, value_type=bytes, partitions=partitions)
        topic: dict[str, Any] = {"key_type": bytes, "value_type": bytes, "allow_empty": True}
        app.agent(app.topic(DECISIONS, OUTCOMES, **topic), name="join")(self._join)
        app.agent(app.topic(ADAPTER_OUTCOMES, USAGE, **topic), name="count")(self._count)
        self.changed: set[bytes] = set()

    @property
    def changelogs(self) -> tuple[str, str]:
        """Names of the two changelog topics."""
        return self._joins.changelog_topic_name, self._counts.changelog_topic_name

    def owns(self, adapter_id: str) -> bool:
        """True when this worker counts the adapter."""
        return TP(ADAPTER_OUTCOMES, partition_of(adapter_id.encode(), self.partitions)) in self.app.consumer.assignment()

    def counts(self, adapter_id: str) -> Counts | None:
        """An owned adapter's counts."""
        value = self._counts.data.get(adapter_id.encode())
        return Counts.decode(value) if value else None

    def all_counted(self) -> list[str]:
        """Ids of the adapters with counts that this worker owns."""
        return [key.decode() for key in self._counts.data if self.owns(key.decode())]

    async def _join(self, stream: Any) -> None:
        async for events in stream.take_events(500, within=0.05):
            effects = Effects(self.app, self.partitions)
            states: dict[bytes, tuple[int, Joined]] = {}
            made: list[Event] = []
            for one in events:
                try:
                    key, state, emitted = self._joined(one, states)
                except (InvalidArgument, TenantMismatchError) as error:
                    await self._bury(effects, one, str(error))
                    continue
                states[key] = (one.message.partition, state)
                made += [event(ADAPTER_OUTCOMES, effect.adapter_id, _to_message(effect, key.decode(), _source(one))) for effect in emitted]
            for key, (partition, state) in states.items():
                await self._write(effects, self._joins, key, state.encode(), partition)
            await effects.settle()
            for outgoing in made:
                await effects.send(outgoing.topic, outgoing.key, outgoing.value, type_name=outgoing.type_name)
            await effects.settle()

    def _joined(self, one: EventT[Any], states: dict[bytes, tuple[int, Joined]]) -> tuple[bytes, Joined, list[Effect]]:
        message = decode(one.message.topic, one.message.value, _headers(one))
        now = time.time()
        if isinstance(message, router_pb2.Decision):
            key = _checked_key(one, message.decision_id)
            weights = tuple((item.adapter_id, item.weight) for item in message.adapters)
            return key, *join_decision(self._state(key, states), message.tenant, weights, _source(one), now)
        assert isinstance(message, feedback_pb2.Outcome)
        key = _checked_key(one, message.decision_id)
        return key, *join_outcome(self._state(key, states), message.tenant or "public", message.success, _source(one), now)

    def _state(self, key: bytes, states: dict[bytes, tuple[int, Joined]]) -> Joined | None:
        if key in states:
            return states[key][1]
        value = self._joins.data.get(key)
        return Joined.decode(value) if value else None

    async def _count(self, stream: Any) -> None:
        async for events in stream.take_events(1000, within=0.05):
            effects = Effects(self.app, self.partitions)
            states: dict[bytes, tuple[int, Counts]] = {}
            for one in events:
                try:
                    message = decode(one.message.topic, one.message.value, _headers(one))
                    key = _checked_key(one, message.adapter_id)  # type: ignore[attr-defined]
                    before = self._counts.data.get(key)
                    current = states[key][1] if key in states else Counts.decode(before) if before else None
                    after = _counted(current, message, dict(_headers(one)))
                except InvalidArgument as error:
                    await self._bury(effects, one, str(error))
                    continue
                if after is not None:
                    states[key] = (one.message.partition, after)
            for key, (partition, counts) in states.items():
                await self._write(effects, self._counts, key, counts.encode(), partition)
            await effects.settle()
            self.changed |= set(states)

    async def _write(self, effects: Effects, table: Any, key: bytes, value: bytes | None, partition: int) -> None:
        if value is None:
            table.data.data.pop(key, None)
        else:
            table.data.data[key] = value  # not table[key]: that would choose its own changelog partition
        await effects.send(table.changelog_topic_name, key, value, partition)

    async def _bury(self, effects: Effects, one: EventT[Any], reason: str) -> None:
        """Keep what cannot be used, with the reason; the stream goes on."""
        message = one.message
        letter = events_pb2.DeadLetter(
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            key=message.key or b"",
            value=message.value or b"",
            reason=reason,
            dead_at_us=time.time_ns() // 1000,
        )
        _log.warning("to %s: %s %d:%d: %s", DEAD_LETTER, message.topic, message.partition, message.offset, reason)
        made = event(DEAD_LETTER, f"{message.topic}:{message.partition}:{message.offset}", letter)
        await effects.send(made.topic, made.key, made.value, type_name=made.type_name)

    async def expire_joins(self) -> None:
        """Forget decisions older than the time to live, in memory and in the changelog."""
        cut = time.time() - self._join_ttl_s
        effects = Effects(self.app, self.partitions)
        for key, value in list(self._joins.data.data.items()):
            if Joined.decode(value).first_seen_s < cut:
                await self._write(effects, self._joins, key, None, partition_of(key, self.partitions))
        await effects.settle()


def _source(one: EventT[Any]) -> Source:
    return Source(one.message.topic, one.message.partition, one.message.offset)


def _headers(one: EventT[Any]) -> Iterable[tuple[str, bytes]]:
    found: Any = one.message.headers or {}
    return list(found.items() if isinstance(found, dict) else found)


def _checked_key(one: EventT[Any], wanted: str) -> bytes:
    key = one.message.key or b""
    if not wanted or key != wanted.encode():
        raise InvalidArgument("key", f"of the message is {key[:80]!r}, its value names {wanted[:80]!r}", "key it by the id in its value")
    return bytes(key)


def _counted(current: Counts | None, message: Any, named: dict[str, bytes]) -> Counts | None:
    if isinstance(message, events_pb2.AdapterOutcome):
        source = Source(message.source_topic, message.source_partition, message.source_offset)
        success = message.success if message.HasField("success") else None
        return count_effect(current, message.tenant, source, message.used, success)
    try:
        producer_id, sequence = named["smoa-producer"].decode(), int(named["smoa-sequence"])
    except (KeyError, ValueError) as error:
        raise InvalidArgument(
            "smoa-producer", f"and smoa-sequence do not name the event ({error})", "send usage through the spool"
        ) from error
    return count_usage(current, message.tenant, producer_id, sequence, message.tokens)


def _to_message(effect: Effect, decision_id: str, source: Source) -> events_pb2.AdapterOutcome:
    message = events_pb2.AdapterOutcome(
        adapter_id=effect.adapter_id,
        decision_id=decision_id,
        tenant=effect.tenant,
        source_topic=source.topic,
        source_partition=source.partition,
        source_offset=source.offset,
        used=effect.used,
        weight=effect.weight,
    )
    if effect.success is not None:
        message.success = effect.success
    return message
