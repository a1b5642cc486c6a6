"""The whole loop with every door closed: TLS, keys, and a Kafka on which each service may do what the table of rights says, and no more."""

from __future__ import annotations

import pytest

from services.optimizer.control.passes import Optimizer
from services.optimizer.policy.library_policy import Rules
from smoa.events import OUTCOMES, event
from smoa.outbox import send_once
from smoa.v1 import feedback_pb2
from tests.integration.router_support import KNEES
from tests.kafka_support import until
from tests.security.world import World

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_what_is_routed_answered_and_reported_is_counted(world: World) -> None:
    async with world.client("victim") as client:
        made = await client.register(await world.put(world.adapter(tenant="acme")), KNEES, "acme")
        decisions = [await client.route(f"{KNEES[0]} {number}", base_model=world.base_model, tenant="acme") for number in range(4)]
        for decision in decisions:
            assert [one.adapter_id for one in decision.adapters] == [made.adapter_id]
        await client.generate(KNEES[0], decisions[0], max_tokens=2)
        for decision in decisions[:3]:
            await client.report(decision, success=True)
        outcome = feedback_pb2.Outcome(decision_id=decisions[3].decision_id, tenant="acme", success=True)
        await send_once(world.kafka.as_user("reporter"), [event(OUTCOMES, outcome.decision_id, outcome)])

        async def counted() -> bool:
            found = (await client.get(made.adapter_id, "acme")).statistics
            return (found.uses, found.outcomes, found.generations) == (4, 4, 1)

        await until("the counts of a user of each kind", 60, counted)


async def test_the_optimizers_role_is_enough_for_a_pass(world: World) -> None:
    async with world.client("merger") as client:
        report = await Optimizer(client, world.store, Rules(), lambda _: 0, 100).run_pass()
    assert (report.pruned, report.merged, report.tried) == ([], [], [])
