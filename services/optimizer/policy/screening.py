"""Which adapters need a closer look: their numbers in rows, so that a million of them are looked through in a moment. Pure numpy.

What is found here may be more than what the rules come to (`library_policy`), and never less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

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


ROW: Final = np.dtype(
    [
        *((name, np.float64) for name in Numbers._fields[:15]),
        *((name, np.uint64) for name in Numbers._fields[15:17]),
        *((name, np.bool_) for name in Numbers._fields[17:]),
        ("family", np.uint32),
        ("digest", "V32"),
        ("listing", np.uint32),
    ]
)
"""An adapter's numbers, which family it is of, its file's digest, and in which listing it was last."""


@dataclass
class Screen:
    """What a look over the library has found."""

    tenants: dict[str, TenantTotals] = field(default_factory=dict)
    levels: dict[Scope, Level] = field(default_factory=dict)
    closely: list[int] = field(default_factory=list)
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
    screen, count = Screen(), len(families)
    sums = sum((_sums(rows, count, rules, now_us) for rows in blocks), np.zeros((count, 7)))
    tenants: defaultdict[str, Floats] = defaultdict(lambda: np.zeros(7))
    models: defaultdict[str, Floats] = defaultdict(lambda: np.zeros(7))
    for family, values in zip(families, sums, strict=True):
        tenants[family.tenant] += values
        models[family.base_model] += values
    screen.tenants = {name: TenantTotals(one[0], int(one[1]), one[2]) for name, one in tenants.items() if one[1]}
    for kind, pooled in (("tenant", tenants), ("base model", models)):
        screen.levels |= {Scope(kind, name): Level(*one[3:].tolist()) for name, one in pooled.items() if one[1]}
    over = {name for name, one in screen.tenants.items() if rules.tenant_bytes and one.file_bytes > rules.tenant_bytes}
    full = np.array([family.tenant in over for family in families], bool)
    merging = defaultdict[int, list[int]](list)
    begin = 0
    for rows in blocks:
        factor = _faded(rows, rules.half_life_s, now_us)
        free = ~rows["pinned"] & (now_us - _since_us(rows) >= 1e6 * (rules.min_age_s - 1))
        doubtful = (_fails(rows, factor, rules) | _unused(rows, factor, rules, now_us)) & _covered(rows, rules, now_us, counted_from_us)
        found = np.flatnonzero(full[rows["family"]] | (free & doubtful))
        screen.closely += (begin + found).tolist()
        asked = np.flatnonzero(free & (rows["recent_uses"] * factor >= rules.min_merge_uses))
        for number, place in zip(rows["family"][asked].tolist(), (begin + asked).tolist(), strict=True):
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
        found[family.tenant] = min(at_us, found.get(family.tenant, at_us))
    return found


def _sums(rows: Rows, count: int, rules: Rules, now_us: int) -> Floats:
    """[families, 7]: recent uses, adapters, bytes, and of fresh and recent outcomes and successes."""
    factor, fresh = _faded(rows, rules.half_life_s, now_us), _faded(rows, FRESH_HALF_LIFE_S, now_us)
    values = (
        *(rows["recent_uses"] * factor, None, rows["file_bytes"]),
        *(rows["fresh_outcomes"] * fresh, rows["fresh_successes"] * fresh),
        *(rows["recent_outcomes"] * factor, rows["recent_successes"] * factor),
    )
    return np.stack([np.bincount(rows["family"], one, count) for one in values], 1).astype(np.float64)


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
    proven = (successes >= rules.proven_successes) & (successes >= (rules.min_success + 1e-9) * outcomes)
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
