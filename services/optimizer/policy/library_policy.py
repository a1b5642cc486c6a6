"""What to prune and what to merge: pure functions from the library and its numbers to proposals with their reasons."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final, NamedTuple

SEASONS: Final = 1.5
"""Of its longest gap that an adapter is waited for: a year's last one may be some weeks longer than the first."""
MAX_GROUP: Final = 32
"""Adapters that one merge replaces."""
NAMED: Final = 4


class Family(NamedTuple):
    """Adapters of one family may merge."""

    tenant: str
    shared: bool
    base_model: str
    kind: str
    rank: int
    modules: tuple[str, ...]
    """In order."""


class TenantTotals(NamedTuple):
    """Of all of a tenant's active adapters."""

    recent_uses: float
    adapters: int
    file_bytes: float


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
    successes: float
    """Sum of the verdicts, each in [0, 1]."""
    recent_uses: float = 0.0
    """Faded to now."""
    recent_outcomes: float = 0.0
    recent_successes: float = 0.0
    fresh_outcomes: float = 0.0
    """Of the last half hour or so."""
    fresh_successes: float = 0.0
    unused_s: float = 0.0
    """Since it was used last, or since it is there."""
    longest_gap_s: float = 0.0
    """For so long it was not used once, and came back."""
    file_bytes: int = 1
    shared: bool = False
    protected: str = ""
    """Why no automatic change may touch it: pinned, on trial, or in a composition."""
    frozen: bool = False
    """Protected by a freeze, which ends."""
    examples_digest: str = ""
    """Of the examples it was registered with."""

    @property
    def value_per_byte(self) -> float:
        """Recent successes, and half of the uses that nobody judged, by the bytes that it takes."""
        unjudged = max(0.0, self.recent_uses - self.recent_outcomes)
        return (self.recent_successes + 0.5 * unjudged) / max(self.file_bytes, 1)

    @property
    def success_rate(self) -> float | None:
        """None without outcomes."""
        return self.successes / self.outcomes if self.outcomes else None

    @property
    def family(self) -> Family:
        """Which it may merge with."""
        return Family(self.tenant, self.shared, self.base_model, self.kind, self.rank, tuple(sorted(self.modules)))


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Thresholds of the policy."""

    min_uses: int = 10
    min_age_s: float = 86400.0
    min_success: float = 0.30
    confidence_z: float = 1.96
    min_cosine: float = 0.90
    min_benefit: float = 0.30
    min_merge_uses: float = 1.0
    """Recent uses of each that is merged: who is not asked can show nothing in a trial, and would only be kept by it."""
    half_life_s: float = 7 * 86400.0
    """Of the recent counts."""
    unused_after_s: float = 14 * 86400.0
    """Unused for less, no adapter is without need; nor for less than its own season."""
    proven_season_s: float = 400 * 86400.0
    """The least season of an adapter that was of use: what is asked once a year has no gap to show yet in its first."""
    proven_successes: float = 10.0
    """By which it was."""
    tenant_bytes: int = 0
    """Room for a tenant's active adapters. 0: no bound, and who is not needed goes; else nobody goes while there is room, unless it
    fails.
    """
    incident_fall: float = 0.25
    """Share of its success by which a tenant, or a base model, has to fall at once."""
    incident_evidence: float = 30.0
    """Recent outcomes by which its level before is known."""

    @property
    def window_s(self) -> float:
        """How far back counts have to reach for an adapter to be judged by them."""
        return max(self.half_life_s, self.unused_after_s)

    def season_s(self, adapter: AdapterView) -> float:
        """For how long an adapter may be unused: as long as it was once, and came back, and some more; longer if it was of use."""
        rate = adapter.success_rate
        proven = adapter.successes >= self.proven_successes and rate is not None and rate >= self.min_success
        return max(self.unused_after_s, SEASONS * adapter.longest_gap_s, self.proven_season_s if proven else 0.0)


@dataclass(frozen=True)
class Prune:
    """Retire one adapter."""

    adapter: AdapterView
    reason: str
    evidence: Mapping[str, float]


@dataclass(frozen=True)
class Merge:
    """Replace two or more adapters by their average."""

    adapters: tuple[AdapterView, ...]
    """By id."""
    cosine: float
    """The least of any two of them."""
    benefit: float

    @property
    def merge_id(self) -> str:
        """The same adapters have the same id, so a retry is told from a new merge."""
        together = "+".join(sorted(adapter.digest for adapter in self.adapters))
        return f"merge-{hashlib.sha256(together.encode()).hexdigest()[:24]}"

    @property
    def reason(self) -> str:
        """The numbers, for the log and the lifecycle event; of many adapters those of the first few."""
        named = [_numbers(adapter) for adapter in self.adapters[:NAMED]]
        more = f" and {len(self.adapters) - NAMED} more" if len(self.adapters) > NAMED else ""
        return f"delta cosine {self.cosine:.4f}, benefit {self.benefit:.2f}; {', '.join(named)}{more}"


def wilson_upper(successes: float, trials: float, z: float) -> float:
    """Upper end of Wilson's score interval for a proportion (Wilson 1927); 1 without trials."""
    if trials == 0:
        return 1.0
    # Times the trials, which may have faded to next to nothing: their square would be 0.
    centre = successes + z * z / 2
    spread = z * math.sqrt(successes * (1 - successes / trials) + z * z / 4)
    return min(1.0, (centre + spread) / (trials + z * z))


