"""What errors, docstrings and contracts send a reader to is there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from smoa.cli.main import _Lazy, _load_plugins, cli

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("smoa", "services", "proto")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".proto")]


def test_every_document_that_is_named_exists() -> None:
    named = {(path.name, name) for path in SOURCES for name in re.findall(r"[\w/.-]+\.md\b", path.read_text())}
    assert not {(path, name) for path, name in named if not (ROOT / name).is_file()}


def test_every_command_that_is_named_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "commands", dict(cli.commands))
    _load_plugins()
    named = {said for path in SOURCES for said in re.findall(r"`smoa ([^`]+)`", path.read_text())}
    missing = {said for said in named if not _exists(said.split())}
    assert len(named) > 15
    assert not missing


def _exists(words: list[str]) -> bool:
    command: click.Command = cli
    for word in words:
        if "{" in word:
            return True  # filled in when it is said
        if isinstance(command, _Lazy):
            command = command._real()
        if word.startswith("--"):
            return word == "--help" or any(word in option.opts for option in command.params)
        if not isinstance(command, click.Group):
            return True  # an argument of the command
        if word == "...":
            return True
        if (found := command.commands.get(word)) is None:
            return False
        command = found
    return True
