"""Example inputs of an adapter: read from a file that its owner has anyway, mostly what it was trained on."""

from __future__ import annotations

import json
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import Any, Final

from smoa.errors import InvalidArgument
from smoa.limits import MAX_EXAMPLE_CHARACTERS, MAX_EXAMPLES

SHAPES: Final = '{"input"}, {"instruction"}, {"prompt"}, {"question"}, {"messages"} or {"text"}'
_KEYS: Final = ("input", "prompt", "question", "query", "messages", "conversations", "text")
"""Where a line's input is looked for, the first that there is."""
_NAMES: Final = ("examples.jsonl", "examples.txt")


def read_examples(path: Path) -> list[str]:
    """Example inputs of a file, at most 50 distinct ones, spread over it: the first user input of each line of a JSONL, or each line of
    any other file.

    Raises:
        InvalidArgument: naming the line that holds no input.
    """
    data = path.read_bytes()
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or b"\0" in data:
        raise InvalidArgument("examples", f"{path} is UTF-16 text, or none at all", "save it as UTF-8")
    try:
        lines = data.decode("utf-8-sig").split("\n")  # not splitlines: JSON may hold other line separators
    except UnicodeDecodeError as error:
        raise InvalidArgument("examples", f"{path} is not UTF-8 text ({error.reason})", "save it as UTF-8") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    inputs = [_input_of(line, f"{path}:{number}") if path.suffix == ".jsonl" else line for number, line in numbered]
    distinct = list(dict.fromkeys(text for text in inputs if len(text) <= MAX_EXAMPLE_CHARACTERS))
    if len(distinct) <= MAX_EXAMPLES:
        return distinct
    return [distinct[place * len(distinct) // MAX_EXAMPLES] for place in range(MAX_EXAMPLES)]


def examples_file(folder: Path) -> Path | None:
    """The file of a folder that holds example inputs: `examples.jsonl`, `examples.txt`, else a JSONL with `train` in its name, else any."""
    named = [folder / name for name in _NAMES if (folder / name).is_file()]
    return next(iter([*named, *sorted(folder.glob("*.jsonl"), key=lambda path: ("train" not in path.name, path.name))]), None)


def _input_of(line: str, place: str) -> str:
    try:
        fields = json.loads(line)
        text = _first_input(fields)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidArgument("examples", f"{place} is not an object with an input ({error})", f"give lines of {SHAPES}") from error
    if not text:
        raise InvalidArgument("examples", f"{place} has no input", f"give lines of {SHAPES}")
    return text


def _first_input(fields: dict[str, Any]) -> str:
    if isinstance(instruction := fields.get("instruction"), str):  # its input, if there is any, is what the instruction is about
        return "\n".join(part for part in (instruction.strip(), str(fields.get("input") or "").strip()) if part)
    value = next((fields[key] for key in _KEYS if fields.get(key)), "")
    if isinstance(value, str):
        return value.strip()
    return next((_text_of(turn) for turn in value if turn.get("role", turn.get("from")) in ("user", "human")), "")


def _text_of(turn: dict[str, Any]) -> str:
    """What a turn of a conversation says: its text, or its parts' texts."""
    content = turn.get("content", turn.get("value", ""))
    return (content if isinstance(content, str) else "\n".join(part["text"] for part in content if part.get("type") == "text")).strip()
