"""`smoa example`: data to train with, from the installed package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from examples.library.commands import example_group
from examples.library.jobs import JOBS
from services.executor.adapters.training_data import Pair, read_pairs
from smoa.cli.main import _HELP
from smoa.errors import InvalidArgument


def test_what_it_writes_is_what_training_reads(tmp_path: Path) -> None:
    path = tmp_path / "tickets.jsonl"
    done = CliRunner().invoke(example_group, ["write", "support_intent", "-o", str(path)], catch_exceptions=False)
    assert f"Next: smoa adapter train {path} -o {tmp_path / 'tickets.safetensors'}" in done.output
    assert read_pairs(path) == [Pair.of(one.input, one.output) for one in JOBS["support_intent"].generate("train", 60, 0)]


def test_it_lists_every_job() -> None:
    lines = CliRunner().invoke(example_group, ["list", "--json"], catch_exceptions=False).output.splitlines()
    assert [json.loads(line)["job"] for line in lines] == list(JOBS)
    table = CliRunner().invoke(example_group, ["list"], catch_exceptions=False).output
    assert all(name in table for name in JOBS)


def test_an_unknown_job_is_told_the_jobs(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"^job: 'tickets' is unknown; use one of med_department, .*hr_ticket$"):
        CliRunner().invoke(example_group, ["write", "tickets", "-o", str(tmp_path / "t.jsonl")], catch_exceptions=False)


def test_help_names_it() -> None:
    assert "training data" in _HELP["example"]
