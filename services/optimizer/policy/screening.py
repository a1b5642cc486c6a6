"""Which adapters need a closer look: their numbers in rows, so that a million of them are looked through in a moment. Pure numpy.

What is found here may be more than what the rules come to (`library_policy`), and never less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias, get_type_hints

import numpy as np
from numpy.typing import NDArray

from services.optimizer.policy.incidents import FRESH_HALF_LIFE_S, Level, Scope
from services.optimizer.policy.library_policy import SEASONS, Family, Rules, TenantTotals

Floats: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Rows: TypeAlias = NDArray[np.void]
START_US: Final = 10 * 60 * 10**6
"""An optimizer that is started after the router reads what happened before from Kafka: its first epoch holds the minutes before it, too."""


class Numbers(NamedTuple):
    """What an adapter is judged by, times in microseconds; of one that was restored, what came since."""

    created_at_us: float
    restored_at_us: float
    counted_since_us: float
    """Since when its counts hold everything; NaN where nothing of it was counted yet."""
    uses: float
    outcomes: float
    successes: float
    recent_at_us: float
    """What fades is as of then."""
    recent_uses: float
    recent_outcomes: float
    recent_successes: float
    fresh_outcomes: float
    fresh_successes: float
    last_used_at_us: float
    longest_gap_us: float
    file_bytes: float
    same_name: int
    """The same of versions: of a tenant's adapters with one name for one base model."""
    same_examples: int
    """The same of those with the same examples; 0 where they are not known."""
    pinned: bool
    one_epoch: bool
    """Its counts are all of one epoch."""

    @property
    def since_us(self) -> float:
        """It is there, or is there again."""
        return max(self.created_at_us, self.restored_at_us)


_KINDS: Final = {float: np.float64, int: np.uint64, bool: np.bool_}
ROW: Final = np.dtype(
    [
        *((name, _KINDS[kind]) for name, kind in get_type_hints(Numbers).items()),
        ("family", np.uint32),
        ("digest", "V32"),
        ("listing", np.uint32),
    ]
)
"""An adapter's numbers, which family it is of, its file's digest, and in which listing it was last."""


@dataclass
class Screen:
    """What a look over the library has found."""

    families: list[Family] = field(default_factory=list)
    """Those that have adapters."""
    tenants: dict[str, TenantTotals] = field(default_factory=dict)
    levels: dict[Scope, Level] = field(default_factory=dict)
    doubtful: list[int] = field(default_factory=list)
    """Rows of those that may have to go; of a tenant over its bound, all."""
    mergeable: dict[Family, list[int]] = field(default_factory=dict)
    """Rows of those that may be merged, by family; each has two at least."""


def screened(blocks: Sequence[Rows], families: Sequence[Family], rules: Rules, now_us: int, counted_from_us: float) -> Screen:
    """Look over the library.

    Args:
        blocks: The active adapters; rows are numbered on from block to block.
        families: By the number that rows name.
        rules: What they are held to.
        now_us: The time.
        counted_from_us: Nobody's counts of this worker begin before that.
    """
    sums = _sums(blocks, len(families), rules, now_us)
    there = [number for number, count in enumerate(sums["adapters"].tolist()) if count]
    screen = Screen([families[number] for number in there])
    for name, one in _pooled(sums, there, [one.tenant for one in screen.families]).items():
        screen.tenants[name] = TenantTotals(one["recent_uses"], int(one["adapters"]), one["file_bytes"])
        screen.levels[Scope("tenant", name)] = Level(*(one[part] for part in Level._fields))
    for name, one in _pooled(sums, there, [one.base_model for one in screen.families]).items():
        screen.levels[Scope("base model", name)] = Level(*(one[part] for part in Level._fields))
    over = {name for name, one in screen.tenants.items() if rules.tenant_bytes and one.file_bytes > rules.tenant_bytes}
    is_over = np.array([family.tenant in over for family in families], bool)
    merging = defaultdict[int, list[int]](list)
    begin = 0
    for rows in blocks:
        factor = _faded(rows, rules.half_life_s, now_us)
        may_change = ~rows["pinned"] & (now_us - _since_us(rows) >= 1e6 * (rules.min_age_s - 1))
        judged = _covered(rows, rules, now_us, counted_from_us)
        doubtful = judged & (_fails(rows, factor, rules) | _unused(rows, factor, rules, now_us))
        screen.doubtful += (begin + np.flatnonzero(is_over[rows["family"]] | (may_change & doubtful))).tolist()
        mergeable = np.flatnonzero(may_change & (rows["recent_uses"] * factor >= rules.min_merge_uses))
        for number, place in zip(rows["family"][mergeable].tolist(), (begin + mergeable).tolist(), strict=True):
            merging[number].append(place)
        begin += len(rows)
    screen.mergeable = {families[number]: places for number, places in merging.items() if len(places) > 1}
    return screen


