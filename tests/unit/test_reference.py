"""docs/reference is what the code says, and docs/decisions/index.md what is in its folder."""

from __future__ import annotations

import dataclasses

import pytest

from docs.generate.__main__ import FOLDER, PAGES
from docs.generate.errors import ERRORS
from docs.generate.markdown import SERVICES
from docs.generate.metrics import metrics_of
from docs.generate.settings import field_docstrings, settings_of
from smoa import errors


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_current(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name](), f"docs/{name} is stale; run `make docs-reference`"


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_says_what_it_means(service: str) -> None:
    cls, _ = settings_of(service)
    assert {item.name for item in dataclasses.fields(cls)} == set(field_docstrings(cls))


@pytest.mark.parametrize("service", SERVICES)
def test_every_metric_says_what_it_is(service: str) -> None:
    metrics = metrics_of(service)
    assert metrics
    assert all(metric.name.startswith(f"smoa_{service}_") and metric.documentation.endswith(".") for metric in metrics)


def test_every_error_has_its_example() -> None:
    kinds = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.SmoaError)}
    assert {type(one) for one in ERRORS} == kinds - {errors.SmoaError}
