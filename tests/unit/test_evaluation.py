"""A library judged by its own examples: what is told apart, what is not, what would help, and a page that shows it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from services.router.catalogue.port import Vector
from services.router.evaluation_page import page_of
from services.router.learning.evaluation import Known, LibraryReport, calibration_error, evaluate
from tests.unit.test_pool_fit import World

LOSS = 0.05


def _report(examples: dict[str, Vector], tags: dict[str, tuple[str, ...]] | None = None) -> LibraryReport:
    return evaluate(examples, {one: Known(f"name-{one}", (tags or {}).get(one, ())) for one in examples}, LOSS)


def test_a_library_that_is_told_apart() -> None:
    report = _report(World(6).examples(20))
    assert report.first > 0.95
    assert report.among_three >= report.first
    assert report.can_tell
    assert report.unanswered <= 2 * LOSS
    assert report.strangers_unanswered > 0.5
    assert report.confusion.sum(1) == pytest.approx(np.ones(6))
    assert [one.advice for one in report.adapters] == [""] * 6


def test_twins_are_named_and_a_tag_tells_them_apart() -> None:
    world = World(5)
    world.points[1] = world.points[0]
    report = _report(world.examples(30), {"0": ("left",), "1": ("right",)})
    first, second = report.adapters[:2]
    assert first.first < 0.8
    assert first.confused_with[0][0] == "name-1"
    assert second.confused_with[0][0] == "name-0"
    assert first.with_tags == 1
    assert "name-1" in first.advice or first.advice.startswith("callers who send its tags get it in 100%")
    assert all(one.first > 0.9 for one in report.adapters[2:])


def test_few_examples_are_said_to_be_few() -> None:
    report = _report(World(3).examples(6))
    assert not report.can_tell
    assert [one.advice for one in report.adapters] == ["has 6 examples; give 20 to 50"] * 3


def test_one_adapter_alone() -> None:
    report = _report(World(1).examples(40))
    assert (report.first, report.among_three, report.strangers_unanswered) == (1, 1, 0)
    assert report.places.shape == (1, 2)
    page_of(report, "alone")


def test_the_map_puts_examples_around_their_adapters() -> None:
    report = _report(World(6).examples(20))
    for place, around in enumerate(report.around):
        away = np.linalg.norm(report.places - around.mean(0), axis=1)
        assert away.argmin() == place


def test_calibration_error_of_what_is_known() -> None:
    said, right = np.array([0.95] * 100 + [0.55] * 100), np.array([1.0] * 95 + [0.0] * 5 + [1.0] * 55 + [0.0] * 45)
    assert calibration_error(said, right) == pytest.approx(0, abs=1e-9)
    assert calibration_error(said, 1 - right) == pytest.approx((0.9 + 0.1) / 2, abs=1e-9)


def test_the_page_holds_all_of_it_and_no_name_breaks_out_of_it() -> None:
    report = _report(World(4).examples(20))
    evil = "</script><script>alert(1)</script>"
    report = replace(report, adapters=(replace(report.adapters[0], name=evil), *report.adapters[1:]))
    page = page_of(report, "a <b>title</b>")
    assert "<script>alert" not in page
    assert "a &lt;b&gt;title&lt;/b&gt;" in page
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg", "", page), "it works without a network"
    found = re.search(r"^const data = (.*?);$", page, re.MULTILINE)
    assert found
    data = json.loads(found[1])
    assert [one["name"] for one in data["map"]][1:] == ["name-1", "name-2", "name-3"]
    assert data["map"][0]["name"] == evil
    assert not re.search(r"@[a-z]+@", page), "nothing is left to be filled in"
