"""The page of commands, from click."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click

from docs.generate.markdown import NOTE, ROOT, table


def command_tree() -> click.Group:
    """The whole command line, with the commands that services bring (they are imported only when they are used otherwise)."""
    from smoa.cli.main import cli

    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["smoa.commands"]
    for path, target in points.items():
        group: click.Command = cli
        *parents, name = path.split(".")
        for parent in parents:
            assert isinstance(group, click.Group)
            group = group.commands[parent]
        module, _, attribute = target.partition(":")
        assert isinstance(group, click.Group)
        group.add_command(getattr(importlib.import_module(module), attribute), name)
    return cli


def commands_of(command: click.Command, path: tuple[str, ...] = ("smoa",)) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command under `command`, with the words that call it, groups before their commands."""
    yield path, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            if not command.commands[name].hidden:
                yield from commands_of(command.commands[name], (*path, name))


def commands_page() -> str:
    """Every command with its arguments and options."""
    parts = [
        NOTE,
        "# Commands",
        "Each command prints this with `--help`. Exit codes: 0 done; 1 an error, said in one sentence; 2 a wrong argument; 130 Ctrl-C.\n",
    ]
    for path, command in commands_of(command_tree()):
        parts.append(f"{'##' if len(path) < 3 else '###'} `{' '.join(path)}`\n")
        parts.append(_help(command.help or ""))
        if not isinstance(command, click.Group):
            context = click.Context(command, info_name=" ".join(path))
            parts.append(f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n")
            options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
            if options:
                parts.append(table(("option", "default", "meaning"), (_option_row(one) for one in options)))
    return "\n".join(parts)


def _help(text: str) -> str:
    r"""Markdown of click's help: paragraphs that begin with \b keep their lines."""
    paragraphs = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            paragraphs.append("```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```")
        else:
            paragraphs.append(re.sub(r"(?<![\w`])(\{[^{}]*\})", r"`\1`", " ".join(paragraph.split())))
    return "\n\n".join(paragraphs) + "\n"


def _option_row(option: click.Option) -> tuple[str, str, str]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if isinstance(option.type, click.Choice):
        names += f" ({', '.join(map(str, option.type.choices))})"
    elif not option.is_flag:
        names += f" {option.make_metavar(click.Context(click.Command('smoa')))}"
    default = option.default
    shown = ""
    if option.required:
        shown = "required"
    elif isinstance(default, (str, int, float, Path, list, tuple)) and not option.is_flag and default not in ("", ()):
        shown = f"`{', '.join(map(str, default)) if isinstance(default, (list, tuple)) else default}`"
    variables = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
    meaning = option.help or ""
    for variable in variables:
        if variable not in meaning:
            meaning += f" [{variable}]"
    return names, shown, meaning
