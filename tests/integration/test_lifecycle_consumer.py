"""Several routers over one library and a real Kafka: what one hears of another, of outcomes, and of a ranker."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import grpc
import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.structs import OffsetAndTimestamp
from click.testing import CliRunner
from qdrant_client import AsyncQdrantClient

from services.local import free_port
from services.router.app import build
from services.router.commands import _announce, announced, read_logs, router_group
from services.router.learning.ranker import Ranker, builtin
from services.router.library import Library
from services.router.lifecycle_consumer import RANKER_KEY, LifecycleConsumer
from services.router.routing.cache import RoutingCache
from services.router.routing.executors import Executor
from services.router.routing.router import Router
from services.router.settings import RouterSettings
from smoa.client import SmoaClient
from smoa.errors import InvalidArgument
from smoa.events import ADAPTER_OUTCOMES, EXECUTORS, LIFECYCLE, event, headers
from smoa.outbox import send_once
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import events_pb2, feedback_pb2, registry_pb2, router_pb2
from tests.integration.router_support import KNEES, MONEY, adapter_file
from tests.kafka_support import HOME, SKIP_REASON, ApacheKafka, broker_port, until
from tests.library_support import DIMENSION, qdrant_library

pytestmark = [
    pytest.mark.skipif(not HOME, reason=SKIP_REASON),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]
QUERY = "my knee hurts when I climb stairs"
LEARNED = "ROUTING_STRATEGY_LEARNED"


@dataclasses.dataclass
class Replicas:
    """Two routers over one library."""

    kafka: ApacheKafka
    library: Library
    store: AdapterStore
    clients: list[SmoaClient]

    async def route(self, replica: int, query: str = QUERY, **options: object) -> router_pb2.Decision:
        return await self.clients[replica].route(query, base_model="base-a", **options)  # type: ignore[arg-type]


@pytest.fixture
async def kafka(tmp_path: Path) -> AsyncIterator[ApacheKafka]:
    broker = ApacheKafka(tmp_path / "kafka", broker_port())
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@pytest.fixture
async def replicas(kafka: ApacheKafka, tmp_path: Path) -> AsyncIterator[Replicas]:
    library = await qdrant_library(AsyncQdrantClient(":memory:"), DIMENSION)
    async with AsyncExitStack() as stack:
        clients = []
        for number in range(2):
            settings = RouterSettings(
                address="127.0.0.1:0",
                data_folder=tmp_path / f"router-{number}",
                store=str(tmp_path / "store"),
                kafka_bootstrap=kafka.bootstrap,
            )
            server = await build(settings, stack, library)
            await server.ready()
            clients.append(await stack.enter_async_context(SmoaClient(router=f"127.0.0.1:{server.port}")))
        yield Replicas(kafka, library, AdapterStore(str(tmp_path / "store")), clients)


async def test_what_one_replica_changes_the_others_caches_forget(replicas: Replicas) -> None:
    adapter = await replicas.clients[0].register(await replicas.store.put(adapter_file()), KNEES)

    async def cached_at_the_other() -> bool:  # the first replica's registration may still be on its way, and clears the cache
        return (await replicas.route(1)).cached

    await until("an answer in the other's cache", 20, cached_at_the_other)
    assert [one.adapter_id for one in (await replicas.route(1)).adapters] == [adapter.adapter_id]
    await replicas.clients[0].registry.RetireAdapter(registry_pb2.RetireAdapterRequest(adapter_id=adapter.adapter_id), timeout=10)

    async def forgotten() -> bool:
        return not (await replicas.route(1)).adapters

    await until("the other's cache forgetting it", 20, forgotten)


async def test_routers_of_one_host_share_a_port(replicas: Replicas, tmp_path: Path) -> None:
    await replicas.clients[0].register(await replicas.store.put(adapter_file()), KNEES)
    port = free_port()
    async with AsyncExitStack() as workers:
        for number in range(3):
            settings = RouterSettings(
                address=f"127.0.0.1:{port}",
                share_address=True,
                drain_s=0,
                data_folder=tmp_path / f"worker-{number}",
                store=str(tmp_path / "store"),
                kafka_bootstrap="127.0.0.1:1",
            )
            await (await build(settings, workers, replicas.library)).ready()
        answered = []
        for _ in range(12):  # the kernel deals out connections, so each gets one of its own
            async with SmoaClient(router=f"127.0.0.1:{port}") as client:
                answered.append(bool((await client.route(QUERY, base_model="base-a")).adapters))
        assert all(answered)


async def test_outcomes_and_a_published_ranker_reach_every_replica_and_stay(replicas: Replicas, tmp_path: Path) -> None:
    good = await replicas.clients[0].register(await replicas.store.put(adapter_file()), KNEES)
    bad = await replicas.clients[0].register(await replicas.store.put(adapter_file(name="bad")), KNEES)
    producer = AIOKafkaProducer(bootstrap_servers=replicas.kafka.bootstrap)
    await producer.start()
    try:
        for number in range(40):
            adapter_id, success = ((good.adapter_id, True), (bad.adapter_id, False))[number % 2]
            message = events_pb2.AdapterOutcome(adapter_id=adapter_id, decision_id=str(number), success=success, weight=1.0)
            made = event(ADAPTER_OUTCOMES, adapter_id, message)
            await producer.send_and_wait(made.topic, made.value, key=made.key, headers=headers(made.type_name))
    finally:
        await producer.stop()

    for replica in (0, 1):

        async def prefers_the_good(replica: int = replica) -> bool:
            decision = await replicas.route(replica, strategy=LEARNED)
            assert decision.ranker == "builtin"
            return decision.ranked[0].adapter_id == good.adapter_id and decision.ranked[0].propensity > 0.95

        await until(f"replica {replica} knowing the outcomes", 20, prefers_the_good)

    published = dataclasses.replace(builtin(), version="by-hand", report={"learned_success": 0.9, "hybrid_success": 0.5})
    no_artefact = events_pb2.LifecycleEvent(
        adapter_id=RANKER_KEY, action=events_pb2.LIFECYCLE_ACTION_RANKER_PUBLISHED, ranker=b"no artefact"
    )
    await send_once(replicas.kafka.bootstrap, [event(LIFECYCLE, RANKER_KEY, no_artefact)])
    await _announce(replicas.kafka.bootstrap, published, None, "by hand", {})
    for replica in (0, 1):

        async def decides_with_it(replica: int = replica) -> bool:
            return (await replicas.route(replica, strategy=LEARNED)).ranker == "by-hand"

        await until(f"replica {replica} having the ranker", 20, decides_with_it)
    async with AsyncExitStack() as stack:
        settings = RouterSettings(address="127.0.0.1:0", drain_s=0, data_folder=tmp_path / "late", kafka_bootstrap="127.0.0.1:1")
        server = await build(settings, stack, replicas.library)
        await server.ready()
        late = await stack.enter_async_context(SmoaClient(router=f"127.0.0.1:{server.port}"))
        decision = await late.route(QUERY, base_model="base-a", strategy=LEARNED)
        assert decision.ranker == "by-hand", "a replica that starts later takes it from the library"


async def test_what_was_right_for_such_a_query_is_learned_by_every_replica(replicas: Replicas) -> None:
    for name in ("one", "other"):
        await replicas.clients[0].register(await replicas.store.put(adapter_file(name=name)), KNEES)
    decision = await replicas.route(0, strategy=LEARNED)
    first, second = decision.ranked
    assert first.expected == pytest.approx(0.5, abs=0.1)
    made = [
        events_pb2.AdapterOutcome(adapter_id=first.adapter_id, decision_id=str(number), tenant="public", success=number < 2, weight=1.0)
        for number in range(3)
    ]
    for number in range(6):
        taught = events_pb2.AdapterOutcome(adapter_id=second.adapter_id, decision_id=f"t{number}", tenant="public", success=True)
        taught.weight, taught.context, taught.expected, taught.taught = 1.0, decision.context, second.expected, True
        made.append(taught)
    await send_once(replicas.kafka.bootstrap, [event(ADAPTER_OUTCOMES, one.adapter_id, one) for one in made])
    for replica in (0, 1):

        async def chooses_it(replica: int = replica) -> bool:
            found = await replicas.route(replica, strategy=LEARNED)
            assert found.context == decision.context, "the same query lies where it lay"
            return found.ranked[0].adapter_id == second.adapter_id

        await until(f"replica {replica} having learned", 20, chooses_it)


async def test_strangers_are_learned_by_every_replica(replicas: Replicas) -> None:
    await replicas.clients[0].register(await replicas.store.put(adapter_file()), [f"{KNEES[0]} {number}" for number in range(50)])
    queries = [f"{QUERY} {number}" for number in range(100, 116)]

    async def decisions(replica: int, top_k: int) -> list[router_pb2.Decision]:
        return [await replicas.route(replica, query, top_k=top_k) for query in queries]

    for replica in (0, 1):

        async def judged(replica: int = replica) -> bool:
            return all(one.adapters and one.HasField("closeness") for one in await decisions(replica, 3))

        await until(f"replica {replica} having fitted its pool", 20, judged)
    highest = max(one.closeness.value for one in await decisions(0, 3))
    made = []
    for number in range(300):
        right = number < 200
        one = events_pb2.AdapterOutcome(
            adapter_id="an-adapter", decision_id=f"s{number}", tenant="public", success=right, base_model="base-a"
        )
        one.closeness.value, one.closeness.stands_for = highest + (1 if right else 0), 1
        made.append(one)
    await send_once(replicas.kafka.bootstrap, [event(ADAPTER_OUTCOMES, one.adapter_id, one) for one in made])
    for replica in (0, 1):
        asked = iter(range(1, 1_000))

        async def unanswered(replica: int = replica, asked: Iterator[int] = asked) -> bool:  # each time with another top_k: not cached
            return sum(not one.adapters for one in await decisions(replica, 1 + next(asked) % 16)) > len(queries) / 2

        await until(f"replica {replica} leaving out what is not close", 20, unanswered)
        for decision in await decisions(replica, 16):
            assert decision.HasField("closeness") == bool(decision.adapters), "of what is not answered, no outcome comes"


async def test_decisions_name_the_executor_that_has_the_adapter(replicas: Replicas) -> None:
    adapter = await replicas.clients[0].register(await replicas.store.put(adapter_file()), KNEES)
    producer = AIOKafkaProducer(bootstrap_servers=replicas.kafka.bootstrap)
    await producer.start()

    async def report(address: str, **status: object) -> None:
        now_us = time.time_ns() // 1000
        message = events_pb2.ExecutorStatus(address=address, base_model="base-a", rows=16, reported_at_us=now_us, **status)  # type: ignore[arg-type]
        made = event(EXECUTORS, address, message)
        await producer.send_and_wait(made.topic, made.value, key=made.key, headers=headers(made.type_name))

    async def sent_to(address: str) -> bool:
        return [(await replicas.route(replica)).executor for replica in (0, 1)] == [address] * 2

    try:
        assert await sent_to("")

        async def sent_to_where_it_is() -> bool:
            await report("empty:1", free_slots=4)
            await report("has-it:1", active=[adapter.adapter_id])
            return await sent_to("has-it:1")

        async def sent_elsewhere() -> bool:
            await report("empty:1", free_slots=4)
            return await sent_to("empty:1")

        await until("sending to where it is", 30, sent_to_where_it_is)
        await report("has-it:1", leaving=True)
        await until("sending elsewhere", 20, sent_elsewhere)

        digest = await replicas.store.put(adapter_file(name="other"))
        shape = common.ModelShape(layers=1, modules={"q_proj": common.LinearShape(outputs=4, inputs=4)}, max_lora_xs_rank=1)

        async def refused_by_both() -> bool:
            await report("small:1", model=shape)
            answers = [client.register(digest, MONEY) for client in replicas.clients]
            errors = await asyncio.gather(*answers, return_exceptions=True)
            return all(isinstance(error, grpc.aio.AioRpcError) and "over the executor's 1" in str(error.details()) for error in errors)

        await until("what does not fit being refused", 20, refused_by_both)
    finally:
        await producer.stop()


async def test_a_ranker_published_while_the_only_router_was_down_is_taken(kafka: ApacheKafka, tmp_path: Path) -> None:
    settings = RouterSettings(
        address="127.0.0.1:0", data_folder=tmp_path / "router", store=str(tmp_path / "store"), kafka_bootstrap=kafka.bootstrap
    )

    @asynccontextmanager
    async def router() -> AsyncIterator[SmoaClient]:
        async with AsyncExitStack() as stack:
            server = await build(settings, stack)
            await server.ready()
            yield await stack.enter_async_context(SmoaClient(router=f"127.0.0.1:{server.port}"))

    async with router() as client:
        await client.register(await AdapterStore(settings.store).put(adapter_file()), KNEES)
        assert (await client.route(QUERY, base_model="base-a", strategy=LEARNED)).ranker == "builtin"
    for version in ("first", "second"):
        await _announce(kafka.bootstrap, dataclasses.replace(builtin(), version=version), None, "by hand", {})
    async with router() as client:

        async def decides_with_it() -> bool:
            return (await client.route(QUERY, base_model="base-a", strategy=LEARNED)).ranker == "second"

        await until("the ranker of meanwhile", 30, decides_with_it)


async def test_nothing_is_missed_when_topics_grow(kafka: ApacheKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client forgets its positions when a topic gets more partitions, and would go on at their ends."""
    router = Router(Mock(), Mock(), Mock(), RoutingCache(0), Mock())
    catalogue = Mock(get_document=AsyncMock(return_value=None))
    consumer = LifecycleConsumer(kafka.bootstrap, router, catalogue, catalogue, "own")
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, metadata_max_age_ms=500)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    sent, heard = 0, set[str]()

    def report(executor: Executor, now_us: int) -> None:
        heard.add(executor.address)  # the directory itself forgets who falls silent, as a slow machine's would here

    monkeypatch.setattr(router.executors, "report", report)

    async def send(count: int) -> None:
        nonlocal sent
        for number in range(sent, sent + count):
            made = event(EXECUTORS, str(number), events_pb2.ExecutorStatus(address=str(number), rows=1))
            await producer.send(made.topic, made.value, key=made.key, headers=headers(made.type_name))
        await producer.flush()
        sent += count

    async def all_known() -> bool:
        return len(heard) == sent

    try:
        await producer.start()
        await admin.start()
        await consumer.start()
        await until("listening", 20, lambda: _followed(consumer, 3 * 4))
        await send(50)
        await until("the first", 20, all_known)
        await admin.create_partitions({EXECUTORS: NewPartitions(8)})

        async def sent_while_growing() -> bool:
            await send(20)
            return await _followed(consumer, 4 + 4 + 8)

        await until("following the new partitions", 30, sent_while_growing)
        await send(50)
        await until("all", 20, all_known)
        assert consumer.refused == 0
        bad = event(LIFECYCLE, "no id", events_pb2.LifecycleEvent(adapter_id="no id", action=events_pb2.LIFECYCLE_ACTION_UPDATED))
        await producer.send_and_wait(bad.topic, bad.value, key=bad.key, headers=headers(bad.type_name))

        async def refused() -> bool:
            return consumer.refused == 1

        await until("an event of no adapter being refused", 20, refused)
        await send(20)
        await until("all after it", 20, all_known)
    finally:
        await consumer.stop()
        await producer.stop()
        await admin.close()


