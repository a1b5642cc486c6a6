"""The learned strategy beside hybrid on made-up tasks, as true outcomes come in: on queries that it has been asked, and on others.

Ten tasks, an adapter each. Queries are drawn from those of the first kind, again and again; an outcome says whether the first adapter was
the right one. The control's outcomes are drawn at random.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.made_tasks import made_tasks
from benchmarks.routed_library import Described, Query, World, build

TASKS, EXAMPLES, ASKED, FRESH = 10, 50, 25, 50
OUTCOMES: Final = (0, 300, 600, 1200)


async def measure_task_learning(seed: int) -> list[dict[str, float]]:
    """Right first, after so many outcomes, in rows of which the first is before any."""
    rng = np.random.default_rng(seed)
    tasks = [made_tasks()[place] for place in rng.choice(len(made_tasks()), TASKS, replace=False)]
    adapters = [Described(task.name, task.inputs("registration", EXAMPLES)) for task in tasks]
    queries = [
        [Query(text, frozenset([place])) for text in rng.permutation(task.inputs("test", ASKED + FRESH)).tolist()]
        for place, task in enumerate(tasks)
    ]
    asked = [query for own in queries for query in own[:ASKED]]
    fresh = [query for own in queries for query in own[ASKED:]]
    rows = [{"outcomes": float(done)} for done in OUTCOMES]
    for name, truth in (("learned", True), ("control", False)):
        with tempfile.TemporaryDirectory() as folder:
            world = await build(Path(folder), adapters, seed)
            for number in range(OUTCOMES[-1] + 1):
                if number in OUTCOMES:
                    row = rows[OUTCOMES.index(number)]
                    for kind, ones in (("asked", asked), ("fresh", fresh)):
                        row[f"{name}_{kind}"] = await _right_first(world, ones, "learned")
                        if truth:
                            row[f"hybrid_{kind}"] = await _right_first(world, ones, "hybrid")
                query = asked[rng.integers(len(asked))]
                choice = await world.choose(query, "learned", top_k=1)
                right = world.place_of[choice.ranked[0].adapter_id] in query.right
                world.turned_out(choice, right if truth else bool(rng.random() < 0.5))
    return rows


async def _right_first(world: World, queries: list[Query], strategy: str) -> float:
    places = [(await world.places(query, strategy))[0] for query in queries]
    return float(np.mean([place in query.right for place, query in zip(places, queries, strict=True)]))
