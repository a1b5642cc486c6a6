"""Faust passes over messages while the group is shared out anew; those that nothing follows are found all the same."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import faust
import pytest
from aiokafka import TopicPartition
from faust.types import TP

from services.optimizer.settings import OptimizerSettings
from services.optimizer.stream.changelog import COUNTS, JOINS, Changelog
from services.optimizer.stream.count_agent import Count
from services.optimizer.stream.counting import EPOCH, EXAMPLES_OF, check_value
from services.optimizer.stream.join_agent import LANDMARKS, Join
from services.optimizer.stream.stage import QUIET_S
from services.optimizer.stream.transport import Consumer, Place
from smoa.errors import Unavailable
from smoa.events import ADAPTER_OUTCOMES, DECISIONS, EXAMPLES, OUTCOMES, event
from smoa.outbox import Outbox, Record
from smoa.reader import consumer_of, read_range, read_topic
from smoa.topics import TOPICS, ensure_topics, partition_of
from smoa.v1.events_pb2 import AdapterOutcome, Example
from tests.kafka_support import embedded_broker, read_events
from tests.stream_support import PARTITIONS, Traffic, counted, difference, send


class NothingHandedOn(Consumer):
    """The only member of its group, which commits in memory."""

    def __init__(self, bootstrap: str, places: set[TP]) -> None:
        self.bootstrap, self.mine, self.committed_to = bootstrap, places, dict[TP, int]()

    def is_member(self, generation: int) -> bool:
        return True

    def assignment(self) -> set[TP]:
        return self.mine

    async def places(self, where: Sequence[TP]) -> dict[TP, Place]:
        ends = await self.ends(where)
        return {tp: Place(self.committed_to.get(tp, 0), 0, ends[tp]) for tp in where}

    def is_hole(self, tp: TP, begin: int, end: int) -> bool:
        return False

    def newest(self, tp: TP) -> int:
        return 0

    async def ends(self, where: Sequence[TP]) -> dict[TP, int]:
        async with consumer_of(self.bootstrap) as consumer:
            return {TP(*tp): end for tp, end in (await consumer.end_offsets([TopicPartition(*tp) for tp in where])).items()}

    async def confirm(self, generation: int, done: Mapping[TP, int]) -> bool:
        self.committed_to |= done
        return True


def _app(consumer: Consumer, generation: int = 1) -> faust.App:
    """As much of Faust as a stage looks at."""
    nothing = {"topic": lambda *_, **__: None, "agent": lambda *_, **__: lambda run: run}
    return cast(faust.App, SimpleNamespace(consumer=consumer, consumer_generation_id=generation, **nothing))


async def test_a_tail_that_was_not_handed_on_is_read_from_the_log(tmp_path: Path) -> None:
    async with embedded_broker(tmp_path) as bootstrap:
        await ensure_topics(bootstrap, (*TOPICS, JOINS, COUNTS), PARTITIONS)
        traffic = Traffic(3, adapters=20)
        sent = traffic.make(60)
        await send(bootstrap, [*sent, *traffic.rest()])
        consumer = NothingHandedOn(bootstrap, {TP(topic, one) for topic in Join.topics for one in range(PARTITIONS)})
        join = Join(_app(consumer), OptimizerSettings(kafka_bootstrap=bootstrap, partitions=PARTITIONS, data_folder=tmp_path))
        try:
            for _ in range(2):  # it has only just begun: what comes may still be on its way
                assert await join.loaded()
                await join.catch_up()
                assert not consumer.committed_to
            join._heard_s = {tp: at_s - QUIET_S for tp, at_s in join._heard_s.items()}
            assert await join.loaded(), "which the worker does every second, and is no message"
            await join.catch_up()
            effects = await read_events(bootstrap, ADAPTER_OUTCOMES)
            assert len(effects) >= sum(uses for uses, _, _ in traffic.truth.values()) > 0
            assert consumer.committed_to == await consumer.ends(list(consumer.mine))
            join._heard_s = {tp: at_s - QUIET_S for tp, at_s in join._heard_s.items()}
            await join.catch_up()
            assert len(await read_events(bootstrap, ADAPTER_OUTCOMES)) == len(effects)
        finally:
            await join.close()


async def test_what_has_faded_goes_from_the_changelog_and_of_what_was_purged_all_but_its_sums(tmp_path: Path) -> None:
    now_us = time.time_ns() // 1000
    together = [name for name in map(str, range(50)) if partition_of(name.encode(), PARTITIONS) == 0][:3]
    async with embedded_broker(tmp_path) as bootstrap:
        await ensure_topics(bootstrap, (*TOPICS, JOINS, COUNTS), PARTITIONS)
        settings = OptimizerSettings(kafka_bootstrap=bootstrap, partitions=PARTITIONS, data_folder=tmp_path, examples_retention_s=3600.0)
        consumer = NothingHandedOn(bootstrap, {TP(topic, one) for topic in Count.topics for one in range(PARTITIONS)})
        count, changelog = Count(_app(consumer), settings), Changelog(bootstrap, COUNTS.name)
        example = Example(key="a/t", decision_id="d", tenant="t", input="in", output="out", occurred_at_us=now_us - int(3599 * 1e6))
        uses = [AdapterOutcome(adapter_id=name, tenant="t", source_topic="s", source_position=1, used=True) for name in together]
        try:
            await send(bootstrap, [event(EXAMPLES, "a/t", example), *(event(ADAPTER_OUTCOMES, one.adapter_id, one) for one in uses)])
            assert await count.loaded()
            count._heard_s = {tp: at_s - QUIET_S for tp, at_s in count._heard_s.items()}
            await count.catch_up()

            async def names() -> dict[str, list[int]]:
                found: defaultdict[str, list[int]] = defaultdict(list)
                async for record in read_topic(bootstrap, COUNTS.name):
                    found[record.key.rpartition(b"@")[0].decode()].append(len(record.value or b""))
                return dict(found)

            before = await names()
            assert {name: len(sizes) for name, sizes in before.items()} == {
                **dict.fromkeys(together, 1),
                f"{EXAMPLES_OF}a/t": 1,
                EPOCH: PARTITIONS,
            }
            for part in count.parts.values():
                part.examples._retention_us = 0
            gone, *stay = together
            count.forget([gone, "of another worker"])
            await count.tidy()
            after = await names()
            assert after[f"{EXAMPLES_OF}a/t"][-1] == 0, "deleted"
            kept = {one.name.decode() for number in range(PARTITIONS) for one in await changelog.read(number)}
            assert kept == {*together, EPOCH}
            assert 0 < after[gone][-1] < before[gone][-1]
            assert await count.examples_of("a/t") == []
            again = Count(_app(consumer, 2), settings)
            assert await again.loaded()
            purged, other = again.counts(gone), again.counts(stay[0])
            assert purged is not None
            assert other is not None
            assert (purged.tenants["t"].uses, dict(purged.applied)) == (1, {})
            assert (other.tenants["t"].uses, len(other.applied)) == (1, 1)
            await again.close()
        finally:
            await count.close()


async def _work(bootstrap: str, folder: Path, generation: int, committed: dict[TP, int], taken_over: bool = False) -> None:
    """One worker of each stage, which reads what there is; a load takes over one partition at most."""
    settings = OptimizerSettings(kafka_bootstrap=bootstrap, partitions=PARTITIONS, data_folder=folder)
    for stage_of in (Join, Count):
        consumer = NothingHandedOn(bootstrap, {TP(topic, one) for topic in stage_of.topics for one in range(PARTITIONS)})
        consumer.committed_to = committed
        stage = stage_of(_app(consumer, generation), settings)
        try:
            loads = 1
            while not await stage.loaded():
                loads += 1
            assert (1 < loads <= PARTITIONS + 1) if taken_over else loads == 1, stage_of
            stage._heard_s = {tp: at_s - QUIET_S for tp, at_s in stage._heard_s.items()}
            await stage.catch_up()
        finally:
            await stage.close()


async def test_a_group_that_was_forgotten_begins_again_from_what_its_last_generation_left(tmp_path: Path) -> None:
    """A broker that has lost its group counts generations from one again, so what is in the changelog looks newer than what comes."""
    async with embedded_broker(tmp_path) as bootstrap:
        await ensure_topics(bootstrap, (*TOPICS, JOINS, COUNTS), PARTITIONS)
        traffic = Traffic(5, adapters=20)
        sent, committed = traffic.make(60), dict[TP, int]()

        await send(bootstrap, sent)
        await _work(bootstrap, tmp_path, 9, committed)
        await send(bootstrap, traffic.rest())
        await _work(bootstrap, tmp_path, 2, committed, taken_over=True)
        assert difference(traffic.truth, await counted(bootstrap)) == (0, 0)
        for topic in (JOINS, COUNTS):
            kept = [(number, one) for number in range(PARTITIONS) for one in await Changelog(bootstrap, topic.name).read(number)]
            assert {one.stamp.generation for _, one in kept} == {2}
            assert len({(number, one.name) for number, one in kept}) == len(kept)


async def test_records_that_are_none_stop_nothing_that_stands_on_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who may write a changelog, may write anything there; a worker that starts goes on from what can be read."""
    async with embedded_broker(tmp_path) as bootstrap:
        await ensure_topics(bootstrap, (*TOPICS, JOINS, COUNTS), PARTITIONS)
        traffic, committed = Traffic(7, adapters=20), dict[TP, int]()
        await send(bootstrap, traffic.make(60))
        await _work(bootstrap, tmp_path, 3, committed)
        outbox, wrong = Outbox(bootstrap), b"\xff" * 50
        keys = [b"", b"x", b"@", b"x@1", b"x@a.b.c", b"@1.1.1", b"x@-1.1.1", b"x@" + b"9" * 40 + b".1.1"]  # and good ones of no value:
        keys += [b"x@3.1.0", b"7@3.1.0", b"landmarks@3.1.0", b"epoch/@3.1.0", b"examples/a/t@3.1.0", b"\xff@3.1.0"]
        try:
            for topic in (JOINS, COUNTS):
                await outbox.send([Record(topic.name, number, key, wrong) for number in range(PARTITIONS) for key in keys])
        finally:
            await outbox.close()
        await send(bootstrap, traffic.rest())
        await _work(bootstrap, tmp_path, 4, committed)
        assert difference(traffic.truth, await counted(bootstrap, lambda one: check_value(one.name.decode(), one.value))) == (0, 0)
        said = [one.getMessage() for one in caplog.records if "left where it is" in one.getMessage()]
        assert len(said) >= len(keys) * PARTITIONS
        assert all("delete it there" in one for one in said)