async def test_what_comes_while_a_place_is_looked_for_is_heard(kafka: ApacheKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition that was empty an hour back is followed from its end: from where that was before anything was asked."""
    router = Router(Mock(), Mock(), Mock(), RoutingCache(0), Mock())
    catalogue = Mock(get_document=AsyncMock(return_value=None))
    consumer = LifecycleConsumer(kafka.bootstrap, router, catalogue, catalogue, "own")
    looked_back = AIOKafkaConsumer.offsets_for_times

    async def meanwhile(self: AIOKafkaConsumer, timestamps: dict[TopicPartition, int]) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        found: dict[TopicPartition, OffsetAndTimestamp | None] = await looked_back(self, timestamps)
        outcome = events_pb2.AdapterOutcome(adapter_id="a", tenant="public", success=True, weight=1.0)
        status = events_pb2.ExecutorStatus(address="e", rows=1, reported_at_us=time.time_ns() // 1000)
        await send_once(kafka.bootstrap, [event(ADAPTER_OUTCOMES, "a", outcome), event(EXECUTORS, "e", status)])
        return found

    monkeypatch.setattr(AIOKafkaConsumer, "offsets_for_times", meanwhile)

    async def both_known() -> bool:
        return router.learned.posteriors.evidence("public", "a") == 1 and len(router.executors) == 1

    try:
        await consumer.start()
        await until("both being known", 20, both_known)
        assert consumer.refused == 0
    finally:
        await consumer.stop()


async def _followed(consumer: LifecycleConsumer, partitions: int) -> bool:
    return len(consumer._following) == partitions


async def test_from_served_decisions_to_a_published_ranker(replicas: Replicas, tmp_path: Path) -> None:
    good = await replicas.clients[0].register(await replicas.store.put(adapter_file()), KNEES)
    for number in range(2):
        await replicas.clients[0].register(await replicas.store.put(adapter_file(name=str(number))), KNEES)
    await replicas.clients[0].register(await replicas.store.put(adapter_file()), MONEY)
    rng = np.random.default_rng(0)
    for number in range(260):
        decision = await replicas.route(number % 2, f"{QUERY} {number % 9}", strategy=LEARNED, top_k=1)
        success = bool(rng.random() < (0.9 if decision.adapters[0].adapter_id == good.adapter_id else 0.3))
        outcome = feedback_pb2.Outcome(decision_id=decision.decision_id, tenant="public", success=success)
        await replicas.clients[0].feedback.ReportOutcome(feedback_pb2.ReportOutcomeRequest(outcome=outcome), timeout=10)
    log, ranker = str(tmp_path / "log.jsonl"), str(tmp_path / "ranker.json")

    async def smoa(*arguments: str) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, router_group, arguments, catch_exceptions=False)
        return str(result.output)

    async def all_logged() -> bool:
        return "260 decisions with outcomes" in await smoa("log", "-o", log, "--kafka", replicas.kafka.bootstrap)

    await until("every outcome in Kafka", 30, all_logged)
    report = json.loads(await smoa("train", log, "-o", ranker, "--json"))
    assert report["outcomes"] == 260
    judged = json.loads(await smoa("judge", log, "--ranker", ranker, "--json"))
    assert 0 < judged["learned"]["success"] < 1.2
    assert "is announced" in await smoa("publish", ranker, "--anyway", "--kafka", replicas.kafka.bootstrap)

    async def decides_with_it() -> bool:
        return (await replicas.route(1, strategy=LEARNED)).ranker == str(report["version"])

    await until("the trained ranker in use", 20, decides_with_it)
    current, before, at_us = await announced(replicas.kafka.bootstrap)
    assert (current, before) == (Ranker.from_bytes(Path(ranker).read_bytes()), builtin())
    assert at_us > 0
    done = json.loads(await smoa("learn", "--dry-run", "--json", "--kafka", replicas.kafka.bootstrap))
    assert (done["current"], done["outcomes"]) == (report["version"], 260)
    assert done["reason"] == f"0 outcomes since {report['version']} was announced; 200 are waited for"
    without = json.loads(await smoa("learn", "--dry-run", "--json", "--without", "public", "--kafka", replicas.kafka.bootstrap))
    assert without["outcomes"] == 0


@pytest.mark.parametrize("line", ["", "{}", '{"decision": {}, "outcome": {}}', '{"decision": {"nonsense": 1}}', "[1]"])
def test_lines_that_are_no_log_are_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InvalidArgument, match=r"log\.jsonl:1: "):
        read_logs([path])
