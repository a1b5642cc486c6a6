"""When so much fails at once that no single adapter can be at fault: nothing is pruned, merged or promoted by what is seen then. Pure.

Success of the last half hour or so, pooled over a tenant's adapters or a base model's, against that of the days before: an exponentially
weighted moving average chart (Roberts 1959), whose limit is Wilson's interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from services.optimizer.policy.library_policy import AdapterView, Rules, wilson_upper

CONFIDENCE_Z: Final = 4.0
"""It is looked at every minute: wrong once in thirty thousand independent looks."""


FRESH_HALF_LIFE_S: Final = 1200.0
"""Of the fresh counts, by which it is seen that everything fails at once."""


class Scope(NamedTuple):
    """What an incident is of: a tenant or a base model."""

    kind: str
    name: str

    def holds(self, adapter: AdapterView) -> bool:
        """Whether an adapter is concerned."""
        return self.name == (adapter.tenant if self.kind == "tenant" else adapter.base_model)


class Level(NamedTuple):
    """Success of all adapters of a scope together: of the last half hour or so, and of the days before with it."""

    fresh_outcomes: float
    fresh_successes: float
    recent_outcomes: float
    recent_successes: float


def levels_of(adapters: Iterable[AdapterView]) -> dict[Scope, Level]:
    """Of every tenant and every base model whose adapters these are."""
    pooled: defaultdict[Scope, list[float]] = defaultdict(lambda: [0.0] * 4)
    for one in adapters:
        for scope in (Scope("tenant", one.tenant), Scope("base model", one.base_model)):
            sums = pooled[scope]
            for place, value in enumerate((one.fresh_outcomes, one.fresh_successes, one.recent_outcomes, one.recent_successes)):
                sums[place] += value
    return {scope: Level(*sums) for scope, sums in pooled.items()}


def incidents(levels: Mapping[Scope, Level], rules: Rules) -> dict[Scope, str]:
    """Why each tenant, and each base model, of which so much fails now is left alone."""
    found = {}
    for scope, (fresh, fresh_right, recent, recent_right) in levels.items():
        if recent - fresh < rules.incident_evidence:
            continue
        level = recent_right / recent
        if wilson_upper(fresh_right, fresh, CONFIDENCE_Z) < level * (1 - rules.incident_fall):
            found[scope] = (
                f"an incident of {scope.kind} {scope.name[:24]}: {fresh_right:.1f} of {fresh:.1f} right of late, "
                f"{level:.0%} before; nothing is pruned, merged or promoted there"
            )
    return found
