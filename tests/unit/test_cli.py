"""What the command line says of itself."""

from __future__ import annotations

import sys

import click
import pytest
from click.testing import CliRunner

from services.doctor import doctor
from services.optimizer.control.commands import optimizer_group
from services.optimizer.stream.dlq import dlq_group
from services.router.commands import router_group
from smoa.cli.main import cli, main
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


@pytest.mark.parametrize("arguments", [["report", "a\udcff", "--success"], ["generate", "b\udcff", "--base", "--system", "x"]])
def test_an_argument_in_another_encoding_is_told_in_a_sentence(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["smoa.cli.main"], "_load_plugins", lambda: None)  # they would stay
    monkeypatch.setattr("sys.argv", ["smoa", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "is not UTF-8 text; rename the file" in capsys.readouterr().err


OTHERWISE = {
    "adapter import",
    "adapter train",
    "access add",
    "access signing-key",
    "access remove",
    "login",
    "logout",
    "up",
    "example write",
}
"""They print progress as it comes, or one line: a key, or what was done."""


def _commands(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    return [found for name, one in command.commands.items() for found in _commands(one, f"{path} {name}".strip())]


def test_every_command_that_prints_something_can_print_json() -> None:
    everything: list[tuple[str, click.Command]] = [*_commands(cli, ""), ("doctor", doctor)]
    for name, group in (("optimizer", optimizer_group), ("dlq", dlq_group), ("router", router_group)):
        everything += _commands(group, name)
    assert len(everything) > 25
    without = {path for path, command in everything if not any("--json" in one.opts for one in command.params)}
    assert without <= OTHERWISE


def test_every_command_with_an_address_can_be_told_the_stack() -> None:
    everything = [one for group in (cli, optimizer_group, dlq_group, router_group) for one in _commands(group, group.name or "")]
    for path, command in everything:
        if path in ("cli login", "cli up", "cli demo"):  # where to call instead; what makes a stack of its own
            continue
        options = {option for one in command.params for option in one.opts}
        if options & {"--router", "--executor", "--kafka", "--store"}:
            assert [one.name for one in command.params].count("stack") == 1, path
