"""Conversations: routed by what they are about, beside their last line alone and beside vectors blended over turns.

Conversations of 4 to 8 turns over the example library's jobs, or over made-up tasks: of one topic, of two of which one follows the other,
and of two in turn. A topic begins with a test query of its job; what follows are lines that say nothing of any topic, and now and then
another query of it. Lines and queries by which the filter's three numbers were chosen are not among those that are measured.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.example_library import example_library
from benchmarks.machine import machine
from benchmarks.made_tasks import made_tasks
from benchmarks.out_of_scope import SMALL_TALK
from benchmarks.routed_library import Described, World, build
from benchmarks.router_processes import BASE
from services.router.learning.habits import hash_of_user
from services.router.routing.query import RouteQuery
from smoa.embedding.port import unit_rows

FOLLOW_UPS: Final = tuple(
    line.strip()
    for line in """
and the second one?
do the next one as well
same again please
what about this one
and for the other one?
one more of those
shorter please
are you sure?
try once more
can you do it again
ok and then?
the last one was wrong
now the same for the rest
why that one?
here is another
and what would it be otherwise
yes, that one
no, I meant the first
please check it once more
what else could it be
next
and if it were the other way round?
go on
is that really right?
make it clearer
could you repeat that
another one like it
hm, not quite
the same as before
what did you say?
I need it for one more
and that?
again, but better
which of the two?
let us do three more
sorry, once again
    """.strip().splitlines()
)
SPECIFIC: Final = tuple(
    line.strip()
    for line in """
