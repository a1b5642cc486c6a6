"""What outcomes make of which queries are left unanswered: those in scope, and strangers', before and after a thousand decisions.

Random libraries of ten made-up tasks, whose queries are drawn as their examples were, and other tasks' queries as strangers'; and the
example library, whose queries have other templates and words than its examples, with small talk and jobs that nobody does. Half of the
queries and of the strangers' are asked, again and again, an hour after each hundred; the other half is judged. An adapter that is right
succeeds in 85%.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.example_library import example_library, example_strangers
from benchmarks.machine import machine
from benchmarks.made_tasks import made_tasks
from benchmarks.routed_library import Described, Query, World, build
from benchmarks.router_processes import BASE

TASKS, EXAMPLES, FEWEST, STRANGE_TASKS = 10, 50, 20, 5
DECISIONS, SUCCESS, PER_HOUR = 1_000, 0.85, 100
SHARES: Final = (0.0, 0.2, 0.5)
"""Of strangers among those who ask."""
Library = tuple[list[Described], list[Query], list[Query]]
console = Console(stderr=True)


def random_library(seed: int) -> Library:
    """Adapters, queries and strangers."""
    every, rng = made_tasks(), np.random.default_rng(seed)
    order = rng.permutation(len(every))
    adapters, queries = list[Described](), list[Query]()
    for place in order:
        drawn = rng.permutation(every[place].inputs("registration", 2 * EXAMPLES)).tolist()
        if len(drawn) >= EXAMPLES + FEWEST and len(adapters) < TASKS:
            queries += [Query(text, frozenset([len(adapters)])) for text in drawn[EXAMPLES:]]
            adapters.append(Described(every[place].name, drawn[:EXAMPLES]))
    taken = {one.name for one in adapters}
    strange = [every[place] for place in order if every[place].name not in taken][:STRANGE_TASKS]
    return adapters, queries, [Query(text, frozenset()) for task in strange for text in task.inputs("registration", EXAMPLES)]


async def measure(library: Library, seed: int, strangers: float) -> tuple[dict[str, float], dict[str, float]]:
    """Shares before and after, of the queries that nobody asked before."""
    rng = np.random.default_rng(seed)
    adapters, *kinds = library
    (asked, judged), (strange, judged_strange) = (_halves(rng.permutation(len(ones)), ones) for ones in kinds)
    with tempfile.TemporaryDirectory() as folder:
        world = await build(Path(folder), adapters, seed)
        hours = 0.0
        world.router.judge.clock = lambda: 3600 * hours
        before = await _shares(world, judged, judged_strange)
        for number in range(DECISIONS):
            hours = number // PER_HOUR
            among = strange if rng.random() < strangers else asked
            query = among[rng.integers(len(among))]
            choice = await world.choose(query, "hybrid", threshold=None)
            if choice.chosen and (close := choice.closeness) is not None:
                right = world.place_of[choice.chosen[0].ref.adapter_id] in query.right and rng.random() < SUCCESS
                world.router.judge.thresholds.observe("public", BASE, *close, right=right)
        return before, await _shares(world, judged, judged_strange)


def _halves(order: np.ndarray, ones: Sequence[Query]) -> tuple[list[Query], list[Query]]:
    middle = len(order) // 2
    return [ones[place] for place in order[:middle]], [ones[place] for place in order[middle:]]


async def _shares(world: World, queries: Sequence[Query], strangers: Sequence[Query]) -> dict[str, float]:
    answers = [await world.choose(query, "hybrid", threshold=None) for query in queries]
    likeliest = [await world.places(query, "hybrid") for query in queries]
    right = np.array([places[0] in query.right for places, query in zip(likeliest, queries, strict=True)])
    answered = np.array([len(choice.chosen) > 0 for choice in answers])
    strange = [bool((await world.choose(query, "hybrid", threshold=None)).chosen) for query in strangers]
    return {
        "lost": float(1 - answered.mean()),
        "lost_of_those_right": float(1 - answered[right].mean()),
        "right_and_answered": float((right & answered).mean()),
        "strangers_unanswered": float(1 - np.mean(strange)),
    }


@click.command()
@click.option("--libraries", type=click.IntRange(1), default=50, show_default=True, help="Random libraries.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write every figure here.")
def main(libraries: int, json_path: Path | None) -> None:
    """Measure what is left unanswered, before any outcome and after a thousand decisions."""
    made: dict[str, list[Callable[[], Library]]] = {
        "random libraries": [lambda seed=seed: random_library(seed) for seed in range(libraries)],  # type: ignore[misc]
        "example library": [lambda: (*example_library(), example_strangers())] * max(1, libraries // 10),
    }
    found = {}
    for name, makes in made.items():
        for share in SHARES:
            title = f"{name}, {share:.0%} strangers"
            rows = [asyncio.run(measure(make(), seed, share)) for seed, make in enumerate(track(makes, title, console=console))]
            found[title] = {
                when: {
                    **{key: float(np.mean([row[place][key] for row in rows])) for key in rows[0][place]},
                    "most_lost": max(row[place]["lost_of_those_right"] for row in rows),
                }
                for place, when in enumerate(("before", "after"))
            }
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine(), "libraries": libraries, "found": found}, indent=2))
    columns = ("lost", "lost of right ones", "right and answered", "strangers unanswered", "most lost of right ones")
    for title, rows_of in found.items():
        table = Table("", *columns, title=title)
        for when, row in rows_of.items():
            table.add_row(when, *(f"{share:.1%}" for share in row.values()))
        Console().print(table)


if __name__ == "__main__":
    main()
