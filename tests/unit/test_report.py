"""The page of what the optimizer did: its numbers, its verdict, its plots, and what stands in names."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import count

import click
import pytest

from services.optimizer.control.report_page import Report, page
from services.optimizer.control.report_plots import DAY_US, Day, plot_of_success
from smoa.cli.since import Since
from smoa.v1 import registry_pb2
from smoa.v1.events_pb2 import LifecycleEvent

ID = "01J9ZC3B5T8QH7M2K4N6P0R1SV"
SINCE_US = 20_000 * DAY_US
UNTIL_US = SINCE_US + 10 * DAY_US
_times = count(SINCE_US + DAY_US, DAY_US)


def _event(name: str, action: str, reason: str = "", parents: tuple[str, ...] = ()) -> LifecycleEvent:
    return LifecycleEvent(
        adapter_id=name, tenant="t", action=f"LIFECYCLE_ACTION_{action}", reason=reason, parents=parents, occurred_at_us=next(_times)
    )


def _report(*days: Day) -> Report:
    names = ("twin-a", "twin-b", "child", "bad<b>", "tried", "back", "first", "second", "third")
    library = [registry_pb2.Adapter(adapter_id=name, name=name, tenant="t", file_bytes=1000) for name in names]
    library.append(registry_pb2.Adapter(adapter_id=ID, name="named by its id"))
    library[2].statistics.outcomes, library[2].statistics.successes = 120, 110
    events = [
        _event("bad<b>", "REGISTERED"),
        _event("child", "CANARY", "delta cosine 0.99", ("twin-a", "twin-b")),
        _event("twin-a", "RETIRED", "merged into child: as good"),
        _event("twin-b", "RETIRED", "merged into child: as good"),
        _event("child", "PROMOTED", f"as good: in place of {ID} ...", ("twin-a", "twin-b")),
        _event("bad<b>", "RETIRED", "pruned: fails: 0 of 20 right"),
        _event("tried", "ROLLED_BACK", "worse: in place of back ..."),
        _event("back", "RESTORED"),
        _event("gone", "RETIRED", "because somebody said so"),
        _event("second", "PROMOTED", "as good: in place of first ..."),
        _event("first", "RETIRED", "superseded by second: as good"),
        _event("third", "RETIRED", "rolled back: worse: in place of second ..."),
    ]
    return Report(since_us=SINCE_US, until_us=UNTIL_US, events=events, library=library, days=days, tenant="t")


def _days(first: float, last: float, outcomes: int = 500) -> tuple[Day, ...]:
    return tuple(Day(SINCE_US + day * DAY_US, outcomes, int(outcomes * (first if day < 5 else last))) for day in range(10))


def test_the_numbers_are_of_what_the_optimizer_did() -> None:
    numbers = _report(*_days(0.9, 0.92)).numbers()
    assert (numbers["pruned"], numbers["merged_away"], numbers["merges"], numbers["undone"], numbers["came_back"]) == (1, 2, 1, 2, 1)
    assert numbers["superseded"] == 1
    assert (numbers["adapters_saved"], numbers["bytes_saved"]) == (3, 3000)
    assert (numbers["successes_first_half"], numbers["outcomes_last_half"]) == (2250, 2500)


def test_the_page_is_whole_and_what_is_in_names_is_text() -> None:
    written = page(_report(*_days(0.9, 0.92)))
    assert "bad&lt;b&gt;" in written
    assert "bad<b>" not in written
    for outside in ("http:", "https:", "<script", "src="):
        assert outside not in written
    assert "child (twin-a, twin-b)" in written
    assert "because somebody said so" not in written, "that was not its doing"
    assert "<td>undone</td>" in written
    assert "<td>superseded</td>" in written
    assert f"in place of {ID} " not in written
    assert "in place of named by its id " in written
    for plot in written.split("<svg")[1:]:
        ET.fromstring("<svg" + plot.partition("</svg>")[0] + "</svg>")


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [(0.9, 0.8, "Success fell"), (0.9, 0.9, "Success is as it was"), (0.8, 0.9, "Success rose"), (0.9, 0.905, "as it was")],
)
def test_it_says_in_a_sentence_whether_it_was_right(first: float, last: float, said: str) -> None:
    assert said in page(_report(*_days(first, last)))


def test_without_outcomes_or_changes_it_says_so() -> None:
    assert "too few outcomes" in page(_report())
    nothing = page(Report(since_us=SINCE_US, until_us=UNTIL_US, events=[], library=[]))
    assert "<p>Nothing.</p>" in nothing
    assert "<p class=note>None.</p>" in nothing


@pytest.mark.parametrize(("outcomes", "successes"), [(1, 0), (1, 1), (10**9, 5 * 10**8)])
def test_one_day_is_drawn(outcomes: int, successes: int) -> None:
    drawn = ET.fromstring(plot_of_success([Day(SINCE_US, outcomes, successes)]))
    assert [len(drawn.findall(tag)) for tag in ("circle", "polyline")] == [1, 1]


def test_a_time_is_how_long_ago_or_a_date() -> None:
    since = Since()
    assert since.convert("2026-11-01", None, None) == since.convert("2026-11-01T00:00+00:00", None, None) == 1793491200 * 10**6
    assert since.convert("12h", None, None) - since.convert("1d", None, None) == pytest.approx(12 * 3600 * 10**6, abs=10**6)
    for wrong in ("", "d", "7 d", "yesterday", "99999999d"):
        with pytest.raises(click.BadParameter, match="is no time; write how long ago, as 7d"):
            since.convert(wrong, None, None)