async def test_what_a_replaced_worker_left_stays_the_older_when_its_group_is_forgotten(tmp_path: Path) -> None:
    """It woke up late, and gave its segment, without the outcomes, a later name than its successor's has."""
    async with embedded_broker(tmp_path) as bootstrap:
        await ensure_topics(bootstrap, (*TOPICS, JOINS, COUNTS), PARTITIONS)
        traffic, joins, committed = Traffic(6, adapters=20), Changelog(bootstrap, JOINS.name), dict[TP, int]()
        sent = [*traffic.make(60), *traffic.rest()]
        decisions, outcomes = ([one for one in sent if one.topic == topic] for topic in (DECISIONS, OUTCOMES))
        await send(bootstrap, decisions)
        await _work(bootstrap, tmp_path, 8, committed)
        left = {number: await joins.read(number) for number in range(PARTITIONS)}
        await send(bootstrap, outcomes)
        await _work(bootstrap, tmp_path, 9, committed)
        outbox = Outbox(bootstrap)
        try:
            for number, several in left.items():
                await outbox.send(
                    joins.record(number, b"%020d" % (2 * int(one.name)), one.stamp, one.value) for one in several if one.name != LANDMARKS
                )
        finally:
            await outbox.close()
        await _work(bootstrap, tmp_path, 2, committed, taken_over=True)
        await send(bootstrap, outcomes)  # again, elsewhere: only the join's state says that they were counted
        await _work(bootstrap, tmp_path, 2, committed)
        assert difference(traffic.truth, await counted(bootstrap)) == (0, 0)


async def test_a_range_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async with embedded_broker(tmp_path) as bootstrap:
        await ensure_topics(bootstrap, TOPICS, PARTITIONS)
        with pytest.raises(Unavailable, match="does not answer"):
            await read_range(bootstrap, DECISIONS, 0, 0, 5, 10, silence_s=0.7)
