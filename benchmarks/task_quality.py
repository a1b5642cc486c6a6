"""Which made-up task a query is for: the router's fit beside the parts that it is made of, on the same vectors; and what it promises.

Tasks have templates and words of their own for registration and for tests (`made_tasks.py`), so queries are never quite like examples. In
random libraries, on the other hand, queries are drawn as the examples were: there at most the share that was asked for may be lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from benchmarks.made_tasks import MadeTask, made_tasks
from services.router.learning.pool_fit import LOOKED_AT, PoolFit, fit
from smoa.embedding import surface
from smoa.embedding.port import Vector, unit_rows
from smoa.embedding.static import StaticEmbedder
from smoa.embedding.views import Views

EXAMPLES, QUERIES, LOSS = 50, 25, 0.05
LIBRARIES, TASKS = 50, 10
VIEWS: Final = Views(StaticEmbedder())
OUTSIDE: Final = 0.25
"""Share of the tasks that are not registered, whose queries are out of scope; whole families of them."""


class Tasks:
    """Registered tasks, and queries for each."""

    def __init__(self, registered: Sequence[Vector], queries: Sequence[Vector]) -> None:
        self.registered = {str(place): vectors for place, vectors in enumerate(registered)}
        self.queries = np.concatenate(queries)
        self.wanted = np.repeat(np.arange(len(queries)), [len(one) for one in queries])

    def shares(self, scores: Vector) -> dict[str, float]:
        """Right first and among three, by scores [queries, tasks]."""
        order = np.argsort(-scores, 1)[:, :3]
        return {"first": float((order[:, 0] == self.wanted).mean()), "among": float((order == self.wanted[:, None]).any(1).mean())}

    def by_cosine(self, view: slice) -> dict[str, float]:
        """With the mean of the examples, in some of the numbers."""
        centres = unit_rows(np.stack([unit_rows(one[:, view]).mean(0) for one in self.registered.values()]))
        return self.shares(unit_rows(self.queries[:, view]) @ centres.T)

    def by_both(self) -> dict[str, float]:
        """With the mean of the examples in each view, the two added."""
        return self.shares(sum(self._cosines(view) for view in (MEANING, LOOKS)))  # type: ignore[arg-type]

    def _cosines(self, view: slice) -> Vector:
        centres = unit_rows(np.stack([one[:, view].mean(0) for one in self.registered.values()]))
        made: Vector = unit_rows(self.queries[:, view]) @ centres.T
        return made

    def by_fit(self, view: slice) -> dict[str, float]:
        """By the fit of a pool, in some of the numbers."""
        examples = {name: unit_rows(one[:, view]) for name, one in self.registered.items()}
        return self.shares(_odds(_fitted(examples), unit_rows(self.queries[:, view]), examples))


MEANING, LOOKS, BOTH = slice(256), slice(256, 256 + surface.DIMENSION), slice(None)


def _fitted(examples: dict[str, Vector]) -> PoolFit:
    made = fit(examples, LOSS)
    assert made is not None
    return made


def _odds(made: PoolFit, queries: Vector, examples: Mapping[str, Vector]) -> Vector:
    ids, found = list(examples), []
    for query in queries:
        log_odds = made.log_odds(query, ids)
        likeliest = np.argsort(-np.array(log_odds))[:LOOKED_AT].tolist()
        found.append(made.with_nearest(log_odds, {place: float((examples[ids[place]] @ query).max()) for place in likeliest}))
    return np.array(found)


def _unanswered(made: PoolFit, examples: dict[str, Vector], queries: Vector, loss: float | None = None) -> np.ndarray:
    """How close each query is to the likeliest task; or, with a share, which of them are left unanswered."""
    ids = list(examples)
    firsts = [ids[place] for place in _odds(made, queries, examples).argmax(1)]
    close = np.array([made.closeness(query, first, examples[first]) for query, first in zip(queries, firsts, strict=True)])
    return close if loss is None else close < made.threshold


async def _vectors(tasks: Sequence[MadeTask], part: str, count: int) -> list[Vector]:
    return [await VIEWS.embed(task.inputs(part, count)) for task in tasks]


def measure_tasks() -> dict[str, dict[str, float]]:
    """Right first and among three by what decides, over all made-up tasks."""
    every = made_tasks()
    tasks = Tasks(asyncio.run(_vectors(every, "registration", EXAMPLES)), asyncio.run(_vectors(every, "test", QUERIES)))
    return {
        "what it is about, cosine": tasks.by_cosine(MEANING),
        "how it looks, cosine": tasks.by_cosine(LOOKS),
        "both, cosine": tasks.by_both(),
        "what it is about, fitted": tasks.by_fit(MEANING),
        "both, fitted: the router": tasks.by_fit(BOTH),
        "random": {"first": 1 / len(every), "among": 3 / len(every)},
    }


def measure_scope(seed: int = 0) -> dict[str, float]:
    """Out of scope: families that nobody registered, beside those that are."""
    every, rng = made_tasks(), np.random.default_rng(seed)
    families = rng.permutation(sorted({task.family for task in every}))
    outside = set(families[: max(1, round(OUTSIDE * len(families)))])
    inside = [task for task in every if task.family not in outside]
    examples = {str(place): one for place, one in enumerate(asyncio.run(_vectors(inside, "registration", EXAMPLES)))}
    made = _fitted(examples)
    own = _unanswered(made, examples, np.concatenate(asyncio.run(_vectors(inside, "test", QUERIES))))
    like = _unanswered(made, examples, np.concatenate(asyncio.run(_vectors(inside, "registration", EXAMPLES + QUERIES))))
    strange = _unanswered(made, examples, np.concatenate(asyncio.run(_vectors([t for t in every if t.family in outside], "test", QUERIES))))
    return {
        "abstained_at_5_percent_loss": float((strange < np.quantile(own, LOSS)).mean()),
        "as_shipped_abstained": float((strange < made.threshold).mean()),
        "as_shipped_in_scope_lost": float((own < made.threshold).mean()),
        "lost_of_queries_like_the_examples": float((like < made.threshold).mean()),
        "auroc": float((own[:, None] > strange[None]).mean()),
    }


def measure_coverage() -> dict[str, float]:
    """Share of queries that are drawn as the examples were which is lost, over random libraries; `LOSS` was asked for."""
    every, rng, lost = made_tasks(), np.random.default_rng(1), list[float]()
    drawn = asyncio.run(_vectors(every, "registration", 2 * EXAMPLES))
    for _ in range(LIBRARIES):
        chosen = rng.choice(len(every), TASKS, replace=False)
        mixed = [drawn[place][rng.permutation(len(drawn[place]))] for place in chosen]
        examples = {str(place): one[: len(one) // 2] for place, one in enumerate(mixed)}
        made = _fitted(examples)
        lost.append(float(_unanswered(made, examples, np.concatenate([one[len(one) // 2 :] for one in mixed]), LOSS).mean()))
    return {"asked": LOSS, "lost": float(np.mean(lost)), "worst_library": max(lost)}
