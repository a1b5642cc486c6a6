"""The documents as tests read them: their blocks of code, and the `smoa` commands in them.

A block of a document is run by `tests/e2e/test_readme.py`, unless a comment before it says why not: `<!-- not run: it needs a cloud -->`.
Then it is still parsed, and its commands are held against the command line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\s*$")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_SEPARATORS = {"|", "||", "&&", ";", "&", "(", ")", "|&"}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    path: Path
    line: int
    """Of its fence, from 1."""
    language: str
    text: str
    not_run: str = ""
    """Why it is not run; empty: it is."""

    @property
    def place(self) -> str:
        """Where it is, as an editor finds it."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def documents() -> list[Path]:
    """Every document that people read, but for the decisions and results, which tell of what once was."""
    docs = [path for path in (ROOT / "docs").rglob("*.md") if "decisions" not in path.parts and not path.is_symlink()]
    return sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md", ROOT / "k8s" / "README.md", *docs])


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found: list[Block] = []
    lines = path.read_text().splitlines()
    open_at, language, indent = 0, "", ""
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if not open_at and fence:
            open_at, language, indent = number, fence["language"], fence["indent"]
        elif open_at and fence and not fence["language"]:
            text = "\n".join(one.removeprefix(indent) for one in lines[open_at : number - 1])
            before = "\n".join(lines[max(0, open_at - 3) : open_at - 1]).strip().rpartition("\n")[2]
            reason = _NOT_RUN.search(before)
            found.append(Block(path, open_at, language, text + "\n", reason[1] if reason else ""))
            open_at = 0
    assert not open_at, f"{path}:{open_at}: a block is not closed"
    return found


def inline_commands(text: str) -> list[str]:
    """What stands in backticks and begins with `smoa `."""
    return [found.replace("\n", " ") for found in re.findall(r"`(smoa [^`]+)`", text)]


def simple_commands(script: str) -> Iterator[list[str]]:
    """The commands of a shell script, each as its words, without assignments before it and redirections after it."""
    script = script.replace("\\\n", " ")
    script = re.sub(r'"\$\(([^()]*)\)"', r"$( \1 )", script)  # a command substitution within quotes
    for line in _logical_lines(script):
        words: list[str] = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.commenters, lexer.whitespace_split = "#", True
        skip = False
        for word in lexer:
            if skip:
                skip = False
            elif set(word) <= set("<>&") and set(word) & set("<>"):
                skip = True
                if words and words[-1] in ("1", "2"):
                    words.pop()
            elif word in _SEPARATORS or set(word) <= set("();|&"):
                if words:
                    yield words
                words = []
            elif words or not (_ASSIGNMENT.fullmatch(word) or word == "$"):
                words.append(word)
        if words:
            yield words


def _logical_lines(script: str) -> Iterator[str]:
    """Lines, those joined whose quotes are open at the end; the text of a here-document is left out."""
    held, ends = "", ""
    for line in script.splitlines():
        if ends:
            ends = "" if line.strip() == ends else ends
            continue
        held = f"{held}\n{line}" if held else line
        try:
            shlex.split(held, comments=True)
        except ValueError:
            continue
        if here := re.search(r"<<-?\s*['\"]?(\w+)['\"]?", held):
            ends = here[1]
            held = held[: here.start()]
        yield held
        held = ""


def problem(command: list[str], root: click.Command, whole: bool) -> str:
    """What is wrong with a `smoa` command, or nothing. With `whole`, what it requires must be there too."""
    node, rest, path = root, command[1:], "smoa"
    while isinstance(node, click.Group):
        context = click.Context(node, info_name=path)
        try:
            _, rest, _ = node.make_parser(context).parse_args(list(rest))
        except click.UsageError as error:
            return f"{path}: {error.format_message()}"
        if not rest or rest[0] == "...":
            return "" if not whole or command[-1].startswith("-") else f"{path} is a group: name one of its commands"
        if rest[0] not in node.commands:
            return f"{path} has no command {rest[0]!r}"
        path, node, rest = f"{path} {rest[0]}", node.commands[rest[0]], rest[1:]
    rest = [word for word in rest if word != "..."]
    context = click.Context(node, info_name=path, resilient_parsing=not whole)
    try:
        values, extra, _ = node.make_parser(context).parse_args(list(rest))
    except click.UsageError as error:
        return f"{path}: {error.format_message()}"
    if {"--help", "-h"} & set(rest):
        return ""
    if extra:
        return f"{path}: unexpected arguments {extra}"
    for parameter in node.params:
        value = values.get(parameter.name or "")
        missing = value is None or value == () or str(value).startswith("Sentinel")
        if whole and parameter.required and missing:
            return f"{path}: {parameter.get_error_hint(context)} is required"
        if not missing and (wrong := _wrong(parameter, value)):
            return f"{path}: {wrong}"
    return ""


def _wrong(parameter: click.Parameter, value: Any) -> str:
    """What is wrong with a value, unless it is a path, a shell variable or a word in capitals that stands for one."""
    if isinstance(parameter.type, (click.Path, click.File)) or (isinstance(parameter, click.Option) and parameter.is_flag):
        return ""
    for one in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(one, str) or "$" in one or one.isupper():
            continue
        try:
            parameter.type.convert(one, parameter, None)
        except click.BadParameter as error:
            return str(error.format_message())
    return ""
