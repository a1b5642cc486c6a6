"""What whoever may write a topic may write there: what cannot be used is put aside, alone, and everything else goes on."""

from __future__ import annotations

import time
from typing import Final

import pytest

from services.router.lifecycle_consumer import RANKER_KEY
from smoa.events import (
    ADAPTER_OUTCOMES,
    AUDIT,
    DEAD_LETTER,
    DECISIONS,
    EXAMPLES,
    EXECUTORS,
    LIFECYCLE,
    OUTCOMES,
    TYPES,
    USAGE,
    Event,
    event,
)
from smoa.outbox import send_once
from smoa.reader import messages_of, read_topic
from smoa.v1 import common_pb2 as common
from smoa.v1 import events_pb2, feedback_pb2, router_pb2
from tests.integration.router_support import KNEES
from tests.kafka_support import until
from tests.security.world import World

pytestmark = pytest.mark.asyncio(loop_scope="session")
ULID: Final = "01J9ZC3B5T8QH7M2K4N6P0R1SV"
_NOW_US: Final = time.time_ns() // 1000


def _decision(**fields: object) -> Event:
    made = router_pb2.Decision(**{"decision_id": ULID, "tenant": "acme", "decided_at_us": _NOW_US, **fields})  # type: ignore[arg-type]
    return event(DECISIONS, made.decision_id or "x", made)


def _raw(topic: str, value: bytes, type_name: str = "") -> Event:
    return Event(topic, b"x", value, type_name or TYPES[topic].DESCRIPTOR.full_name)


_MANY: Final = [common.WeightedAdapter(adapter_id=ULID, version=1, digest="0" * 64, weight=1.0)] * 2500
COUNTED: Final[dict[str, tuple[str, Event]]] = {
    "a decision of 2,500 adapters": ("router", _decision(adapters=_MANY)),
    "a decision of a task of 60,000 characters": ("router", _decision(task_id="x" * 60_000)),
    "a decision of an adapter that is a path": ("router", _decision(adapters=[common.WeightedAdapter(adapter_id="examples/x/acme")])),
    "a decision of nobody": ("router", _decision(decision_id="")),
    "a weight that is no number": ("router", _decision(adapters=[common.WeightedAdapter(adapter_id=ULID, weight=float("nan"))])),
    "bytes for a decision": ("router", _raw(DECISIONS, b"\xff" * 1000)),
    "a batch of bytes": ("router", _raw(DECISIONS, b"\xff" * 1000, "smoa.v1.EventBatch")),
    "another kind of event": ("router", _raw(DECISIONS, b"", "smoa.v1.UsageEvent")),
    "bytes for an outcome": ("reporter", _raw(OUTCOMES, b"\xff" * 1000)),
    "an outcome of no decision": ("reporter", event(OUTCOMES, "x", feedback_pb2.Outcome(decision_id="x", tenant="acme"))),
    "an outcome of 900,000 characters": ("reporter", event(OUTCOMES, ULID, feedback_pb2.Outcome(decision_id=ULID, input="x" * 900_000))),
    "an outcome of a score that is no number": (
        "reporter",
        event(OUTCOMES, ULID, feedback_pb2.Outcome(decision_id=ULID, tenant="acme", score=float("nan"))),
    ),
    "bytes for usage": ("executor", _raw(USAGE, b"\xff" * 1000)),
    "usage of less than nothing": ("executor", event(USAGE, ULID, events_pb2.UsageEvent(adapter_id=ULID, tenant="acme", tokens=-5))),
    "bytes for an effect": ("optimizer", _raw(ADAPTER_OUTCOMES, b"\xff" * 1000)),
    "bytes for an example": ("optimizer", _raw(EXAMPLES, b"\xff" * 1000)),
    "an example of another key": (
        "optimizer",
        event(EXAMPLES, f"examples/{ULID}/acme", events_pb2.Example(key=f"examples/{ULID}/acme", tenant="acme", input="i", output="o")),
    ),
}
"""By what it is: who sends it. The optimizer puts each aside."""
_EFFECT: Final = {"a decision of an adapter that is a path": b"examples/x/acme"}
"""Where not the event itself is put aside, but what it means for its adapter: what that has in it."""
NEWS: Final[dict[str, tuple[str, Event]]] = {
    "a ranker that is nested without end": (
        "learner",
        event(
            LIFECYCLE,
            RANKER_KEY,
            events_pb2.LifecycleEvent(action=events_pb2.LIFECYCLE_ACTION_RANKER_PUBLISHED, ranker=b"[" * 200_000),
        ),
    ),
    "bytes for a ranker": (
        "learner",
        event(LIFECYCLE, RANKER_KEY, events_pb2.LifecycleEvent(action=events_pb2.LIFECYCLE_ACTION_RANKER_PUBLISHED, ranker=b"\xff")),
    ),
    "bytes for news": ("router", _raw(LIFECYCLE, b"\xff" * 1000)),
    "news of an adapter that is a path": (
        "router",
        event(LIFECYCLE, "x", events_pb2.LifecycleEvent(adapter_id="examples/x", action=events_pb2.LIFECYCLE_ACTION_UPDATED)),
    ),
    "an executor of less than nothing": (
        "executor",
        event(EXECUTORS, "evil:1", events_pb2.ExecutorStatus(address="evil:1", rows=16, running=-1_000_000)),
    ),
    "an executor of another address, by a clock that is ahead": (
        "executor",
        event(EXECUTORS, "evil.example:443", events_pb2.ExecutorStatus(address="evil.example:443", rows=16, reported_at_us=2 * _NOW_US)),
    ),
    "bytes for an executor": ("executor", _raw(EXECUTORS, b"\xff" * 1000)),
    "an executor of 300,000 adapters": (
        "executor",
        event(EXECUTORS, "evil:2", events_pb2.ExecutorStatus(address="evil:2", rows=16, active=["x"] * 300_000)),
    ),
    "bytes for an audit event": ("router", _raw(AUDIT, b"\xff" * 1000)),
}
"""The routers leave each out."""


