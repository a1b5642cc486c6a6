"""A week of life: what was sent and what the registry says agree, whatever was restarted, lost, forgotten, replaced or upgraded meanwhile.

The broker, the Qdrant server, the routers, the stages of the optimizer and its reporter are real; the times of events are those of a week.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from faust.types import TP

import tests.stream_support as stream
from services.optimizer.control.library import Library
from services.optimizer.control.reporting import Reporter
from services.optimizer.settings import OptimizerSettings
from services.optimizer.stream.changelog import COUNTS
from services.optimizer.stream.count_agent import Count
from services.optimizer.stream.join_agent import Join
from services.optimizer.stream.stage import QUIET_S
from services.router.catalogue.port import Entry
from smoa.client import SmoaClient
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, EXAMPLES, OUTCOMES, USAGE
from smoa.topics import TOPICS, ensure_topics
from tests.integration.router_support import RouterWorld, running_router
from tests.integration.test_passed_over import NothingHandedOn, _app
from tests.kafka_support import HOME, SKIP_REASON, ApacheKafka, broker_port, until
from tests.library_support import DIMENSION, qdrant_library
from tests.qdrant_support import client_of, drop, fresh_prefix, settings_of
from tests.stream_support import PARTITIONS, Traffic, send

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(not HOME, reason=SKIP_REASON)]
DAY_US = 86_400_000_000
HALF_LIFE_S = 7 * 86400.0
STREAMS = (DECISIONS, OUTCOMES, ADAPTER_OUTCOMES, USAGE, EXAMPLES)


class Week:
    """What goes on for a week."""

    def __init__(self, kafka: ApacheKafka, folder: Path, traffic: Traffic) -> None:
        self.kafka, self.folder, self.traffic = kafka, folder, traffic
        self.committed: dict[TP, int] = {}
        self.generation = 0
        self.now_us = time.time_ns() // 1000 - 7 * DAY_US

    async def sent(self, events: int = 150) -> None:
        """Some hours of traffic, of which some is told late."""
        self.now_us += DAY_US // 4
        await send(self.kafka.bootstrap, self.traffic.make(events))

    async def counted(self, clients: list[SmoaClient]) -> None:
        """Workers, one for each client, share out the partitions, do all there is to do, and tell their router."""
        self.generation += 1
        for stage_of in (Join, Count):
            for number, client in enumerate(clients):
                mine = {TP(topic, one) for topic in stage_of.topics for one in range(number, PARTITIONS, len(clients))}
                consumer = NothingHandedOn(self.kafka.bootstrap, mine)
                consumer.committed_to = self.committed
                settings = OptimizerSettings(kafka_bootstrap=self.kafka.bootstrap, partitions=PARTITIONS, data_folder=self.folder)
                stage: Any = stage_of(_app(consumer, self.generation), settings)
                try:
                    while not await stage.loaded():
                        pass
                    stage._heard_s = {tp: at_s - QUIET_S for tp, at_s in stage._heard_s.items()}
                    await stage.catch_up()
                    if isinstance(stage, Count):
                        stage.changed |= set(stage.all_counted())
                        await Reporter(client, stage, HALF_LIFE_S, Library(client, HALF_LIFE_S)).report()
                        assert stage.refused_reports == 0
                finally:
                    await stage.close()

    async def remade(self, topics: tuple[str, ...]) -> None:
        """Topics are deleted, with the group's commits in them, and made again."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
        await admin.start()
        await admin.delete_topics(list(topics))

        async def gone() -> bool:
            return not {*topics} & {*await admin.list_topics()}

        await until("the topics being gone", 20, gone)
        await admin.close()
        await ensure_topics(self.kafka.bootstrap, [*TOPICS, COUNTS], PARTITIONS)
        for tp in [tp for tp in self.committed if tp.topic in topics]:
            del self.committed[tp]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Of the traffic: it is the week's."""
    made = SimpleNamespace(now_us=0)
    monkeypatch.setattr(stream, "time", SimpleNamespace(time_ns=lambda: 1000 * made.now_us, monotonic=time.monotonic))
    return made


async def test_what_was_sent_and_what_the_registry_says_agree(qdrant: tuple[str, int], tmp_path: Path, clock: SimpleNamespace) -> None:
    kafka, prefix = ApacheKafka(tmp_path / "kafka", broker_port()), fresh_prefix()
    settings: dict[str, Any] = {**settings_of(*qdrant, prefix), "store": str(tmp_path / "store")}
    await kafka.start()
    await ensure_topics(kafka.bootstrap, [*TOPICS, COUNTS, dataclasses.replace(COUNTS, name="smoa-optimizer-joins-changelog")], PARTITIONS)
    traffic = Traffic(11, adapters=12)
    week = Week(kafka, tmp_path / "optimizer", traffic)
    worlds: list[RouterWorld] = []
    async with AsyncExitStack() as stack:

        async def routers(count: int) -> list[SmoaClient]:
            await stack.aclose()
            worlds[:] = [await stack.enter_async_context(running_router(tmp_path / str(number), **settings)) for number in range(count)]
            return [world.client for world in worlds]

        async def day(*events: Callable[[], Awaitable[object]], clients: list[SmoaClient]) -> None:
            for happens in (*events, None):
                clock.now_us = week.now_us
                await week.sent()
                await week.counted(clients)
                if happens is not None:
                    await happens()

        clients = await routers(1)
        examples = [[f"about {number} thing {one}" for one in range(5)] for number in range(traffic.adapters)]
        traffic._names = [
            (await worlds[0].register(examples[number], tenant="t", name=f"n{number}")).adapter_id for number in range(traffic.adapters)
        ]
        await day(clients=clients)
        await day(clients=await routers(2))  # another router, and another worker
        newer = await qdrant_library(client_of(*qdrant), DIMENSION, prefix)
        found = await newer.catalogue.get(traffic._names[0])
        assert found is not None
        await newer.catalogue.write([Entry(dataclasses.replace(found[0], unknown={"added_later": [1]}), found[1])])
        clients = await routers(2)
        await day(lambda: week.remade((DECISIONS, OUTCOMES)), clients=clients)  # with all that is open: their offsets begin again
        await day(lambda: week.remade((ADAPTER_OUTCOMES, USAGE, EXAMPLES)), clients=clients)
        await day(lambda: week.remade((COUNTS.name,)), clients=clients)  # the counts begin at nothing: another epoch

        async def forgotten() -> None:
            """The broker loses the group, and counts its generations anew."""
            week.committed.clear()
            week.generation = 0

        await day(forgotten, clients=await routers(1))
        await day(clients=await routers(2))
        await send(kafka.bootstrap, traffic.rest())
        await week.counted(clients=[world.client for world in worlds])
        told = {name: (await worlds[1].client.get(name, "t")).statistics for name in traffic.truth}
        assert {name: (one.uses, one.outcomes, one.successes) for name, one in told.items()} == traffic.truth
        assert len(traffic.truth) == traffic.adapters
        assert {len(one.epochs) for one in told.values()} == {2}
        kept = await newer.catalogue.get(traffic._names[0])
        assert kept is not None
        assert kept[0].unknown == {"added_later": [1]}, "routers of an older version have counted for days"
        await newer.close()
    client = client_of(*qdrant)
    await drop(client, prefix)
    await client.close()
    await kafka.stop()
