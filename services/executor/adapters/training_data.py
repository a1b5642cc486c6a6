"""Pairs to train on, read from a JSONL in any of the usual shapes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smoa.errors import InvalidArgument

MIN_PAIRS: Final = 10
_MIN_HELD_OUT, _MAX_HELD_OUT = 8, 64
_SHAPES: Final = '{"input", "output"}, {"prompt", "completion"}, {"instruction", "input", "output"} or {"messages"}'


@dataclass(frozen=True)
class Pair:
    """One training example."""

    input: str
    output: str


def read_pairs(path: Path) -> list[Pair]:
    """The training examples of a JSONL file; empty lines are passed over.

    A line is {"input", "output"}, {"prompt", "completion"}, {"instruction", "input", "output"} or {"messages": [user, assistant]}.

    Raises:
        InvalidArgument: a line of another shape (named by its number), or fewer than 10 examples.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON may hold other line separators
    except UnicodeDecodeError as error:
        raise InvalidArgument("data", f"{path} is not UTF-8 text ({error.reason})", "save it as UTF-8") from error
    pairs: list[Pair] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pairs.append(_pair_of(json.loads(line)))
        except ValueError as error:
            problem = f"line {number} of {path} is no training example ({error})"
            raise InvalidArgument("data", problem, f"give lines of {_SHAPES}") from error
    if len(pairs) < MIN_PAIRS:
        raise InvalidArgument("data", f"{path} has {len(pairs)} examples", f"give at least {MIN_PAIRS}")
    return pairs


def _pair_of(fields: object) -> Pair:
    """The pair of a line. Raises ValueError, which says what is wrong with it."""
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    if "messages" in fields:
        return _pair_of_turns(fields["messages"])
    if "prompt" in fields or "completion" in fields:
        return Pair(_text(fields, "prompt"), _text(fields, "completion"))
    if "instruction" in fields:
        asked = (_text(fields, "instruction"), _text(fields, "input") if fields.get("input") else "")
        return Pair("\n".join(part for part in asked if part), _text(fields, "output"))
    return Pair(_text(fields, "input"), _text(fields, "output"))


def _pair_of_turns(turns: object) -> Pair:
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns] if isinstance(turns, list) else None
    if roles != ["user", "assistant"]:
        said = ", ".join(map(str, roles)) if roles else "none"
        raise ValueError(f"its messages must be one user turn and one assistant turn, and are {said}")
    assert isinstance(turns, list)
    return Pair(_text(turns[0], "content"), _text(turns[1], "content"))


def _text(fields: dict[str, object], key: str) -> str:
    if key not in fields:
        raise ValueError(f"it has no {key!r}")
    value = fields[key]
    if isinstance(value, str | int | float):  # a label may be a number
        return str(value)
    raise ValueError(f"its {key!r} is not text")


def split_held_out(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, and pairs held out to tell when to stop: a tenth, but 8 to 64 of them, and never over a fifth."""
    shuffled = list(pairs)
    random.Random(seed).shuffle(shuffled)
    tenth = min(max(round(len(shuffled) / 10), _MIN_HELD_OUT), _MAX_HELD_OUT)
    count = max(1, min(tenth, len(shuffled) // 5))
    return shuffled[count:], shuffled[:count]
