"""Callers whose outcomes are as the adapters deserve, and what the optimizer would count of them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from services.optimizer.stream.counting import pair, stratum_key
from smoa.v1 import registry_pb2
from smoa.v1.state_pb2 import AdapterCounts
from tests.integration.router_support import RouterWorld
from tests.reports_support import report_one


class Callers:
    """Ask, judge as the adapters deserve, and report counts as the optimizer does."""

    def __init__(self, world: RouterWorld, chance: dict[str, float]) -> None:
        self._world, self.chance, self._rng = world, chance, np.random.default_rng(3)
        self.counts: dict[str, list[int]] = {}
        self.seen: Counter[str] = Counter()
        self.on_trial: dict[str, AdapterCounts] = {}
        """Of a child on trial."""

    async def ask(self) -> None:
        decision = await self._world.client.route("my knee hurts when I climb stairs", base_model="base-a")
        first = max(decision.adapters, key=lambda one: one.weight).adapter_id
        success = self._rng.random() < self.chance.get(first, 0.9)
        for one in decision.adapters:
            tally = self.counts.setdefault(one.adapter_id, [0, 0, 0])
            tally[0], tally[1], tally[2] = tally[0] + 1, tally[1] + 1, tally[2] + int(success)
            self.seen[one.adapter_id] += 1
            for parent in one.trial.stands_for:
                self._add(one.adapter_id, parent, success, of_child=True)
            if one.trial.control_of:
                self._add(one.trial.control_of, one.adapter_id, success, of_child=False)

    def _add(self, child: str, parent: str, success: bool, *, of_child: bool) -> None:
        counts, key = self.on_trial.setdefault(child, AdapterCounts()), stratum_key("public", parent)
        tally = (counts.stood_for if of_child else counts.control)[key]
        tally.outcomes, tally.successes = tally.outcomes + 1, tally.successes + success
        pair(counts.pairs[key], success, of_child=of_child)

    async def report(self) -> None:
        for name, (uses, outcomes, successes) in self.counts.items():
            counts = registry_pb2.AdapterStatistics(uses=uses, outcomes=outcomes, successes=successes)
            await report_one(self._world.client, "public", name, counts)
