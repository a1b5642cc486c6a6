"""The page of `smoa router evaluate`: a library's figures, a map of its adapters and who is taken for whom. One file, without a
network; its form is in `evaluation_page.html`.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Final

import numpy as np

from services.router.learning.evaluation import AdapterReport, LibraryReport
from services.router.learning.pool_fit import Numbers

_MOST_IN_MATRIX: Final = 120
"""Adapters in the matrix: those that are confused most."""


def page_of(report: LibraryReport, title: str) -> str:
    """The whole page."""
    figures = [
        (f"{report.first:.1%}", "right first"),
        (f"{report.among_three:.1%}", "right among three"),
        (f"{report.unanswered:.1%}" if report.can_tell else "-", "of its own queries unanswered"),
        (f"{report.strangers_unanswered:.1%}" if report.can_tell else "-", "of strangers' queries unanswered"),
        (f"{report.calibration_error:.3f}", "calibration error"),
        (f"{len(report.adapters):,}", f"adapters ({report.without_examples:,} more have no examples)"),
    ]
    shown = "".join(f"<div class=figure><b>{value}</b><span>{escape(name)}</span></div>" for value, name in figures)
    rows = "".join(map(_row, sorted(report.adapters, key=lambda one: one.first)))
    filled = {
        "title": escape(title),
        "figures": shown,
        "rows": rows,
        "matrix": _left_out(report),
        "data": json.dumps(_data(report)).replace("<", "\\u003c"),  # a name may hold what would end the script
    }
    return re.sub("@([a-z]+)@", lambda found: filled[found[1]], Path(__file__).with_suffix(".html").read_text())


def _row(one: AdapterReport) -> str:
    taken = ", ".join(f"{name} {share:.0%}" for name, share in one.confused_with)
    numbers = (f"{one.examples}", *(f"{share:.0%}" for share in (one.first, one.among_three, one.unanswered, one.with_tags)))
    cells = "".join(f"<td class=n>{value}</td>" for value in numbers)
    return f"<tr><td>{escape(one.name)}</td>{cells}<td>{escape(taken)}</td><td>{escape(one.advice)}</td></tr>"


def _left_out(report: LibraryReport) -> str:
    count = len(report.adapters)
    return f" The {_MOST_IN_MATRIX} of {count:,} that are confused most." if count > _MOST_IN_MATRIX else ""


def _data(report: LibraryReport) -> dict[str, object]:
    everything = np.concatenate([report.places, *report.around])
    low, span = everything.min(0), np.maximum(np.ptp(everything, axis=0), 1e-9)

    def onto(points: Numbers) -> list[list[float]]:
        placed: list[list[float]] = np.round((points - low) / span * [920, 560] + [30, 30], 1).tolist()
        return placed

    worst = np.sort(np.argsort(np.diag(report.confusion), kind="stable")[:_MOST_IN_MATRIX])
    return {
        "map": [
            {"name": one.name, "first": f"{one.first:.0%}", "at": at, "around": onto(around)}
            for one, at, around in zip(report.adapters, onto(report.places), report.around, strict=True)
        ],
        "matrix": {
            "names": [report.adapters[place].name for place in worst],
            "shares": np.round(report.confusion[np.ix_(worst, worst)], 3).tolist(),
        },
    }