def totals_of(adapters: Iterable[AdapterView]) -> dict[str, TenantTotals]:
    """By tenant, of adapters that are all of theirs."""
    found: dict[str, TenantTotals] = {}
    for one in adapters:
        uses, count, file_bytes = found.get(one.tenant, (0.0, 0, 0.0))
        found[one.tenant] = TenantTotals(uses + one.recent_uses, count + 1, file_bytes + one.file_bytes)
    return found


def prunes(adapters: Sequence[AdapterView], tenants: Mapping[str, TenantTotals], rules: Rules) -> list[Prune]:
    """Adapters to retire, those of least value for their bytes first: unused for longer than their season although given their chances, or
    failing beyond doubt, of late or over a life that of late was no better.

    Given their chances: the tenant's adapters were used `min_uses` times on average, so that a quiet night prunes nobody.

    Where a tenant has a bound, only those that fail go while its adapters are within it; over it, as many as have to: those that are not
    needed, and then those of least value for their bytes.

    Args:
        adapters: Those that may have to go; of a tenant over its bound, all.
        tenants: What they have together, the others with them.
        rules: Thresholds.
    """
    found = sorted(_unwanted(adapters, tenants, rules), key=lambda one: (one.prune.adapter.value_per_byte, one.prune.adapter.adapter_id))
    return [one.prune for one in (_within_room(adapters, found, rules) if rules.tenant_bytes else found)]


class _Unwanted(NamedTuple):
    prune: Prune
    fails: bool


def _unwanted(adapters: Sequence[AdapterView], tenants: Mapping[str, TenantTotals], rules: Rules) -> list[_Unwanted]:
    found: list[_Unwanted] = []
    for adapter in adapters:
        if adapter.protected or adapter.age_s < rules.min_age_s:
            continue
        upper = wilson_upper(adapter.successes, adapter.outcomes, rules.confidence_z)
        rate = adapter.success_rate
        of_all = tenants[adapter.tenant]
        explored = of_all.recent_uses >= rules.min_uses * of_all.adapters
        of_late = wilson_upper(adapter.recent_successes, adapter.recent_outcomes, rules.confidence_z)
        recovered = adapter.recent_outcomes >= 1 and adapter.recent_successes >= rules.min_success * adapter.recent_outcomes
        needed = rules.min_uses * (1 - 0.5 ** (adapter.age_s / rules.half_life_s))  # of a young one's window not all has been
        evidence = {
            "needed_uses": needed,
            "unused_s": adapter.unused_s,
            "season_s": (season_s := rules.season_s(adapter)),
            "uses": float(adapter.uses),
            "recent_uses": adapter.recent_uses,
            "outcomes": float(adapter.outcomes),
            "successes": float(adapter.successes),
            "upper_bound": upper,
            "recent_outcomes": adapter.recent_outcomes,
            "recent_successes": adapter.recent_successes,
            "recent_upper_bound": of_late,
            "age_s": adapter.age_s,
            "tenant_recent_uses": of_all.recent_uses,
            "tenant_adapters": float(of_all.adapters),
            "value_per_byte": adapter.value_per_byte,
        }
        if rate is not None and rate < rules.min_success and upper < rules.min_success and not recovered:
            reason = f"fails: {adapter.successes:.10g} of {adapter.outcomes} right; with 95% confidence under {rules.min_success:.0%}"
            found.append(_Unwanted(Prune(adapter, reason, evidence), fails=True))
        elif of_late < rules.min_success:
            right = f"{adapter.recent_successes:.1f} of {adapter.recent_outcomes:.1f} right, as recent ones are weighed"
            reason = f"fails recently: {right}; with 95% confidence under {rules.min_success:.0%}"
            found.append(_Unwanted(Prune(adapter, reason, evidence), fails=True))
        elif adapter.unused_s >= season_s and adapter.recent_uses < needed and explored:
            traffic = f"the tenant's {of_all.adapters} adapters were used {of_all.recent_uses:.0f} times recently"
            reason = f"not needed: not used for {_days(adapter.unused_s)}, its season is {_days(season_s)}; {traffic}"
            found.append(_Unwanted(Prune(adapter, reason, evidence), fails=False))
    return found


