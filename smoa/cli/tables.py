"""Tables that never cut what the next command needs, on a narrow terminal and in a log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

PROSE_WIDTH: Final = 16
"""Least width of a column of prose, which folds; other columns are as wide as what is in them."""
_FRAME_WIDTH: Final = 3  # of a column: two blanks and a line


def printable(text: str) -> str:
    """Without what would change the terminal: names and reasons are others'."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)


def say(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Print what others have written; a terminal gets no control characters of it, a file or a program all of it."""
    stream = sys.stderr if err else sys.stdout
    click.echo(printable(text) if stream.isatty() else text, nl=nl, err=err)


def moment(at_us: int) -> str:
    """When something was, here, in a table of what happened lately."""
    return time.strftime("%m-%d %H:%M:%S", time.localtime(at_us / 1e6))


def json_line(message: Message) -> str:
    """A message of the contract as one JSON object."""
    return json.dumps(MessageToDict(message, preserving_proto_field_name=True))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", prose: Collection[str] = ()) -> Table:
    """A table whose columns in `prose` fold where it is narrow, and whose other values stay whole on their line."""
    table = Table(title=title or None, title_justify="left")
    listed = [[printable(cell) for cell in row] for row in rows]
    for number, name in enumerate(columns):
        widest = max(cell_len(name), *(cell_len(row[number]) for row in listed)) if listed else cell_len(name)
        if name in prose:
            table.add_column(name, overflow="fold", min_width=min(widest, PROSE_WIDTH))
        else:
            table.add_column(name, no_wrap=True, min_width=widest)
    for row in listed:
        table.add_row(*(Text(cell) for cell in row))  # a name may hold what would be markup
    return table


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", prose: Collection[str] = ()) -> None:
    """Print a table: as wide as it likes where no terminal shows it, else as the terminal or, if values would be cut, wider."""
    if title:
        click.echo(title)  # on its own: a table's title folds where the table is narrow
    table = make_table(columns, rows, prose=prose)
    console = Console()
    least = sum((column.min_width or 0) + _FRAME_WIDTH for column in table.columns) + 1
    natural = table.__rich_measure__(console, console.options.update(max_width=100_000)).maximum
    Console(width=max(least, console.width) if console.is_terminal else max(least, natural)).print(table)
