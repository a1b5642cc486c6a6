"""What `smoa doctor` says of this machine."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from services import doctor as module
from services.doctor import CPU_TORCH, Row, doctor, torch_row
from services.machine import free_port


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the base model and torch, which take seconds."""
    monkeypatch.setattr(module, "_model", lambda: iter([Row(True, "base model x")]))
    monkeypatch.setattr(module, "_packages", lambda: iter([Row(True, "torch 2")]))
    monkeypatch.setattr(module, "MEMORY_GIB", 0.0)
    monkeypatch.chdir(tmp_path)


def test_a_cuda_torch_without_a_gpu_is_told_with_its_size_and_the_way_to_the_other() -> None:
    row = torch_row("13.0", gpu=False, gib=4.6)
    assert row is not None
    assert row.what == "torch is the CUDA 13.0 build, and this machine has no GPU; with what it brings it takes 4.6 GiB"
    assert CPU_TORCH in row.remedy
    assert row.advice  # it works
    assert torch_row("13.0", gpu=True, gib=4.6) is None
    assert torch_row(None, gpu=False, gib=0.8) is None


def _ports() -> list[str]:
    return ["--router-port", str(free_port()), "--executor-port", str(free_port())]


def test_it_says_what_a_start_needs_and_where_commands_look() -> None:
    result = CliRunner().invoke(doctor, _ports())
    assert result.exit_code == 0, result.output
    assert "MiB" in result.output
    assert "of memory free" in result.output
    assert f"no stack in {Path.cwd()}/smoa-data yet; `smoa up` starts one" in result.output


def test_what_must_be_done_is_an_exit_code_and_json_says_it_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        result = CliRunner().invoke(doctor, ["--router-port", port, "--executor-port", str(free_port()), "--json"])
    assert result.exit_code == 1
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    [bad] = [row for row in rows if not row["good"]]
    assert bad["what"] == f"port {port} for the router is taken"
    assert bad["remedy"] == "stop its owner, or give `smoa up` another --router-port"
