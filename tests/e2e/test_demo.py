"""`smoa demo NAME` as a user runs it: beside variables that name production, in a log, and interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AWAY = "127.0.0.1:1"
PRODUCTION = {"SMOA_KAFKA_BOOTSTRAP": AWAY, "SMOA_QDRANT_URL": f"http://{AWAY}", "SMOA_ROUTER": AWAY, "SMOA_OPTIMIZER_MODE": "observe"}


async def _start(tmp_path: Path, *arguments: str, **environment: str) -> Process:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from smoa.cli import main; main()", "demo", *arguments),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "COLUMNS": "140", **PRODUCTION, **environment},
        stdout=PIPE,
        stderr=STDOUT,
    )


def _processes_of(folder: Path) -> list[str]:
    """Command lines and environments in which the folder stands."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and str(folder) in (process / "cmdline").read_text() + (process / "environ").read_text():
                found.append((process / "cmdline").read_text())
        except (OSError, UnicodeDecodeError):
            continue
    return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["routing", "strategies"])
async def test_a_demonstration_is_alone_explains_itself_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    process = await _start(tmp_path, name, "--json", "result.json", "--queries-per-job", "3")
    shown = (await process.communicate())[0].decode()
    assert process.returncode == 0, shown
    assert "set, and not used here" in " ".join(shown.split())
    assert all(name in shown for name in PRODUCTION)
    assert "What this shows" in shown
    assert "What to do next" in shown
    result = json.loads((tmp_path / "result.json").read_text())
    if name == "routing":
        assert result["top1"] > 0.8
        assert result["other_tenant"] == "NOT_FOUND"
    else:
        assert set(result["strategies"]) >= {"semantic", "task", "hybrid", "hierarchical", "mixture", "learned"}
        assert result["strategies"]["hybrid"]["top1"] > 5 * result["controls"]["random"]["top1"]
        assert (tmp_path / "smoa-demo-strategies.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert _processes_of(tmp_path) == []


@pytest.mark.timeout(120)
async def test_a_library_of_vectors_only_is_found(tmp_path: Path) -> None:
    process = await _start(tmp_path, "library", "--json", "result.json", "--adapters", "1000")
    shown = (await process.communicate())[0].decode()
    assert process.returncode == 0, shown
    large = json.loads((tmp_path / "result.json").read_text())["large"]
    assert large["recall_at_10"] > 0.9
    assert large["listed"] > 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demonstration_ends_in_order(tmp_path: Path, number: signal.Signals) -> None:
    process = await _start(tmp_path, "scaling", "--adapters", "20000")
    assert process.stdout is not None
    async for line in process.stdout:
        if b"import to" in line:
            break
    process.send_signal(number)
    shown = (await process.communicate())[0].decode()
    assert process.returncode == 130, shown
    assert "stopped" in shown
    assert "Traceback" not in shown
    assert list((tmp_path / "temporary").iterdir()) == []
    assert _processes_of(tmp_path) == []
    assert not (tmp_path / "smoa-demo-scaling.png").exists()
