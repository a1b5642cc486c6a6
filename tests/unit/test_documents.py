"""The documents point at what exists: paths, targets, variables, and each `smoa` command with its options."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from docs.generate.commands import command_tree, commands_of
from docs.generate.markdown import SERVICES
from docs.generate.metrics import exposed_names
from docs.generate.settings import variables
from tests.documents import ROOT, Block, blocks, documents, inline_commands, problem, simple_commands

SHELL = ("bash", "sh", "shell", "console")
ALL = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in documents()]
SOURCES = [path for folder in ("smoa", "services", "examples") for path in (ROOT / folder).rglob("*.py") if "v1" not in path.parts]

tree = command_tree


@pytest.mark.parametrize("document", ALL)
def test_every_path_and_make_target_named_exists(document: Path) -> None:
    text = document.read_text()
    for name in re.findall(r"`((?:smoa|services|tests|examples|proto|docs|k8s|benchmarks)/[\w./*-]*)`", text):
        assert list(ROOT.glob(name.rstrip("/"))), f"{document} names {name}, which is not there"
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z][a-z-]+)(?=`|\s+#)", text)) <= targets
    files = {path.name for path in SOURCES} | {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert set(re.findall(r"`([a-z_]+\.py)`", text)) <= files


@pytest.mark.parametrize("document", ALL)
def test_every_variable_named_is_read_somewhere(document: Path) -> None:
    named = set(re.findall(r"\bSMOA_[A-Z0-9_]*[A-Z0-9]\b", document.read_text()))
    assert named <= _variables(), f"{document}: {sorted(named - _variables())} is read nowhere"


@functools.cache
def _variables() -> frozenset[str]:
    found = {name for service in SERVICES for name in variables(service)}
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), ROOT / ".ci" / "run"]:
        found |= set(re.findall(r"\bSMOA_[A-Z0-9_]*[A-Z0-9]\b", path.read_text()))
    return frozenset(found)


@pytest.mark.parametrize("document", ALL)
def test_every_metric_named_is_shown_by_a_service(document: Path) -> None:
    named = set(re.findall(r"\bsmoa_(?:router|executor|optimizer)_\w*[a-z]\b", document.read_text()))
    if named:
        shown = {name for service in SERVICES for name in exposed_names(service)}
        assert named <= shown, f"{document}: {sorted(named - shown)} is shown by no service"


@pytest.mark.parametrize("document", [*ALL, ROOT / "CHANGELOG.md", ROOT / "docs" / "llms.txt"])
def test_every_link_points_at_what_is_there(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" not in target and not target.startswith("#"):
            assert (document.parent / target.partition("#")[0]).exists(), f"{document}: {target} is not there"


def test_every_page_is_in_llms_txt() -> None:
    linked = set(re.findall(r"\]\(([^)\s]+)\): \S", (ROOT / "docs" / "llms.txt").read_text()))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md") if not path.name.startswith("0")}
    assert linked == pages - {"how-to/index.md", "operations/index.md", "reference/index.md"}


@pytest.mark.parametrize("document", ALL)
def test_every_smoa_command_of_a_document_is_one(document: Path) -> None:
    found = [(block.place, command, True) for block in blocks(document) for command in _commands(block)]
    found += [(str(document), command, False) for text in inline_commands(document.read_text()) for command in _in_prose(text)]
    wrong = [f"{place}: {' '.join(command)}: {why}" for place, command, whole in found if (why := problem(command, tree(), whole))]
    assert not wrong, "\n".join(wrong)


def test_every_smoa_command_that_a_help_text_or_an_error_names_is_one() -> None:
    wrong = []
    for path in SOURCES:
        for text in inline_commands(path.read_text()):
            text = text.partition("{")[0]  # of an f-string, what is written in it
            wrong += [f"{path}: {text}: {why}" for command in _in_prose(text) if (why := problem(command, tree(), False))]
    for words, command in commands_of(tree()):
        for named in re.findall(r"\bsmoa(?: [a-z][a-z-]*)+", command.help or ""):
            if why := _no_such_path(named.split()):
                wrong.append(f"{' '.join(words)} --help: {named}: {why}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", ALL)
def test_every_block_can_be_read_by_its_language(document: Path) -> None:
    for block in blocks(document):
        assert block.language, f"{block.place}: say which language the block is in"
        match block.language:
            case "python":
                compile(block.text, block.place, "exec")
            case "json":
                json.loads(block.text)
            case "jsonl":
                [json.loads(line) for line in block.text.splitlines()]
            case "yaml":
                list(yaml.safe_load_all(block.text))
            case "bash" | "sh" | "text":
                pass
            case other:
                raise AssertionError(f"{block.place}: nothing here reads {other}")


@pytest.mark.parametrize(
    ("command", "whole", "wrong"),
    [
        ("smoa adapter list --json", True, ""),
        ("smoa adapter lst", True, "smoa adapter has no command 'lst'"),
        ("smoa adapter list --jason", True, "No such option"),
        ("smoa route --strategy guess 'a'", True, "'guess' is not one of"),
        ("smoa route", True, "is required"),
        ("smoa route", False, ""),
        ("smoa route --top-k $K 'a'", True, ""),
        ("smoa route --top-k many 'a'", True, "not a valid int"),
        ("smoa adapter", True, "is a group"),
        ("smoa up --data", True, "requires an argument"),
        ("smoa doctor now", True, "unexpected arguments"),
        ("smoa --help", True, ""),
    ],
)
def test_a_wrong_command_is_seen(command: str, whole: bool, wrong: str) -> None:
    (words,) = simple_commands(command)
    found = problem(words, tree(), whole)
    assert wrong in found
    assert bool(found) == bool(wrong)


def test_commands_are_found_in_shell_scripts() -> None:
    script = "A=1 smoa up &\nID=$(smoa adapter list --json | head -1)  # the first\nsmoa \\\n  route 'a\nb' > out 2>&1\n"
    script += "cat <<END\nsmoa not\nEND\n"
    assert list(simple_commands(script)) == [
        ["smoa", "up"],
        ["smoa", "adapter", "list", "--json"],
        ["head", "-1"],
        ["smoa", "route", "a\nb"],
        ["cat"],
    ]


def _commands(block: Block) -> Iterator[list[str]]:
    if block.language in SHELL:
        for words in simple_commands(block.text):
            if words[0] == "smoa":
                yield words


def _in_prose(text: str) -> Iterator[list[str]]:
    text = re.sub(r"[\[\]<>{}]", "", text).replace("|", " ")
    try:
        found = list(simple_commands(text))
    except ValueError:  # a sentence with an apostrophe
        found = []
    yield from (words for words in found if words[0] == "smoa")


def _no_such_path(words: list[str]) -> str:
    """Of a sentence that begins like a command: what of it is none."""
    node: click.Command = tree()
    for place, word in enumerate(words[1:], 1):
        if not isinstance(node, click.Group):
            return ""
        if word not in node.commands:
            return f"{' '.join(words[:place])} has no command {word!r}"
        node = node.commands[word]
    return ""
