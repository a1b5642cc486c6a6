"""The stack as processes, on the embedded broker and on a real Apache Kafka: the loop, and what kill -9 may not lose."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from aiokafka import AIOKafkaProducer

from examples.library import ADAPTERS
from examples.library.jobs import JOBS
from services.local import LocalStack, StackSettings, free_port
from smoa.client import SmoaClient
from smoa.events import DEAD_LETTER, DECISIONS, LIFECYCLE, OUTCOMES, USAGE
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import events_pb2, router_pb2
from tests.kafka_support import HOME, SKIP_REASON, ApacheKafka, broker_port, read_all, read_events, until

LIBRARY = ("med_department", "support_intent", "code_language", "travel_request")
EVERY_STATE = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_RETIRED)


@dataclass
class World:
    """A running stack, its client, and the real Kafka under it, if any."""

    stack: LocalStack
    client: SmoaClient
    store: AdapterStore
    kafka: ApacheKafka | None
    base_model: str = ""
    decisions: list[router_pb2.Decision] = field(default_factory=list)
    reported: list[router_pb2.Decision] = field(default_factory=list)

    async def register(self, name: str) -> str:
        """Push one adapter of the library; returns its id once that was acknowledged."""
        digest = await self.store.put((ADAPTERS / f"{name}.safetensors").read_bytes())
        examples = [example.input for example in JOBS[name].generate("train", 50, 0)]
        return (await self.client.register(digest, examples)).adapter_id

    async def ask(self, name: str, number: int, generate: bool) -> None:
        """Route, perhaps generate, and report; each call is tried again while its service is away."""
        query = JOBS[name].generate("test", 40, 5)[number % 40]
        decision = await retried(lambda: self.client.route(f"{query.input} #{number}", base_model=self.base_model))
        self.decisions.append(decision)
        answer = query.output
        if generate:
            answer, _ = await retried(lambda: self.client.generate(query.input, decision, max_tokens=6))
        await retried(lambda: self.client.report(decision, success=answer.strip() == query.output))
        self.reported.append(decision)

    async def counted(self) -> tuple[int, int, int]:
        """(uses, outcomes, generations) that the registry shows."""
        found = [a.statistics async for a in self.client.list_all(states=EVERY_STATE)]
        return sum(s.uses for s in found), sum(s.outcomes for s in found), sum(s.generations for s in found)


async def retried(call, within_s: float = 90.0):  # type: ignore[no-untyped-def]
    """What a caller does while a service restarts."""
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            gone = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
            if error.code() not in gone or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)


@pytest.fixture(params=["embedded", "apache"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    kafka: ApacheKafka | None = None
    if request.param == "apache":
        if not HOME:
            pytest.skip(SKIP_REASON)
        kafka = ApacheKafka(tmp_path / "kafka", broker_port())
        await kafka.start()
    settings = StackSettings(
        data=tmp_path / "stack",
        router_port=free_port(),
        executor_port=free_port(),
        gateway_port=free_port(),
        kafka_bootstrap=kafka.bootstrap if kafka else "",
        environment={
            "SMOA_OPTIMIZER_INTERVAL_S": "0",
            "SMOA_STORE": str(tmp_path / "store"),
            "SMOA_OPTIMIZER_MIN_AGE_S": "0",
            "SMOA_OPTIMIZER_OBSERVE_FIRST_S": "0",
        },
    )
    with (tmp_path / "stack.log").open("w") as log:
        stack = LocalStack(settings, log)
        try:
            await stack.start()
            async with SmoaClient(router=settings.router, executor=settings.executor) as client:
                made = World(stack, client, AdapterStore(settings.store), kafka)
                made.base_model = (await client.status()).base_model
                yield made
        finally:
            await stack.stop()
            if kafka is not None:
                await kafka.stop()


async def assert_exact(world: World) -> None:
    """Counts equal what is in Kafka, and everything acknowledged is there."""
    bootstrap = world.stack.kafka_bootstrap

    async def facts() -> tuple[tuple[int, int, int], set[str], set[str]]:
        decided = {}
        for record in await read_events(bootstrap, DECISIONS):
            decision = router_pb2.Decision.FromString(record.value)
            decided[decision.decision_id] = len(decision.adapters)
        judged = {record.key.decode() for record in await read_events(bootstrap, OUTCOMES)}
        used = {(record.producer_id, record.sequence) for record in await read_events(bootstrap, USAGE)}
        outcomes = sum(decided[decision_id] for decision_id in judged if decision_id in decided)
        return (sum(decided.values()), outcomes, len(used)), set(decided), judged

    async def equal() -> bool:
        counts, decided, judged = await facts()
        missing = {one.decision_id for one in world.decisions} - decided | {one.decision_id for one in world.reported} - judged
        return not missing and await world.counted() == counts  # what is missing may still be in the router's spool

    try:
        await until("exact counts", 60, equal)
    except AssertionError as error:
        raise AssertionError(f"counted {await world.counted()}, in Kafka {(await facts())[0]}") from error
    _, decided, judged = await facts()
    assert {decision.decision_id for decision in world.decisions} <= decided
    assert {decision.decision_id for decision in world.reported} == judged


@pytest.mark.timeout(240)
async def test_the_loop_routes_executes_counts_and_optimises(world: World) -> None:
    for name in LIBRARY:
        await world.register(name)
    for number in range(3):
        for name in LIBRARY:
            await world.ask(name, number, generate=True)
    await assert_exact(world)
    uses, outcomes, generations = await world.counted()
    assert uses == sum(len(decision.adapters) for decision in world.decisions) > 0
    assert outcomes == uses
    assert generations == uses

    # The executor tells the routers what it holds, and decisions name it: a caller needs to know the router only.
    async def named() -> bool:
        executor = (await world.client.route("what time does the train leave", base_model=world.base_model)).executor
        return bool(executor == world.stack.settings.executor)

    await until("a decision that names the executor", 20, named)
    async with SmoaClient(router=world.stack.settings.router) as alone:
        decision = await alone.route("what time does the train leave", base_model=world.base_model)
        assert (await alone.generate("what time does the train leave", decision, max_tokens=2))[1].completion_tokens
        world.decisions.append(decision)

    # What happens to an adapter is told on the lifecycle topic.
    (idle,) = [a async for a in world.client.list_all() if a.name == "travel_request"]
    await world.client.retire("public", idle.adapter_id, "by the test")

    async def told() -> bool:
        events = [events_pb2.LifecycleEvent.FromString(r.value or b"") for r in await read_all(world.stack.kafka_bootstrap, LIFECYCLE)]
        return any(e.adapter_id == idle.adapter_id and e.action == events_pb2.LIFECYCLE_ACTION_RETIRED for e in events)

    await until("the lifecycle event", 20, told)


@pytest.mark.timeout(240)
async def test_a_malformed_message_goes_to_the_dead_letter_topic_and_the_stream_goes_on(world: World) -> None:
    await world.register("med_department")
    producer = AIOKafkaProducer(bootstrap_servers=world.stack.kafka_bootstrap)
    await producer.start()
    try:
        await producer.send_and_wait(OUTCOMES, b"\xff\xff not a message", key=b"nobody")
        await producer.send_and_wait(DECISIONS, None, key=b"empty")
    finally:
        await producer.stop()
    await world.ask("med_department", 1, generate=False)

    async def buried() -> bool:
        return len(await read_all(world.stack.kafka_bootstrap, DEAD_LETTER)) == 2

    await until("two dead letters", 30, buried)
    letters = [events_pb2.DeadLetter.FromString(r.value or b"") for r in await read_all(world.stack.kafka_bootstrap, DEAD_LETTER)]
    reasons = {letter.topic: letter.reason for letter in letters}
    assert reasons[OUTCOMES].startswith("value: is not a smoa.v1.Outcome (")
    assert reasons[DECISIONS] == "value: of a smoa.decisions.v1 message is empty; produce a serialised smoa.v1.Decision"
    assert {letter.key for letter in letters} == {b"nobody", b"empty"}

    async def went_on() -> bool:
        uses, outcomes, _ = await world.counted()
        return uses == outcomes == len(world.decisions[0].adapters) > 0

    await until("the next outcome", 30, went_on)


@pytest.mark.timeout(400)
async def test_kill_9_of_every_process_in_traffic_loses_nothing_acknowledged(world: World) -> None:
    registered = [await world.register(name) for name in LIBRARY[:3]]
    stopping = asyncio.Event()

    async def traffic(lane: int) -> None:
        number = lane
        while not stopping.is_set():
            await world.ask(LIBRARY[number % 3], number, generate=lane == 0)
            number += 4

    async with asyncio.TaskGroup() as group:
        for lane in range(4):
            group.create_task(traffic(lane))

        async def progress(more: int) -> None:
            goal = len(world.reported) + more

            async def reached() -> bool:
                return len(world.reported) >= goal

            await until(f"{more} more outcomes", 90, reached)

        await progress(20)
        for victim in ("optimizer", "executor", "router"):
            if victim == "router":
                registered.append(await world.register(LIBRARY[3]))
            before = world.stack.restarts(victim)
            os.kill(world.stack.pid(victim), signal.SIGKILL)

            async def restarted(victim: str = victim, before: int = before) -> bool:
                return world.stack.restarts(victim) > before

            await until(f"a restart of the {victim}", 30, restarted)
            await world.stack.wait_ready(victim)
            await progress(20)
        if world.kafka is not None:
            world.kafka.kill()
            await progress(20)  # the request path does not wait for Kafka
            await world.kafka.start()
            await progress(20)
        stopping.set()
    found = {adapter.adapter_id async for adapter in world.client.list_all()}
    assert set(registered) <= found
    await assert_exact(world)
    uses, outcomes, _ = await world.counted()
    assert uses >= sum(len(decision.adapters) for decision in world.decisions)
    assert outcomes == sum(len(decision.adapters) for decision in world.reported)


async def smoa(world: World, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line, pointed at the stack's folder."""
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).parent / "smoa"), *arguments),
        env={**os.environ, "SMOA_STACK": str(world.stack.settings.data), "COLUMNS": "80"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("world", ["embedded"], indirect=True)
async def test_the_readmes_commands_from_training_to_an_answer(world: World, tmp_path: Path) -> None:
    async def good(*arguments: str) -> str:
        code, out, err = await smoa(world, *arguments)
        assert code == 0, err
        return out

    # Third parties' noise is out of the log; their warnings and errors are not.
    ours = re.compile(r"\w+ +\| (broker on |starting for |\S+Z (WARNING|ERROR|INFO (smoa|services)\.))")
    assert [line for line in (tmp_path / "stack.log").read_text().splitlines() if not ours.match(line)] == []

    data, file = str(tmp_path / "tickets.jsonl"), str(tmp_path / "tickets.safetensors")
    pairs = JOBS["support_intent"].generate("train", 40, 0)
    Path(data).write_text("".join(json.dumps({"input": p.input, "output": p.output}) + "\n" for p in pairs))
    said = await good("adapter", "train", data, "-o", file, "--tag", "support", "--steps", "2", "--kind", "lora", "--rank", "2")
    assert "parameters" in said
    pushed = json.loads(await good("adapter", "push", file, "--examples", data))
    name = pushed["adapter_id"]
    assert name in await good("adapter", "list")
    routed = json.loads(await good("route", pairs[0].input, "--json"))
    assert [item["adapter_id"] for item in routed["adapters"]] == [name]
    assert name in await good("route", pairs[0].input, "--strategy", "task", "--tag", "support")
    code, text, usage = await smoa(world, "generate", pairs[0].input, "--max-tokens", "4")
    assert (code, usage[:11]) == (0, "[1 adapters")
    assert text.strip()
    whole = json.loads(await good("generate", pairs[0].input, "--max-tokens", "4", "--json"))
    assert whole["text"].strip() == text.strip()
    assert 0 < whole["usage"]["completion_tokens"] <= 4
    assert whole["decision"]["adapters"][0]["adapter_id"] == name
    tree = tmp_path / "tree.json"
    tree.write_text(
        json.dumps({"sequential": [{"adapter_id": name, "max_tokens": 4}, {"parallel": [{"adapter_id": name, "weight": 0.5}]}]})
    )
    assert json.loads(await good("composition", "create", "support", str(tree)))["adapter_ids"] == [name]
    code, text, usage = await smoa(world, "generate", pairs[0].input, "--composition", "support", "--max-tokens", "4")
    assert (code, usage[:23]) == (0, "[1 adapters in 2 stages")
    assert text.strip()
    assert "support" in await good("composition", "list")
    assert json.loads(await good("adapter", "retire", name, "--reason", "to see"))["state_reason"] == "to see"
    assert json.loads(await good("route", pairs[0].input, "--json")).get("adapters", []) == []
    assert json.loads(await good("adapter", "restore", name))["state"] == "ADAPTER_STATE_ACTIVE"
    assert json.loads(await good("adapter", "show", name))["state"] == "ADAPTER_STATE_ACTIVE"
    await good("adapter", "export", name, str(tmp_path / "peft"))
    again = str(tmp_path / "again.safetensors")
    await good("adapter", "import", str(tmp_path / "peft"), "-o", again)
    assert json.loads(await good("status", "--json"))["base_model"] == world.base_model
    assert "nothing of public is on trial" in await good("optimizer", "status")
    assert "restored" in await good("optimizer", "history", "tickets")
    assert "nothing is put aside" in await good("dlq", "list")
    assert "decisions with outcomes" in await good("router", "log", "-o", str(tmp_path / "log.jsonl"))
    assert "traffic, last 10 s" in await good("top", "--seconds", "1")

    Path(again).write_bytes(Path(again).read_bytes()[:-5])
    code, _, err = await smoa(world, "adapter", "push", again, "--examples", data)
    assert (code, err[:43]) == (1, "error: file: is not a whole safetensors fil")
    code, _, err = await smoa(world, "route", "x", "--strategy", "best")
    assert code == 2
    assert "'best' is not one of" in err
    code, _, err = await smoa(world, "route", "x", "--executor", "127.0.0.1:1")
    expected = (
        "error: nothing answers for the executor at 127.0.0.1:1 (from --executor); correct --executor, or leave it out to take the address "
        "from a local stack's folder (--stack, SMOA_STACK)\n"
    )
    assert (code, err) == (1, expected)