async def _letters(world: World) -> set[bytes]:
    found = set[bytes]()
    async for record in read_topic(world.kafka.as_user("operator"), DEAD_LETTER):
        for one in messages_of(record):
            assert isinstance(one, events_pb2.DeadLetter)
            found.add(one.value)
    return found


@pytest.mark.parametrize("what", COUNTED)
async def test_an_event_of_anything_is_put_aside_alone(world: World, what: str) -> None:
    user, bad = COUNTED[what]
    good = _decision(decision_id=f"01J9ZC3B5T8QH7M2K4N6P0R{list(COUNTED).index(what):03}")
    await send_once(world.kafka.as_user(user), [bad])
    await send_once(world.kafka.as_user("router"), [good])

    async def is_there() -> bool:
        shown = _EFFECT.get(what, bad.value)
        return any(shown in letter or letter in bad.value for letter in await _letters(world) if letter)  # a long one is cut

    if what != "an outcome of no decision":  # for which its decision may still come
        await until("a dead letter", 30, is_there)
    assert good.value not in await _letters(world)


@pytest.mark.parametrize("what", NEWS)
async def test_news_of_anything_ends_no_feed(world: World, what: str) -> None:
    user, bad = NEWS[what]
    await send_once(world.kafka.as_user(user), [bad])
    async with world.client("victim") as client:
        decision = await client.route(f"{KNEES[0]} after {what}", base_model=world.base_model, tenant="acme")
    assert "evil" not in decision.executor
    await world.check_alive()


async def test_everything_is_counted_after_all_that(world: World) -> None:
    async with world.client("victim") as client:
        digest = await world.put(world.adapter(tenant="acme", name="after"))
        made = await client.register(digest, [f"after it all {number}" for number in range(5)], "acme")

        decision = await client.route("after it all", base_model=world.base_model, tenant="acme")
        await client.report(decision, success=True)

        async def counted() -> bool:
            found = (await client.get(made.adapter_id, "acme")).statistics
            return (found.uses, found.outcomes) == (1, 1)

        await until("a use and its outcome", 60, counted)
        assert decision.executor in ("", world.executor), "of those who told of themselves, the one that is there"
    await world.check_alive()
