"""The documents point at what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md", "k8s/README.md"])
def test_every_path_and_make_target_named_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    for name in re.findall(r"`((?:smoa|services|tests|examples|proto|docs|k8s|benchmarks)/[\w./*-]*)`", text):
        assert list(ROOT.glob(name.rstrip("/"))), f"{document} names {name}, which is not there"
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z][a-z-]+)(?=`|\s+#)", text)) <= targets
    files = {path.name for folder in ("smoa", "services", "examples") for path in (ROOT / folder).rglob("*.py")}
    assert set(re.findall(r"`([a-z_]+\.py)`", text)) <= files
