"""`smoa optimizer propose`: from corrected failures in the optimizer's changelog to an adapter that was trained, tried and registered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from services.optimizer.control.commands import optimizer_group
from services.optimizer.stream.changelog import COUNTS, Changelog, Stamp
from services.optimizer.stream.counting import EXAMPLES_OF
from smoa.outbox import Outbox
from smoa.store import AdapterStore
from smoa.topics import ensure_topics, partition_of
from smoa.v1 import common_pb2 as common
from smoa.v1.events_pb2 import Example
from smoa.v1.state_pb2 import ExampleSet
from tests.integration.executor_support import World, running_executor
from tests.integration.router_support import RouterWorld, running_router
from tests.kafka_support import embedded_broker
from tests.stream_support import PARTITIONS

KEY = "failures/public"


@dataclass
class _World:
    router: RouterWorld
    executor: World
    kafka: str
    folder: Path

    async def failed(self, count: int, adapters: tuple[str, ...] = (), text: str = "") -> None:
        """So many corrected failures are known."""
        now_us = time.time_ns() // 1000
        examples = [
            Example(
                key=KEY,
                decision_id=f"d{number}",
                tenant="public",
                input=text or f"w{number} w{number + 1} w{number + 2}",
                output=f"w{100 + number % 2}",
                occurred_at_us=now_us - 1000 + number,
                adapter_ids=adapters,
            )
            for number in range(count)
        ]
        value = ExampleSet(examples=[one.SerializeToString() for one in examples]).SerializeToString()
        outbox, changelog = Outbox(self.kafka), Changelog(self.kafka, COUNTS.name)
        name = f"{EXAMPLES_OF}{KEY}".encode()
        try:
            await outbox.send([changelog.record(partition_of(KEY.encode(), PARTITIONS), name, Stamp(1, 1, 0), value)])
        finally:
            await outbox.close()

    async def proposed(self, *arguments: str) -> list[dict[str, object]]:
        where = {
            "SMOA_KAFKA_BOOTSTRAP": self.kafka,
            "SMOA_ROUTER": self.router.address,
            "SMOA_EXECUTOR": self.executor.address,
            "SMOA_STORE": str(self.folder / "store"),
            "SMOA_BASE_MODEL": str(self.folder / "model"),
        }
        ran = await asyncio.to_thread(CliRunner().invoke, optimizer_group, ["propose", "--json", *arguments], env=where)
        if ran.exception is not None:
            raise ran.exception
        return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[_World]:
    async with (
        embedded_broker(tmp_path) as kafka,
        running_router(tmp_path) as router,
        running_executor("native", tmp_path, monkeypatch) as executor,
    ):
        await ensure_topics(kafka, [COUNTS], PARTITIONS)
        yield _World(router, executor, kafka, tmp_path)


async def test_an_adapter_is_trained_tried_and_registered(world: _World) -> None:
    assert await world.proposed() == []
    await world.failed(40)
    [found] = await world.proposed("--output", str(world.folder / "pairs"))
    assert (found["examples"], found["uncovered"], found["newest"]) == (40, 1.0, "w39 w40 w41")
    pairs = [json.loads(line) for line in Path(str(found["file"])).read_text().splitlines()]
    assert pairs[0] == {"input": "w0 w1 w2", "output": "w100"}
    assert len(pairs) == 40
    assert [one async for one in world.router.client.list_all()] == [], "it only looked"

    [poor] = await world.proposed("--train", "--steps", "1", "--learning-rate", "0.000001")
    assert str(poor["verdict"]).startswith("not registered: ")
    assert [one async for one in world.router.client.list_all()] == []

    [learned] = await world.proposed("--train", "--steps", "60", "--learning-rate", "0.3")
    assert str(learned["verdict"]).startswith("registered: ")
    adapter = await world.router.client.get(str(learned["adapter"]))
    assert (adapter.tags[0], adapter.kind, adapter.name) == ("from-failures", common.ADAPTER_KIND_LORA_XS, found["region"])
    assert {tag.removeprefix("from-failures:") for tag in adapter.tags[1:]} <= {f"d{number}" for number in range(40)}
    assert await world.proposed() == [], "what was learned from is not proposed again"
    await world.router.client.retire("public", adapter.adapter_id, "pruned: by the test")
    assert await world.proposed() == [], "nor when the adapter did not do"
    store = AdapterStore(str(world.folder / "store"))
    assert len(list(Path(store.location).rglob("*.safetensors"))) == 1, "what was not registered is not kept"


async def test_the_same_question_again_and_again_teaches_nothing_and_ends_nothing(world: _World) -> None:
    await world.failed(30, text="w1 w2 w3")
    [line] = await world.proposed("--train", "--steps", "1")
    assert line["verdict"] == "not registered: 1 different inputs to try it on, under 4"


async def test_where_adapters_answered_none_is_missing(world: _World) -> None:
    await world.failed(40, ("a",))
    assert await world.proposed() == []
    [found] = await world.proposed("--min-uncovered", "0")
    assert found["uncovered"] == 0.0


async def test_few_failures_are_not_enough(world: _World) -> None:
    await world.failed(19)
    assert await world.proposed() == []
