"""What the images install is what is tested, and each file of it is named by its hash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from requirements.without_torch import without_torch

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "requirements").glob("*.txt"))


def _versions(text: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", text, re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_versions_are_those_that_are_tested(path: Path) -> None:
    tested, named = _versions((ROOT / "constraints.txt").read_text()), _versions(path.read_text())
    assert named
    differing = {name: version for name, version in named.items() if tested.get(name, version) != version}
    assert not differing, "`make requirements` writes them again"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_everything_has_hashes(path: Path) -> None:
    blocks = re.split(r"\n(?=\S)", path.read_text().rstrip())
    assert all("--hash=sha256:" in block for block in blocks)


def test_each_service_has_what_it_says_it_needs() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for service in ("router", "executor", "optimizer", "gateway"):
        wanted = [re.split(r"[\[>=<;! ]", one)[0] for one in (*project["dependencies"], *project["optional-dependencies"][service])]
        named = _versions((ROOT / "requirements" / f"{service}.txt").read_text())
        assert {one.lower().replace("_", "-") for one in wanted} - {"torch"} <= named.keys(), service


def test_torch_is_left_out_with_what_its_device_needs() -> None:
    kept = "torchao==1 \\\n    --hash=d\nz==1 \\\n    --hash=e\n"
    assert without_torch("torch==2 \\\n    --hash=a\nnvidia-cublas==1 ; x \\\n    --hash=b\n    --hash=c\n" + kept) == kept


def test_the_images_install_nothing_without_a_hash_but_torch() -> None:
    lines = re.findall(r"pip install (.*)", (ROOT / "Dockerfile").read_text())
    rest = [line for line in lines if "--require-hashes" not in line and "--no-deps --no-build-isolation ." not in line]
    assert rest == ["-c constraints.txt torch"]
