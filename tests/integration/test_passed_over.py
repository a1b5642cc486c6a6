"""Faust passes over messages while the group is shared out anew; those that nothing follows are found all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import faust
from aiokafka import TopicPartition
from faust.types import TP

from services.optimizer.changelog import COUNTS, JOINS
from services.optimizer.settings import OptimizerSettings
from services.optimizer.stage import QUIET_S
from services.optimizer.stream import Join
from services.optimizer.transport import Consumer
from smoa.events import ADAPTER_OUTCOMES
from smoa.reader import consumer_of
from smoa.topics import TOPICS, ensure_topics
from tests.kafka_support import embedded_broker, read_events
from tests.stream_support import PARTITIONS, Traffic, send


class NothingHandedOn(Consumer):
    """The only member of its group, which commits in memory."""

    def __init__(self, bootstrap: str, places: set[TP]) -> None:
        self.bootstrap, self.mine, self.committed_to = bootstrap, places, dict[TP, int]()

    def assignment(self) -> set[TP]:
        return self.mine

    async def places(self, where: Sequence[TP]) -> dict[TP, int]:
        return {tp: self.committed_to.get(tp, 0) for tp in where}

    async def ends(self, where: Sequence[TP]) -> dict[TP, int]:
        async with consumer_of(self.bootstrap) as consumer:
            return {TP(*tp): end for tp, end in (await consumer.end_offsets([TopicPartition(*tp) for tp in where])).items()}

    async def confirm(self, generation: int, done: Mapping[TP, int]) -> bool:
        self.committed_to |= done
        return True


async def test_a_tail_that_was_not_handed_on_is_read_from_the_log(tmp_path: Path) -> None:
    async with embedded_broker(tmp_path) as bootstrap:
        await ensure_topics(bootstrap, (*TOPICS, JOINS, COUNTS), PARTITIONS)
        traffic = Traffic(3, adapters=20)
        sent = traffic.make(60)
        await send(bootstrap, [*sent, *traffic.rest()])
        consumer = NothingHandedOn(bootstrap, {TP(topic, one) for topic in Join.topics for one in range(PARTITIONS)})
        app = SimpleNamespace(
            consumer=consumer, consumer_generation_id=1, topic=lambda *_, **__: None, agent=lambda *_, **__: lambda run: run
        )
        join = Join(cast(faust.App, app), OptimizerSettings(kafka_bootstrap=bootstrap, partitions=PARTITIONS, data_folder=tmp_path))
        try:
            for _ in range(2):  # it has only just begun: what comes may still be on its way
                assert await join.loaded()
                await join.catch_up()
                assert not consumer.committed_to
            join._heard_s -= QUIET_S
            assert await join.loaded(), "which the worker does every second, and is no message"
            await join.catch_up()
            effects = await read_events(bootstrap, ADAPTER_OUTCOMES)
            assert len(effects) >= sum(uses for uses, _, _ in traffic.truth.values()) > 0
            assert consumer.committed_to == await consumer.ends(list(consumer.mine))
            join._heard_s -= QUIET_S
            await join.catch_up()
            assert len(await read_events(bootstrap, ADAPTER_OUTCOMES)) == len(effects)
        finally:
            await join.close()
