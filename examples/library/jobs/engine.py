"""The job model and the one template engine all the jobs of the library share.

A job is a table of templates by label, with `{slot}` holes filled from a vocabulary. The training and the test
halves of a table share neither templates nor slot values. A `~` in a template stands for one random digit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]

_HOLE = re.compile(r"\{([a-z_]+)\}")
_ATTEMPTS = 500


@dataclass(frozen=True)
class Example:
    """One text and the exact answer wanted for it."""

    input: str
    output: str


@dataclass(frozen=True)
class Job:
    """One narrow task an adapter learns, with its data generator."""

    name: str
    domain: str
    specialization: str
    tags: tuple[str, ...]
    description: str
    labels: tuple[str, ...]
    generate: Callable[[Split, int, int], list[Example]]
    templates: Callable[[Split], frozenset[str]]
    vocabulary: Callable[[Split], frozenset[str]]


@dataclass(frozen=True)
class Half:
    """One split of a table: slot values by slot name, and templates by label."""

    slots: Mapping[str, tuple[str, ...]]
    templates: Mapping[str, tuple[str, ...]]


def half(slots: Mapping[str, str], templates: Mapping[str, str]) -> Half:
    """Parse a half: slot values are separated by ` | `, templates stand one a line."""
    return Half(
        slots={name: tuple(value.strip() for value in values.split(" | ")) for name, values in slots.items()},
        templates={label: tuple(line.strip() for line in text.strip().splitlines() if line.strip()) for label, text in templates.items()},
    )


@dataclass(frozen=True)
class ByLabel:
    """A job's data as templates by label; `repeat` fillings of a template are joined by ` ; `."""

    train: Half
    test: Half
    repeat: int = 1

    def half(self, split: Split) -> Half:
        """The table's half for a split."""
        return self.train if split == "train" else self.test

    def labels(self) -> tuple[str, ...]:
        """The labels, in the order they are declared."""
        return tuple(self.train.templates)

    def templates(self, split: Split) -> frozenset[str]:
        """All the templates of a split."""
        return frozenset(template for group in self.half(split).templates.values() for template in group)

    def vocabulary(self, split: Split) -> frozenset[str]:
        """All the slot values of a split."""
        return frozenset(value for values in self.half(split).slots.values() for value in values)

    def fill(self, template: str, split: Split, rng: random.Random) -> str:
        """Fill the holes of a template, as many times as the table repeats it."""
        slots = self.half(split).slots

        def once() -> str:
            values = {name: rng.choice(slots[name]) for name in dict.fromkeys(_HOLE.findall(template))}
            text = _HOLE.sub(lambda hole: values[hole.group(1)], template)
            return re.sub("~", lambda _: str(rng.randrange(10)), text)

        parts: list[str] = []
        for _ in range(_ATTEMPTS):
            part = once()
            if part not in parts:
                parts.append(part)
            if len(parts) == self.repeat:
                break
        return " ; ".join(parts)

    def generate(self, split: Split, count: int, seed: int) -> list[Example]:
        """Draw `count` examples, balanced over labels and templates, distinct while the grammar allows it."""
        rng = random.Random(f"{split}/{seed}")
        labels = self.labels()
        orders = {label: rng.sample(group, len(group)) for label, group in self.half(split).templates.items()}
        turns = dict.fromkeys(labels, 0)
        seen: set[str] = set()
        examples: list[Example] = []
        for index in range(count):
            label = labels[index % len(labels)]
            text = ""
            for _ in range(_ATTEMPTS):
                order = orders[label]
                text = self.fill(order[turns[label] % len(order)], split, rng)
                turns[label] += 1
                if text not in seen:
                    break
            seen.add(text)
            examples.append(Example(text, label))
        rng.shuffle(examples)
        return examples


def make_job(name: str, domain: str, specialization: str, tags: tuple[str, ...], description: str, table: ByLabel) -> Job:
    """Make a job from its table."""
    return Job(
        name=name,
        domain=domain,
        specialization=specialization,
        tags=tags,
        description=description,
        labels=table.labels(),
        generate=table.generate,
        templates=table.templates,
        vocabulary=table.vocabulary,
    )
