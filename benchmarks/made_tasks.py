"""Made-up tasks that are not shaped like the example library: some differ in form and not in topic, some in topic and not in form, some in
language. Each has templates and words of its own for registration, for calibration and for tests: none is in two of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

PARTS: Final = ("registration", "calibration", "test")
_VOWELS, _LEET = str.maketrans("", "", "aeiou"), str.maketrans("aeiost", "431057")
_CHANGES: Final[Mapping[str, Callable[[str], str]]] = {
    "": str,
    "reversed": lambda text: text[::-1],
    "spaced": " ".join,
    "shouted": str.upper,
    "without_vowels": lambda text: text.translate(_VOWELS),
    "leet": lambda text: text.translate(_LEET),
    "sorted": lambda text: " ".join("".join(sorted(word)) for word in text.split()),
    "hyphenated": "-".join,
}
_NUMBERS: Final = {
    "small": (1, 30),
    "number": (2, 999),
    "large": (1_000, 99_999),
    "day": (1, 29),
    "month_number": (1, 12),
    "year": (1951, 2049),
}


@dataclass(frozen=True)
class MadeTask:
    """Templates whose {slots} are filled with words; texts that say nothing of the task may stand around them."""

    name: str
    family: str
    templates: Sequence[str]
    slots: Mapping[str, Sequence[str]]
    before: Sequence[str]
    after: Sequence[str]
    change: Callable[[str], str]

    def inputs(self, part: str, count: int, seed: int = 0) -> list[str]:
        """Distinct inputs of one of the `PARTS`; fewer, where there are no more."""
        place = PARTS.index(part)
        rng = Random(f"{self.name} {part} {seed}")
        slots = _Slots(rng, place, self.slots)
        before, templates, after = (["", *self.before[place::3]], self.templates[place::3], ["", *self.after[place::3]])
        found: dict[str, None] = {}
        for _ in range(60 * count):
            made = " ".join(filter(None, (rng.choice(before), rng.choice(templates), rng.choice(after))))
            found[self.change(made.format_map(slots))] = None
            if len(found) == count:
                break
        return list(found)


class _Slots(dict[str, object]):
    """Words of one part: every third of a list; and numbers, by their remainder."""

    def __init__(self, rng: Random, place: int, words: Mapping[str, Sequence[str]]) -> None:
        self._rng, self._place, self._words = rng, place, words

    def __missing__(self, key: str) -> object:
        kind = key.rstrip("0123456789")
        if kind == "digit":
            return self._rng.randrange(10)
        if kind in _NUMBERS:
            low, high = _NUMBERS[kind]
            first = low + (self._place - low) % 3
            return self._rng.randrange(first, high + 1, 3)
        return self._rng.choice(self._words[kind][self._place :: 3])


def made_tasks() -> list[MadeTask]:
    """All of them, by family."""
    read = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    words: dict[str, list[str]] = read["words"]
    return [
        MadeTask(
            one["name"],
            one["family"],
            one["templates"],
            {slot: words[name] for slot, name in one.get("slots", {}).items()},
            words.get(one.get("before", ""), []),
            words.get(one.get("after", ""), []),
            _CHANGES[one.get("change", "")],
        )
        for one in read["tasks"]
    ]
