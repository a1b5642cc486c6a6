"""Whatever was found once by fuzzing (`make fuzz`) goes through every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, seeds

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_of_a_target_goes_through(name: str) -> None:
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())] if (CORPUS / name).is_dir() else []
    assert kept, "`make fuzz` fills it"
    for data in (*seeds(name), b"", *kept):
        TARGETS[name](data)