and what about tuesday?
for my sister as well
make it half an hour later
what if there are seven of them
in green, please
does it hold for children too?
the one from last week
and on the left side
what would my boss say to it
only the part after the comma
use a bigger number
and without the second word
for the office in the north
could it be because of the weather?
what changes if I wait until may
my neighbour has it too
and with a capital letter
how about the twelve others
the long one with the dash
not today, maybe tomorrow
what if she says no
put the number at the end
the same, but from berlin
and at night?
    """.strip().splitlines()
)
"""Lines with words of their own, that say nothing of any topic either."""


def follow_ups(part: int) -> dict[str, Sequence[str]]:
    """One half of the lines, by kind."""
    return {"follow-up": FOLLOW_UPS[part::2], "follow-up with words": SPECIFIC[part::2]}


KINDS: Final = ("one topic", "a topic change", "two in turn")
WAYS: Final = ("with a session", "with its turns", "blended vectors", "the last line alone")
USERS: Final = 40
DECAY: Final = 0.5
"""Of blended vectors: what a turn leaves of the weight of those before it."""
console = Console(stderr=True)


@dataclass(frozen=True)
class Turn:
    """A line, the place of the right adapter (-1 for none), and what part it plays."""

    text: str
    right: int
    part: str


def conversation(kind: str, queries: Sequence[Sequence[str]], lines: Mapping[str, Sequence[str]], rng: np.random.Generator) -> list[Turn]:
    """4 to 8 turns of a kind; `queries` by topic, `lines` by kind."""
    topics = rng.choice(len(queries), 1 if kind == KINDS[0] else 2, replace=False)
    length = int(rng.integers(4, 9))
    starts = {0, int(rng.integers(2, length - 1))} if kind == KINDS[1] else {0}
    turns: list[Turn] = []
    place = -1
    for number in range(length):
        begins = number in starts or (kind == KINDS[2] and number % 2 == 0)
        if begins:
            place += 1
        topic = int(topics[place % len(topics)])
        if begins or rng.random() < 0.2:
            part = "first" if number == 0 else "topic change" if begins else "same topic"
            turns.append(Turn(str(rng.choice(queries[topic])), topic, part))
        else:
            part = str(rng.choice(list(lines)))
            turns.append(Turn(str(rng.choice(lines[part])), topic, part))
    if rng.random() < 0.2:
        turns.append(Turn(str(rng.choice(SMALL_TALK)), -1, "small talk"))
    return turns


async def measure(world: World, conversations: Sequence[Sequence[Turn]], way: str) -> dict[str, float]:
    """Right first by the part that a turn plays; of small talk, left unanswered."""
    found: dict[str, list[bool]] = {}
    for number, turns in enumerate(conversations):
        blended = np.zeros(world.embedder.dimension, np.float32)
        for place, turn in enumerate(turns):
            query = RouteQuery(query=turn.text, base_model=BASE)
            if way == WAYS[0]:
                query = query._replace(session=f"{number}")
            elif way == WAYS[1]:
                query = query._replace(turns=tuple(one.text for one in turns[max(0, place - 8) : place]))
            elif way == WAYS[2]:
                blended = DECAY * blended + (await world.embedder.embed([turn.text]))[0]
                query = query._replace(vector=unit_rows(blended[None])[0].tobytes())
            chosen = (await world.router.route(query)).choice.chosen
            first = world.place_of[chosen[0].ref.adapter_id] if chosen else -1
            found.setdefault(turn.part, []).append(first == turn.right)
    return {part: float(np.mean(right)) for part, right in found.items()}


def made_library(part: str) -> tuple[list[Described], list[list[str]]]:
    """Sixteen made-up tasks, two of each family, and queries of one part."""
    tasks = made_tasks()[::5][:16]
    return [Described(task.name, task.inputs("registration", 50)) for task in tasks], [task.inputs(part, 40) for task in tasks]


def measured_library() -> tuple[list[Described], list[list[str]]]:
    """The example library, and its test queries."""
    adapters, queries = example_library()
    return adapters, [[query.text for query in queries if place in query.right] for place in range(len(adapters))]


async def compare(
    adapters: Sequence[Described], queries: Sequence[Sequence[str]], lines: Mapping[str, Sequence[str]], count: int, ways: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The same conversations, `count` of each kind, each way."""
    rng = np.random.default_rng(0)
    conversations = [conversation(kind, queries, lines, rng) for kind in KINDS for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for way in track(ways, "conversations", console=console):
            world = await build(Path(folder) / way, adapters)
            results[way] = await measure(world, conversations, way)
            await world.router.close()
        return results


async def measure_users(seed: int) -> dict[str, float]:
    """The learned strategy over made-up tasks, for users who have three of them each: right first in the last third of true outcomes."""
    adapters, queries = made_library("test")
    found = {}
    for way in ("without the user", "with the user"):
        rng = np.random.default_rng(seed)
        tasks = [rng.choice(len(adapters), 3, replace=False) for _ in range(USERS)]
        right = []
        with tempfile.TemporaryDirectory() as folder:
            world = await build(Path(folder), adapters, seed)
            for _ in range(USERS * 30):
                user = int(rng.integers(USERS))
                task = int(rng.choice(tasks[user]))
                who = hash_of_user("public", str(user)) if way == "with the user" else b""
                query = RouteQuery(query=str(rng.choice(queries[task])), base_model=BASE, strategy="learned", score_threshold=-1, user=who)
                choice = (await world.router.route(query)).choice
                first = choice.ranked[0].adapter_id
                right.append(world.place_of[first] == task)
                world.turned_out(choice, right[-1], who)
            await world.router.close()
        found[way] = float(np.mean(right[-len(right) // 3 :]))
    return found


@click.command()
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write every figure here.")
@click.option("--count", default=200, show_default=True, help="Conversations of each kind.")
def main(json_path: Path | None, count: int) -> None:
    """Measure conversations over the example library, and over made-up tasks."""
    results = {
        "example library (16)": asyncio.run(compare(*measured_library(), follow_ups(1), count, WAYS)),
        "made-up tasks (16)": asyncio.run(compare(*made_library("test"), follow_ups(1), count, WAYS)),
    }
    users = [asyncio.run(measure_users(seed)) for seed in track(range(3), "users", console=console)]
    habits = {name: float(np.mean([one[name] for one in users])) for name in users[0]}
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine(), "count": count, "right first": results, "users": habits}, indent=2))
    out = Console()
    for name, rows in results.items():
        parts = list(rows[WAYS[0]])
        table = Table("right first", *parts, title=name)
        for way, row in rows.items():
            table.add_row(way, *(f"{row[part]:.3f}" for part in parts))
        out.print(table)
    out.print("users, learned strategy, right first: " + ", ".join(f"{name} {value:.3f}" for name, value in habits.items()))


if __name__ == "__main__":
    main()
