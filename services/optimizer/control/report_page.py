"""A page of what the optimizer did in a period: pure, from events and numbers to HTML with its plots in it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from services.optimizer.control.reasons import MERGED, PRUNED, ROLLED_BACK, SUPERSEDED
from services.optimizer.control.report_plots import Bars, Day, date_of, error_of, plot_of_changes, plot_of_success
from smoa.v1 import registry_pb2
from smoa.v1.events_pb2 import LifecycleAction, LifecycleEvent

_WORDS: Final = {
    "RETIRED": "pruned",
    "PROMOTED": "merged",
    "MERGED": "merged",
    "ROLLED_BACK": "undone",
    "CANARY": "on trial",
    "RESTORED": "brought back",
}
_ID: Final = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{26}\b")
"""An adapter's, in a reason."""
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
.numbers{display:flex;flex-wrap:wrap;gap:2rem;margin:1rem 0}.numbers b{display:block;font-size:1.6rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ddd}
td:first-child,td:last-child,td:nth-child(3){white-space:nowrap}
.good{color:#17703a}.bad{color:#a3201c}svg{width:100%;height:auto}.note{color:#666}
"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page is made of."""

    since_us: int
    until_us: int
    events: Sequence[LifecycleEvent]
    """Of the period, the oldest first."""
    library: Sequence[registry_pb2.Adapter]
    """Every adapter there is, in whatever state."""
    days: Sequence[Day] = ()
    tenant: str = ""
    """Whose; empty: everybody's."""
    by_id: Mapping[str, registry_pb2.Adapter] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_id", {one.adapter_id: one for one in self.library})

    @property
    def pruned(self) -> list[LifecycleEvent]:
        """Adapters that it retired because they failed or were not used."""
        return [one for one in self._last("RETIRED") if one.reason.startswith(PRUNED)]

    @property
    def merged_away(self) -> list[LifecycleEvent]:
        """Parents that a child replaced."""
        return [one for one in self._last("RETIRED") if one.reason.startswith(MERGED)]

    @property
    def merges(self) -> list[LifecycleEvent]:
        """Children that went live for good."""
        return [one for one in (*self._last("PROMOTED"), *self._last("MERGED")) if one.parents]

    @property
    def superseded(self) -> list[LifecycleEvent]:
        """Versions that a younger one replaced."""
        return [one for one in self._last("RETIRED") if one.reason.startswith(SUPERSEDED)]

    @property
    def undone(self) -> list[LifecycleEvent]:
        """Merges that were rolled back, and versions that were worse than an older one."""
        worse = [one for one in self._last("RETIRED") if one.reason.startswith(ROLLED_BACK)]
        return [*self._last("ROLLED_BACK"), *worse]

    @property
    def on_trial(self) -> list[LifecycleEvent]:
        """Merges and versions of which it is not known yet."""
        return self._last("CANARY")

    @property
    def came_back(self) -> list[LifecycleEvent]:
        """Adapters that were restored."""
        return self._last("RESTORED")

    @property
    def saved(self) -> tuple[int, int]:
        """(adapters, bytes of weights) that executors need not hold any more."""
        gone = [self.by_id[one.adapter_id] for one in (*self.pruned, *self.merged_away, *self.superseded) if one.adapter_id in self.by_id]
        made = [self.by_id[one.adapter_id] for one in self.merges if one.adapter_id in self.by_id]
        return len(gone) - len(made), sum(one.file_bytes for one in gone) - sum(one.file_bytes for one in made)

    def success(self, first: bool) -> tuple[int, int]:
        """(successes, outcomes) of the first, or the last, half of the days."""
        middle = (self.since_us + self.until_us) // 2
        days = [one for one in self.days if (one.start_us < middle) == first]
        return sum(one.successes for one in days), sum(one.outcomes for one in days)

    def numbers(self) -> dict[str, float]:
        """For machines."""
        adapters, size = self.saved
        (right_before, before), (right_after, after) = self.success(first=True), self.success(first=False)
        return {
            "pruned": len(self.pruned),
            "merged_away": len(self.merged_away),
            "merges": len(self.merges),
            "superseded": len(self.superseded),
            "undone": len(self.undone),
            "on_trial": len(self.on_trial),
            "came_back": len(self.came_back),
            "adapters_saved": adapters,
            "bytes_saved": size,
            "outcomes_first_half": before,
            "successes_first_half": right_before,
            "outcomes_last_half": after,
            "successes_last_half": right_after,
        }

    def _last(self, action: str) -> list[LifecycleEvent]:
        wanted = LifecycleAction.Value(f"LIFECYCLE_ACTION_{action}")
        newest = {one.adapter_id: one for one in self.events}
        return [one for one in newest.values() if one.action == wanted]


def page(report: Report) -> str:
    """The page, whole: no file beside it, and nothing that is fetched."""
    adapters, size = report.saved
    whose = f" of {escape(report.tenant)}" if report.tenant else ""
    title = f"The optimizer, {date_of(report.since_us)} to {date_of(report.until_us)}{whose}"
    numbers = (
        (len(report.pruned), "pruned"),
        (len(report.merged_away), f"merged into {len(report.merges)}"),
        (len(report.superseded), "superseded by a version"),
        (len(report.undone), "undone"),
        (len(report.on_trial), "on trial"),
        (len(report.came_back), "brought back"),
        (adapters, "adapters fewer to hold"),
        (_bytes(size), "of weights fewer"),
    )
    bars = (
        Bars("pruned", "#7a7a7a", [one.occurred_at_us for one in report.pruned]),
        Bars("merged", "#17703a", [one.occurred_at_us for one in report.merges]),
        Bars("undone", "#a3201c", [one.occurred_at_us for one in (*report.undone, *report.came_back)]),
    )
    shown = "".join(f"<div><b>{escape(str(value))}</b>{escape(what)}</div>" for value, what in numbers)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{_verdict(report)}</p><div class=numbers>{shown}</div>"
        f"<h2>Success of all answers, by day</h2>{plot_of_success(report.days)}"
        f"<h2>Changes, by day</h2>{plot_of_changes(report.since_us, report.until_us, bars)}"
        f"<h2>What was done, and by which numbers</h2>{_table(report)}"
        "<p class=note>Every change can be taken back: <code>smoa optimizer undo ADAPTER</code>, until the weights are purged. Of each "
        "adapter the last event is shown. Success is as callers reported it.</p></html>\n"
    )


