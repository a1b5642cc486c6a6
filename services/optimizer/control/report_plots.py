"""Plots as SVG, to stand within a page. Pure."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, NamedTuple

DAY_US: Final = 86400 * 10**6
_SIZE: Final = (640, 150)


@dataclass(frozen=True)
class Day:
    """Outcomes that were reported on one day (UTC)."""

    start_us: int
    outcomes: int
    successes: int


class Bars(NamedTuple):
    """One kind of change."""

    name: str
    colour: str
    times_us: Sequence[int]


def error_of(successes: int, outcomes: int) -> float:
    """Half of a 95% interval of a share; of one that is 0 or 1 as far as so many outcomes can tell."""
    rate = successes / outcomes
    return 1.96 * math.sqrt(max(rate * (1 - rate), 0.25 / outcomes) / outcomes)


def plot_of_success(days: Sequence[Day]) -> str:
    """A line with 95% error bars; empty days are left out."""
    seen = [one for one in days if one.outcomes]
    if not seen:
        return "<p class=note>No outcomes in this period.</p>"
    width, height = _SIZE
    low = max(0.0, math.floor(10 * min(one.successes / one.outcomes - error_of(one.successes, one.outcomes) for one in seen)) / 10)
    place = _places([one.start_us for one in seen], width)

    def up(rate: float) -> float:
        return height - 20 - (min(1.0, max(low, rate)) - low) / (1 - low or 1) * (height - 30)

    points, bars = [], []
    for one in seen:
        rate, error, x = one.successes / one.outcomes, error_of(one.successes, one.outcomes), place[one.start_us]
        points.append(f"{x:.1f},{up(rate):.1f}")
        told = f"{date_of(one.start_us)}: {rate:.1%} of {one.outcomes:,}"
        bars.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up(rate - error):.1f}" y2="{up(rate + error):.1f}" stroke="#9bb8d3"/>'
            f'<circle cx="{x:.1f}" cy="{up(rate):.1f}" r="3" fill="#1f5f99"><title>{told}</title></circle>'
        )
    line = f'<polyline points="{" ".join(points)}" fill="none" stroke="#1f5f99" stroke-width="1.5"/>'
    return _svg(f"{_label(2, up(1), '100%')}{_label(2, up(low), f'{low:.0%}')}{''.join(bars)}{line}{_ends(seen, width, height)}")


def plot_of_changes(since_us: int, until_us: int, kinds: Sequence[Bars]) -> str:
    """Bars by day, those of one day one upon the other."""
    counts = [(one.name, Counter(at_us // DAY_US * DAY_US for at_us in one.times_us), one.colour) for one in kinds]
    starts = list(range(since_us // DAY_US * DAY_US, until_us, DAY_US))
    most = max((sum(count[start] for _, count, _ in counts) for start in starts), default=0)
    if not most:
        return "<p class=note>None.</p>"
    width, height = _SIZE
    place, bar = _places(starts, width), max(2.0, min(24.0, (width - 80) / len(starts) - 2))
    drawn = []
    for start in starts:
        base = height - 20.0
        for name, count, colour in counts:
            if tall := count[start] / most * (height - 40):
                base -= tall
                told = f"{date_of(start)}: {count[start]} {name}"
                drawn.append(
                    f'<rect x="{place[start] - bar / 2:.1f}" y="{base:.1f}" width="{bar:.1f}" height="{tall:.1f}" fill="{colour}">'
                    f"<title>{told}</title></rect>"
                )
    legend = "".join(
        f'<rect x="{60 + 90 * number}" y="2" width="10" height="10" fill="{colour}"/>{_label(74 + 90 * number, 11, name)}'
        for number, (name, _, colour) in enumerate(counts)
    )
    ends = [Day(start, 0, 0) for start in (starts[0], starts[-1])]
    return _svg(f"{legend}{_label(2, 30, str(most))}{''.join(drawn)}{_ends(ends, width, height)}")


def _places(starts: Sequence[int], width: int) -> dict[int, float]:
    first, last = min(starts), max(starts)
    return {one: 50 + (one - first) / ((last - first) or 1) * (width - 80) for one in starts}


def _ends(days: Sequence[Day], width: int, height: int) -> str:
    return _label(40, height - 4, date_of(days[0].start_us)) + (
        _label(width - 80, height - 4, date_of(days[-1].start_us)) if len(days) > 1 else ""
    )


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="11" fill="#555">{escape(text)}</text>'


def _svg(content: str) -> str:
    return f'<svg viewBox="0 0 {_SIZE[0]} {_SIZE[1]}" role="img">{content}</svg>'


def date_of(at_us: int) -> str:
    """UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(at_us / 1e6))
