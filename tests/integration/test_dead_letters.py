"""What could not be used is put aside with its reason, and can be sent again: `smoa dlq`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from services.optimizer.stream.dlq import dlq_group
from smoa.errors import FailedPrecondition, NotFound
from smoa.events import ADAPTER_OUTCOMES, DEAD_LETTER, DECISIONS, OUTCOMES, event, headers
from smoa.outbox import Outbox, Record, send_once
from smoa.v1 import common_pb2, events_pb2, feedback_pb2, router_pb2
from tests.kafka_support import embedded_broker, read_all, until
from tests.stream_support import Worker, counted

DECISION = router_pb2.Decision(decision_id="late", tenant="t", adapters=[common_pb2.WeightedAdapter(adapter_id="a", weight=1.0)])
OUTCOME = feedback_pb2.Outcome(decision_id="late", tenant="t", success=True, score=0.25)


@pytest.fixture
async def kafka(tmp_path: Path) -> AsyncIterator[str]:
    async with embedded_broker(tmp_path) as bootstrap:
        yield bootstrap


async def _dlq(*arguments: str) -> Result:
    assert isinstance(dlq_group, click.Group)
    return await asyncio.to_thread(CliRunner().invoke, dlq_group, arguments)


async def _bury(kafka: str, topic: str, value: bytes) -> str:
    letter = events_pb2.DeadLetter(topic=topic, partition=1, offset=2, key=b"late", value=value, reason="because: of it", dead_at_us=1)
    await send_once(kafka, [event(DEAD_LETTER, f"{topic}:1:2:0", letter)])
    return f"{topic}:1:2:0"


async def test_an_outcome_without_its_decision_is_put_aside_and_counts_when_it_is_replayed(kafka: str, tmp_path: Path) -> None:
    worker = Worker(kafka, tmp_path, "worker", SMOA_OPTIMIZER_JOIN_GRACE_S="1")
    try:
        await send_once(kafka, [event(OUTCOMES, "late", OUTCOME)])

        async def buried() -> bool:
            return len(await read_all(kafka, DEAD_LETTER)) == 1

        await until("a dead letter", 60, buried)
        listed = json.loads((await _dlq("list", "--kafka", kafka, "--json")).output)
        assert listed["reason"].startswith("decision_id: no decision of this id came within 1 s; ")
        await send_once(kafka, [event(DECISIONS, "late", DECISION)])
        said = (await _dlq("replay", "--kafka", kafka, listed["id"])).output
        assert said == "sent 1 again, left 0\n"

        async def counts() -> bool:
            return (await counted(kafka)).get("a") == (1, 1, 0.25)

        await until("the outcome's count", 60, counts)
        assert (await _dlq("list", "--kafka", kafka)).output == "nothing is put aside\n"
        assert (await _dlq("replay", "--kafka", kafka, "--all")).output == "sent 0 again, left 0\n"
    finally:
        worker.stop()


async def test_an_outcome_on_a_partition_of_its_senders_choice_counts(kafka: str, tmp_path: Path) -> None:
    worker = Worker(kafka, tmp_path, "worker")
    outbox = Outbox(kafka)
    try:
        await send_once(kafka, [event(DECISIONS, "late", DECISION)])
        everywhere = [Record(OUTCOMES, number, b"late", OUTCOME.SerializeToString(), headers("smoa.v1.Outcome")) for number in range(4)]
        await outbox.send(everywhere)

        async def counts() -> bool:
            return (await counted(kafka)).get("a") == (1, 1, 0.25)

        await until("the outcome's count", 60, counts)
        assert await counted(kafka) == {"a": (1, 1, 0.25)}, "its four copies are one outcome"
    finally:
        await outbox.close()
        worker.stop()


async def test_what_would_only_come_back_is_left(kafka: str) -> None:
    name = await _bury(kafka, OUTCOMES, b"\xff\xff")
    ran = await _dlq("replay", "--kafka", kafka, "--reason", "because")
    assert ran.output.startswith(f"left: {name}: value: is not a smoa.v1.Outcome (")
    assert ran.output.endswith("; serialise it with the contracts of smoa.v1\nsent 0 again, left 1\n")
    assert "1 of smoa.outcomes.v1: because" in (await _dlq("list", "--kafka", kafka)).output
    assert (await _dlq("list", "--kafka", kafka, "--reason", "other")).output == "none of the 1 that are put aside\n"


async def test_a_dry_run_sends_nothing(kafka: str) -> None:
    await _bury(kafka, OUTCOMES, OUTCOME.SerializeToString())
    assert (await _dlq("replay", "--kafka", kafka, "--all", "--dry-run")).output == "would send 1 again, left 0\n"
    assert await read_all(kafka, OUTCOMES) == []


async def test_what_is_asked_wrongly_is_said(kafka: str) -> None:
    assert "name ids, or choose with --topic, --reason or --all" in (await _dlq("replay", "--kafka", kafka)).output
    assert isinstance((await _dlq("replay", "--kafka", kafka, "x:0:0:0")).exception, NotFound)
    name = await _bury(kafka, ADAPTER_OUTCOMES, b"\x0a\x01a")
    assert isinstance((await _dlq("replay", "--kafka", kafka, name)).exception, FailedPrecondition)
