"""When all fails at once it is nobody's fault: what is an incident, and what is none."""

from __future__ import annotations

import random

import pytest

from services.optimizer.policy.incidents import Scope, incidents, levels_of
from services.optimizer.policy.library_policy import AdapterView, Rules
from services.optimizer.stream.counting import count_recent
from smoa.v1.state_pb2 import Tally

RULES = Rules()
HALF_LIFE_US, MINUTE_US = 7 * 86400e6, 60 * 10**6


def _view(name: str, tally: Tally, tenant: str = "t", base_model: str = "b") -> AdapterView:
    return AdapterView(
        adapter_id=name,
        digest=name,
        tenant=tenant,
        name=name,
        kind="lora",
        base_model=base_model,
        rank=4,
        modules=("q",),
        age_s=1e7,
        uses=100,
        outcomes=100,
        successes=90,
        recent_uses=tally.recent_uses,
        recent_outcomes=tally.recent_outcomes,
        recent_successes=tally.recent_successes,
        fresh_outcomes=tally.fresh_outcomes,
        fresh_successes=tally.fresh_successes,
    )


class _Life:
    """Ten adapters of a tenant, each judged every minute."""

    def __init__(self, seed: int = 0) -> None:
        self._rng, self.now_us = random.Random(seed), MINUTE_US
        self.tallies = {f"a{number}": Tally() for number in range(10)}

    def live(self, minutes: int, chance: float, of: str = "") -> None:
        for _ in range(10 * minutes):
            self.now_us += MINUTE_US // 10
            name = self._rng.choice(list(self.tallies))
            success = self._rng.random() < (chance if of in ("", name) else 0.9)
            count_recent(self.tallies[name], self.now_us, HALF_LIFE_US, used=True, judged=True, success=success)

    def seen(self) -> dict[Scope, str]:
        for tally in self.tallies.values():
            count_recent(tally, self.now_us, HALF_LIFE_US, used=False, judged=False, success=False)
        return incidents(levels_of(_view(name, tally) for name, tally in self.tallies.items()), RULES)


def test_a_deployment_after_which_all_fails_is_an_incident_within_minutes_and_for_as_long_as_it_lasts() -> None:
    life = _Life()
    life.live(1000, 0.9)
    assert life.seen() == {}
    life.live(15, 0.0)
    assert set(life.seen()) == {Scope("tenant", "t"), Scope("base model", "b")}
    life.live(300, 0.0)
    found = life.seen()
    assert found[Scope("tenant", "t")].startswith("an incident of tenant t: 0.0 of ")
    life.live(600, 0.9)
    assert life.seen() == {}


def test_one_adapter_that_fails_is_none() -> None:
    life = _Life()
    life.live(500, 0.9)
    life.live(1000, 0.0, of="a3")
    assert life.seen() == {}


@pytest.mark.parametrize("seed", range(5))
def test_chance_makes_none(seed: int) -> None:
    life = _Life(seed)
    for _ in range(200):
        life.live(5, 0.7)
        assert life.seen() == {}


def test_where_nothing_was_known_nothing_has_fallen() -> None:
    life = _Life()
    life.live(60, 0.0)
    assert life.seen() == {}