def versions(blocks: Sequence[Rows]) -> list[int]:
    """Rows of adapters that share their name, or their examples, with another one."""
    found = set[int]()
    for name in ("same_name", "same_examples"):
        keys = np.concatenate([rows[name] for rows in blocks]) if blocks else np.empty(0, np.uint64)
        order = np.argsort(keys, kind="stable")
        same = (keys[order][1:] == keys[order][:-1]) & (keys[order][1:] > 0)
        found.update(order[1:][same].tolist(), order[:-1][same].tolist())
    return sorted(found)


def oldest_us(blocks: Iterable[Rows], families: Sequence[Family]) -> Mapping[str, float]:
    """By tenant: since when its oldest adapter is there."""
    oldest = np.full(len(families), np.inf)
    for rows in blocks:
        np.minimum.at(oldest, rows["family"], rows["created_at_us"])
    found: dict[str, float] = {}
    for family, at_us in zip(families, oldest.tolist(), strict=True):
        if at_us < np.inf:
            found[family.tenant] = min(at_us, found.get(family.tenant, at_us))
    return found


def _sums(blocks: Sequence[Rows], count: int, rules: Rules, now_us: int) -> dict[str, Floats]:
    """Of the adapters of each of so many families, by what is added up."""
    sums = {name: np.zeros(count) for name in ("adapters", "recent_uses", "file_bytes", *Level._fields)}
    for rows in blocks:
        factor, fresh = _faded(rows, rules.half_life_s, now_us), _faded(rows, FRESH_HALF_LIFE_S, now_us)
        sums["adapters"] += np.bincount(rows["family"], minlength=count)
        sums["file_bytes"] += np.bincount(rows["family"], rows["file_bytes"], count)
        for name in ("recent_uses", *Level._fields):
            sums[name] += np.bincount(rows["family"], rows[name] * (fresh if name.startswith("fresh") else factor), count)
    return sums


def _pooled(sums: Mapping[str, Floats], there: Sequence[int], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The sums of those families that are there, of each name together."""
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    by_family = np.array([places[name] for name in names], np.intp)
    pooled = {part: np.bincount(by_family, values[list(there)], len(places)).tolist() for part, values in sums.items()}
    return {name: {part: values[place] for part, values in pooled.items()} for name, place in places.items()}


def _since_us(rows: Rows) -> Floats:
    since_us: Floats = np.maximum(rows["created_at_us"], rows["restored_at_us"])
    return since_us


def _faded(rows: Rows, half_life_s: float, now_us: int) -> Floats:
    at_us: Floats = rows["recent_at_us"]
    factor: Floats = np.exp2(-np.maximum(0.0, now_us - at_us) / 1e6 / half_life_s)
    return np.where(at_us > 0, factor, 0.0)


def _fails(rows: Rows, factor: Floats, rules: Rules) -> Mask:
    lifetime = wilson_uppers(rows["successes"], rows["outcomes"], rules.confidence_z)
    of_late = wilson_uppers(rows["recent_successes"] * factor, rows["recent_outcomes"] * factor, rules.confidence_z)
    fails: Mask = np.minimum(lifetime, of_late) < rules.min_success + 1e-9
    return fails


def _unused(rows: Rows, factor: Floats, rules: Rules, now_us: int) -> Mask:
    outcomes, successes = rows["outcomes"], rows["successes"]
    proven = (outcomes > 0) & (successes >= rules.proven_successes) & (successes >= (rules.min_success + 1e-9) * outcomes)
    season_s = np.maximum(rules.unused_after_s, SEASONS / 1e6 * rows["longest_gap_us"])
    season_s = np.where(proven, np.maximum(season_s, rules.proven_season_s), season_s)
    unused_s = (now_us - np.maximum(rows["last_used_at_us"], _since_us(rows))) / 1e6
    unused: Mask = (unused_s >= season_s - 1) & (rows["recent_uses"] * factor <= rules.min_uses)
    return unused


def _covered(rows: Rows, rules: Rules, now_us: int, counted_from_us: float) -> Mask:
    """Whether their counts may reach back for long enough."""
    window_us = 1e6 * rules.window_s
    judged_from_us = np.maximum(_since_us(rows), now_us - window_us) + np.where(rows["one_epoch"], START_US, 0)
    covered: Mask = np.fmax(rows["counted_since_us"], counted_from_us) <= judged_from_us
    return covered & (rows["restored_at_us"] <= now_us - window_us)


def wilson_uppers(successes: Floats, trials: Floats, z: float) -> Floats:
    """`library_policy.wilson_upper` of each."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        spread = z * np.sqrt(np.maximum(successes * (1 - successes / trials), 0.0) + z * z / 4)
        return np.where(trials > 0, np.minimum(1.0, (successes + z * z / 2 + spread) / (trials + z * z)), 1.0)