def _within_room(adapters: Sequence[AdapterView], found: Sequence[_Unwanted], rules: Rules) -> list[_Unwanted]:
    """Of each tenant those that fail, and, while it is over its bound, as many more as have to go."""
    unwanted = {one.prune.adapter.adapter_id: one for one in found}
    libraries: defaultdict[str, list[AdapterView]] = defaultdict(list)
    for adapter in adapters:
        libraries[adapter.tenant].append(adapter)

    def turn(one: AdapterView) -> tuple[int, float, str]:
        known = unwanted.get(one.adapter_id)
        return 2 if known is None else 1 - known.fails, one.value_per_byte, one.adapter_id

    chosen: list[_Unwanted] = []
    for library in libraries.values():
        left = taken = sum(one.file_bytes for one in library)
        free = (one for one in library if not one.protected and one.age_s >= rules.min_age_s)
        for one in sorted(free, key=turn):
            known = unwanted.get(one.adapter_id)
            if known is not None and known.fails:
                chosen.append(known)
            elif left > rules.tenant_bytes:
                evidence = {"tenant_bytes": float(taken), "room_bytes": float(rules.tenant_bytes), "value_per_byte": one.value_per_byte}
                least = f"of least value for its bytes, {one.recent_uses:.1f} uses of late" if known is None else known.prune.reason
                reason = f"no room: the tenant's adapters take {taken:,} bytes of {rules.tenant_bytes:,}; {least}"
                chosen.append(_Unwanted(Prune(one, reason, {**(known.prune.evidence if known else {}), **evidence}), fails=False))
            else:
                break
            left -= one.file_bytes
    return chosen


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days" if seconds >= 8640 else f"{seconds:.0f} s"


def benefit(adapters: Sequence[AdapterView], cosine: float, rules: Rules) -> float:
    """Value of a merge: half for each slot and file saved, up to half for likeness, less the widest gap in success."""
    likeness = (cosine - rules.min_cosine) / max(1 - rules.min_cosine, 1e-9)
    rates = [rate for adapter in adapters if (rate := adapter.success_rate) is not None]
    gap = max(rates) - min(rates) if rates else 0.0
    return 0.5 * (len(adapters) - 1) + 0.5 * likeness - gap


def merges(adapters: Iterable[AdapterView], cosines: Mapping[tuple[str, str], float], rules: Rules) -> list[Merge]:
    """Disjoint groups to merge, the best first. `cosines` is by (lower id, higher id); a missing pair is unlike.

    A group begins with the best pair left and takes in whoever is worth merging with each one of it (complete linkage), the likest first:
    neither a chain of likenesses nor one of small gaps in success must join adapters that are unlike.
    """
    by_id = {
        adapter.adapter_id: adapter
        for adapter in adapters
        if not adapter.protected and adapter.age_s >= rules.min_age_s and adapter.recent_uses >= rules.min_merge_uses
    }
    like: defaultdict[str, dict[str, float]] = defaultdict(dict)
    pairs: list[Merge] = []
    for (low, high), raw in cosines.items():
        cosine = min(1.0, raw)  # rounding may pass 1
        if low not in by_id or high not in by_id or cosine <= rules.min_cosine:
            continue
        pair = (by_id[low], by_id[high])
        if pair[0].family != pair[1].family or pair[0].name == pair[1].name:  # of two versions one is meant to be better
            continue
        if (value := benefit(pair, cosine, rules)) >= rules.min_benefit:
            like[low][high] = like[high][low] = cosine
            pairs.append(Merge(pair, cosine, value))
    left, found = set(by_id), list[Merge]()
    for pair_found in sorted(pairs, key=_first_best):
        if left.issuperset(adapter.adapter_id for adapter in pair_found.adapters):
            group = _grown(pair_found, left, like, by_id, rules)
            left.difference_update(adapter.adapter_id for adapter in group.adapters)
            found.append(group)
    return sorted(found, key=_first_best)


def _first_best(merge: Merge) -> tuple[float, str, str]:
    return (-merge.benefit, merge.adapters[0].adapter_id, merge.adapters[1].adapter_id)


def _grown(group: Merge, left: Set[str], like: Mapping[str, Mapping[str, float]], by_id: Mapping[str, AdapterView], rules: Rules) -> Merge:
    """The group with all that may join it. `like` holds the pairs that are worth merging, both ways."""
    members = [adapter.adapter_id for adapter in group.adapters]
    common = set[str](left).intersection(*(like[member] for member in members))
    for other in sorted(common, key=lambda one: (-min(like[one][member] for member in members[:2]), one)):
        if len(members) == MAX_GROUP:
            break
        if all(member in like[other] for member in members):
            cosine = min(group.cosine, *(like[other][member] for member in members))
            together = tuple(by_id[one] for one in sorted([*members, other]))
            if (value := benefit(together, cosine, rules)) >= group.benefit:
                group = Merge(together, cosine, value)
                members.append(other)
    return group


def _numbers(adapter: AdapterView) -> str:
    return f"{adapter.name} ({adapter.uses} uses, {adapter.successes:.10g}/{adapter.outcomes})"
