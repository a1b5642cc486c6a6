"""What the command line says of itself."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from smoa.cli.main import cli
from smoa.cli.query import times_of
from smoa.v1 import executor_pb2


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


def test_times_of_an_answer_say_what_each_of_them_is() -> None:
    usage = executor_pb2.Usage(completion_tokens=64, first_token_us=63_000, total_us=1_600_000)
    assert times_of(usage) == "64 tokens in 1.60 s (40 tokens/s), the first after 63 ms"
