"""When so much fails at once that no single adapter can be at fault: nothing is pruned, merged or promoted by what is seen then. Pure.

Success of the last half hour or so, pooled over a tenant's adapters or a base model's, against that of the days before: an exponentially
weighted moving average chart (Roberts 1959), whose limit is Wilson's interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from services.optimizer.policy.library_policy import AdapterView, Rules, wilson_upper

CONFIDENCE_Z: Final = 4.0
"""It is looked at every minute: wrong once in thirty thousand independent looks."""


class Scope(NamedTuple):
    """What an incident is of: a tenant or a base model."""

    kind: str
    name: str

    def holds(self, adapter: AdapterView) -> bool:
        """Whether an adapter is concerned."""
        return self.name == (adapter.tenant if self.kind == "tenant" else adapter.base_model)


def incidents(adapters: Iterable[AdapterView], rules: Rules) -> dict[Scope, str]:
    """Why each tenant, and each base model, of which so much fails now is left alone."""
    pooled: defaultdict[Scope, list[float]] = defaultdict(lambda: [0.0] * 4)
    for one in adapters:
        for scope in (Scope("tenant", one.tenant), Scope("base model", one.base_model)):
            sums = pooled[scope]
            for place, value in enumerate((one.fresh_outcomes, one.fresh_successes, one.recent_outcomes, one.recent_successes)):
                sums[place] += value
    found = {}
    for scope, (fresh, fresh_right, recent, recent_right) in pooled.items():
        if recent - fresh < rules.incident_evidence:
            continue
        level = recent_right / recent
        if wilson_upper(fresh_right, fresh, CONFIDENCE_Z) < level * (1 - rules.incident_fall):
            found[scope] = (
                f"an incident of {scope.kind} {scope.name[:24]}: {fresh_right:.1f} of {fresh:.1f} right of late, "
                f"{level:.0%} before; nothing is pruned, merged or promoted there"
            )
    return found
