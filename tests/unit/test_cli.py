"""What the command line says of itself."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from smoa.cli.main import cli


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--help"], "  See it work:            smoa demo"),
        (["composition", "--help"], '    {"sequential": [{"adapter_id": "01K...", "max_tokens": 40}, {"composition": "polite"}]}'),
    ],
)
def test_examples_keep_their_lines(arguments: list[str], line: str) -> None:
    shown = CliRunner().invoke(cli, arguments, terminal_width=110).output
    assert line in shown.splitlines()
    assert "\\b" not in shown
