"""README followed to the letter, then every page of the documents: one stack for all, started as README says.

Set-up is proven by CI itself, which runs it on a fresh clone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import ROOT, blocks, documents
from tests.reader import Reader, adapter_of

README = ROOT / "README.md"
TRAINING_S = 480.0
"""A bound that tells of a fault: what it takes is in benchmarks/RESULTS.md."""
ALL_S = 15 * 60.0
"""From clone to an adapter of one's own that was restored, with set-up; here without."""

PAGES = [
    pytest.param(path, id=str(path.relative_to(ROOT / "docs")))
    for path in documents()
    if path.is_relative_to(ROOT / "docs") and any(block.language in ("bash", "python") and not block.not_run for block in blocks(path))
]


class Followed:
    """README, followed: what it printed and how long it took."""

    def __init__(self, reader: Reader) -> None:
        begun = time.monotonic()
        self.reader = reader
        self.printed = reader.follow(README)
        self.seconds = time.monotonic() - begun


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    reader = Reader(tmp_path_factory.mktemp("reader"))
    try:
        yield Followed(reader)
    finally:
        reader.stop()


@pytest.mark.timeout(1200)
def test_readme_works_as_written(readme: Followed) -> None:
    for command, seconds in readme.reader.seconds.items():
        print(f"{seconds:6.1f} s  {command}")
    asked = readme.printed.partition("smoa route")[2]
    assert "tickets" in asked.partition("smoa generate")[0] + asked.partition("---")[2]
    assert "no adapter fits" in readme.printed, "a retired adapter is still chosen"
    assert "'name': 'tickets'" in readme.printed, "the Python snippet got no adapter"
    assert '"name": "tickets"' in readme.printed, "nor did grpcurl"
    assert adapter_of(readme.reader, "tickets")["state"] == "ADAPTER_STATE_ACTIVE"
    training = [seconds for command, seconds in readme.reader.seconds.items() if command.startswith("smoa adapter train ")]
    assert training[0] < TRAINING_S, f"training took {training[0]:.0f} s beside the running stack"
    assert readme.seconds < ALL_S


@pytest.mark.timeout(300)
def test_what_readme_reported_is_counted_and_outlives_a_stop(readme: Followed) -> None:
    def counts() -> tuple[int, int]:
        statistics = adapter_of(readme.reader, "tickets").get("statistics", {})
        assert isinstance(statistics, dict)
        return int(statistics.get("uses", 0)), int(statistics.get("outcomes", 0))

    deadline = time.monotonic() + 60
    while counts() != (2, 2):  # `generate` and the Python snippet; what `route` showed is no use
        assert time.monotonic() < deadline, f"counted {counts()}"
        time.sleep(0.5)
    readme.reader.stop()
    readme.reader.start()
    assert counts() == (2, 2)
    assert "tickets" in readme.reader.smoa("optimizer", "history")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_as_written(readme: Followed, page: Path) -> None:
    readme.reader.start()
    readme.reader.follow(page)
