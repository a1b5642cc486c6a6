"""What to prune and what to merge: pure functions from the library and its numbers to proposals with their reasons."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AdapterView:
    """What the policy sees of an active adapter."""

    adapter_id: str
    digest: str
    tenant: str
    name: str
    kind: str
    base_model: str
    rank: int
    modules: tuple[str, ...]
    age_s: float
    uses: int
    outcomes: int
    successes: int

    @property
    def success_rate(self) -> float | None:
        """None without outcomes."""
        return self.successes / self.outcomes if self.outcomes else None

    @property
    def family(self) -> tuple[object, ...]:
        """Adapters of one family may merge."""
        return (self.tenant, self.base_model, self.kind, self.rank, tuple(sorted(self.modules)))


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Thresholds of the policy."""

    min_uses: int = 10
    min_age_s: float = 86400.0
    min_success: float = 0.30
    confidence_z: float = 1.96
    min_cosine: float = 0.90
    min_benefit: float = 0.30


@dataclass(frozen=True)
class Prune:
    """Retire one adapter."""

    adapter: AdapterView
    reason: str


@dataclass(frozen=True)
class Merge:
    """Replace two adapters by their average."""

    first: AdapterView
    second: AdapterView
    cosine: float
    benefit: float

    @property
    def merge_id(self) -> str:
        """The same pair has the same id, so a retry is told from a new merge."""
        pair = "+".join(sorted((self.first.digest, self.second.digest)))
        return f"merge-{hashlib.sha256(pair.encode()).hexdigest()[:24]}"

    @property
    def reason(self) -> str:
        """The numbers, for the log and the lifecycle event."""
        return f"delta cosine {self.cosine:.4f}, benefit {self.benefit:.2f}; {_numbers(self.first)} and {_numbers(self.second)}"


def wilson_upper(successes: int, trials: int, z: float) -> float:
    """Upper end of Wilson's score interval for a proportion (Wilson 1927); 1 without trials."""
    if trials == 0:
        return 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return min(1.0, (centre + spread) / (1 + z * z / trials))


def prunes(adapters: Sequence[AdapterView], rules: Rules) -> list[Prune]:
    """Adapters to retire: little used although old enough and given their chances, or failing beyond doubt.

    Given their chances: the tenant's adapters were used `min_uses` times on average, so that a quiet night prunes nobody.
    """
    used: defaultdict[str, int] = defaultdict(int)
    active: defaultdict[str, int] = defaultdict(int)
    for adapter in adapters:
        used[adapter.tenant] += adapter.uses
        active[adapter.tenant] += 1
    found: list[Prune] = []
    for adapter in adapters:
        upper = wilson_upper(adapter.successes, adapter.outcomes, rules.confidence_z)
        rate = adapter.success_rate
        explored = used[adapter.tenant] >= rules.min_uses * active[adapter.tenant]
        if rate is not None and rate < rules.min_success and upper < rules.min_success:
            found.append(Prune(adapter, f"success {rate:.2f} of {adapter.outcomes}, upper bound {upper:.2f} under {rules.min_success:.2f}"))
        elif adapter.uses < rules.min_uses and adapter.age_s >= rules.min_age_s and explored:
            traffic = f"tenant traffic {used[adapter.tenant]} uses over {active[adapter.tenant]} adapters"
            found.append(Prune(adapter, f"{adapter.uses} uses, under {rules.min_uses}, in {adapter.age_s:.0f} s; {traffic}"))
    return found


def benefit(first: AdapterView, second: AdapterView, cosine: float, rules: Rules) -> float:
    """Value of a merge in [-0.5, 1]: half for the slot and file saved, up to half for likeness, less the gap in success."""
    likeness = (cosine - rules.min_cosine) / max(1 - rules.min_cosine, 1e-9)
    rates = (first.success_rate, second.success_rate)
    gap = abs(rates[0] - rates[1]) if rates[0] is not None and rates[1] is not None else 0.0
    return 0.5 + 0.5 * likeness - gap


def merges(adapters: Iterable[AdapterView], cosines: Mapping[tuple[str, str], float], rules: Rules) -> list[Merge]:
    """Disjoint pairs to merge, the best first. `cosines` is by (lower id, higher id); a missing pair is unlike."""
    families: defaultdict[tuple[object, ...], list[AdapterView]] = defaultdict(list)
    for adapter in adapters:
        families[adapter.family].append(adapter)
    found: list[Merge] = []
    for family in families.values():
        for first, second in itertools.combinations(sorted(family, key=lambda a: a.adapter_id), 2):
            cosine = min(1.0, cosines.get((first.adapter_id, second.adapter_id), -1.0))  # rounding may pass 1
            if cosine > rules.min_cosine and (value := benefit(first, second, cosine, rules)) >= rules.min_benefit:
                found.append(Merge(first, second, cosine, value))
    taken: set[str] = set()
    chosen: list[Merge] = []
    for merge in sorted(found, key=lambda m: (-m.benefit, m.first.adapter_id)):
        if not {merge.first.adapter_id, merge.second.adapter_id} & taken:
            taken |= {merge.first.adapter_id, merge.second.adapter_id}
            chosen.append(merge)
    return chosen


def _numbers(adapter: AdapterView) -> str:
    return f"{adapter.name} ({adapter.uses} uses, {adapter.successes}/{adapter.outcomes})"