def _verdict(report: Report) -> str:
    """Whether it was right, in a sentence."""
    (right_before, before), (right_after, after) = report.success(first=True), report.success(first=False)
    if not before or not after:
        return "There are too few outcomes to say what success did meanwhile."
    change, error = right_after / after - right_before / before, error_of(right_before, before) + error_of(right_after, after)
    first, last = f"{right_before / before:.1%} of {before:,}", f"{right_after / after:.1%} of {after:,}"
    said = f"{first} answers were right in its first half, {last} in its last"
    if change < -error:
        return f"<span class=bad>Success fell</span>: {said}. Look at what was done below, and at what else changed."
    return f"<span class=good>Success {'rose' if change > error else 'is as it was'}</span>: {said}."


def _table(report: Report) -> str:
    wanted = (*report.pruned, *report.merges, *report.superseded, *report.undone, *report.on_trial, *report.came_back)
    if not wanted:
        return "<p>Nothing.</p>"
    rows = []
    for one in sorted(wanted, key=lambda one: -one.occurred_at_us):
        adapter = report.by_id.get(one.adapter_id)
        name = adapter.name if adapter is not None and adapter.name else one.adapter_id
        parents = ", ".join(parent.name for parent_id in one.parents if (parent := report.by_id.get(parent_id)) is not None)
        counts = adapter.statistics if adapter is not None else registry_pb2.AdapterStatistics()
        rate = f"{counts.successes:,.10g} of {counts.outcomes:,}" if counts.outcomes else "-"
        why = _ID.sub(lambda found: known.name if (known := report.by_id.get(found[0])) is not None else found[0], one.reason)
        cells = (
            _moment(one.occurred_at_us),
            f"{name} ({parents})" if parents else name,
            _what(one),
            why.removeprefix(PRUNED).removeprefix(ROLLED_BACK),
            rate,
        )
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{one}</th>" for one in ("when (UTC)", "adapter", "what", "why", "right, over its life"))
    return f"<table><tr>{heads}</tr>{''.join(rows)}</table>"


def _what(one: LifecycleEvent) -> str:
    if one.reason.startswith(SUPERSEDED):
        return "superseded"
    if one.reason.startswith(ROLLED_BACK):
        return "undone"
    return _WORDS[LifecycleAction.Name(one.action).removeprefix("LIFECYCLE_ACTION_")]


def _moment(at_us: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at_us / 1e6))


def _bytes(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(size) >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
