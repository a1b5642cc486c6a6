"""How good the choices are: every strategy on the example library and on generated ones, abstention, and learning from outcomes.

Everything is decided by the router's own code over its own index, in this process. Right is the adapter of the query's job; where several
adapters do one job, it is the one that succeeds most often. Controls: a random adapter, and the right one always (oracle).
"""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.example_library import example_library, example_strangers
from benchmarks.machine import machine
from benchmarks.out_of_scope import SMALL_TALK
from benchmarks.routed_library import Described, Query, World, build
from benchmarks.task_learning import measure_task_learning
from benchmarks.task_quality import measure_coverage, measure_scope, measure_tasks
from examples.generated import Ids, generate
from services.router.learning.ranker import Numbers, Ranker, builtin
from services.router.learning.ranker_training import Logged, beats_hybrid, train
from smoa.errors import FailedPrecondition

STRATEGIES = ("semantic", "task", "hybrid", "hierarchical", "mixture", "learned")
OUTCOMES, STEP, SEEDS, TASK_SEEDS = 2000, 250, 3, 5
console = Console(stderr=True)


def generated(kind: str, count: int, queries: int, seed: int = 0) -> tuple[list[Described], list[Query], Ids]:
    """A made-up library: (adapters, queries, the job of each adapter).

    overlapping: three adapters a job, and queries in the job's words alone. neighbours: each job has hundreds of adapters, one a customer.
    noisy: as neighbours with a few adapters a job, but a third of the examples are other adapters'.
    """
    jobs = {"overlapping": count // 3, "neighbours": max(1, count // 300), "noisy": count // 5}[kind]
    library, _ = generate(count, seed, jobs=jobs, customers=3 * count)
    rng, everyone = np.random.default_rng(seed + 1), np.arange(count)
    own = library.sentences(everyone, seed + 2, 12, customer_words=kind != "overlapping")
    if kind == "noisy":
        own[:, :4] = own[rng.permutation(count)][:, 4:8]
    adapters = [
        Described(f"job-{library.jobs[place]}", [" ".join(library.words[words]) for words in own[place]], (f"job-{library.jobs[place]}",))
        for place in everyone
    ]
    asked = rng.integers(0, count, queries)
    words = library.sentences(asked, seed + 3, 1, customer_words=kind != "overlapping")[:, 0]
    made = [
        Query(" ".join(library.words[line]), frozenset([int(place)]), f"job-{library.jobs[place]}")
        for place, line in zip(asked, words, strict=True)
    ]
    return adapters, made, library.jobs


async def top_accuracy(world: World, queries: Sequence[Query], strategy: str) -> tuple[float, float]:
    """Share of the queries with a right adapter first, and among three."""
    found = [await world.places(query, strategy) for query in queries]
    first = np.mean([bool(places) and places[0] in query.right for places, query in zip(found, queries, strict=True)])
    among = np.mean([bool(query.right & set(places[:3])) for places, query in zip(found, queries, strict=True)])
    return float(first), float(among)


async def measure_strategies() -> dict[str, dict[str, dict[str, float]]]:
    """Top-1 and top-3 by library and strategy."""
    libraries: dict[str, Callable[[], tuple[list[Described], list[Query]]]] = {
        "example library (16)": example_library,
        "near neighbours (1200, 4 jobs)": lambda: generated("neighbours", 1200, 400)[:2],
        "noisy examples (500)": lambda: generated("noisy", 500, 400)[:2],
    }
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, make in libraries.items():
        adapters, queries = make()
        with tempfile.TemporaryDirectory() as folder:
            world = await build(Path(folder), adapters)
            rows = {}
            for strategy in track([*STRATEGIES, "hybrid+tag"], name, console=console):
                first, among = await top_accuracy(world, queries, strategy)
                rows[strategy] = {"top_1": first, "top_3": among}
            rows["random"] = {"top_1": 1 / len(adapters), "top_3": 3 / len(adapters)}
            results[name] = rows
    return results


async def measure_abstention() -> dict[str, float]:
    """In scope against out of scope on the example library.

    The threshold at which 5% of the in-scope queries are lost; cross-fitted: read off one half of them, judged on the other.
    """
    adapters, queries = example_library()
    outside = example_strangers()
    with tempfile.TemporaryDirectory() as folder:
        world = await build(Path(folder), adapters)
        inside = [(await world.choose(query, "hybrid"), query) for query in queries]
        confident = np.array([choice.confidence or 0.0 for choice, _ in inside])
        correct = np.array([world.place_of[choice.chosen[0].ref.adapter_id] in query.right for choice, query in inside])
        strange = np.array([(await world.choose(query, "hybrid")).confidence or 0.0 for query in outside])
        shipped = [await world.choose(query, "hybrid", threshold=None) for query in outside]
        kept = [await world.choose(query, "hybrid", threshold=None) for query in queries]
    threshold = np.quantile(confident, 0.05)
    half = np.arange(len(confident)) % 2 == 0
    crossed = [(np.quantile(confident[part], 0.05), confident[~part]) for part in (half, ~half)]
    best_first = np.argsort(-confident)
    risks = 1 - np.cumsum(correct[best_first]) / np.arange(1, len(correct) + 1)
    return {
        "out_of_scope_queries": len(outside),
        "abstained_at_5_percent_loss": float((strange < threshold).mean()),
        "small_talk_abstained": float((strange[: len(SMALL_TALK)] < threshold).mean()),
        "unserved_jobs_abstained": float((strange[len(SMALL_TALK) :] < threshold).mean()),
        "cross_fitted_abstained": float(np.mean([(strange < one).mean() for one, _ in crossed])),
        "cross_fitted_in_scope_lost": float(np.mean([(other < one).mean() for one, other in crossed])),
        "as_shipped_abstained": float(np.mean([not choice.chosen for choice in shipped])),
        "as_shipped_in_scope_lost": float(np.mean([not choice.chosen for choice in kept])),
        "auroc": float((confident[:, None] > strange[None]).mean()),
        "risk_at_full_coverage": float(risks[-1]),
        "risk_at_95_percent": float(risks[int(0.95 * len(risks)) - 1]),
        "risk_at_80_percent": float(risks[int(0.8 * len(risks)) - 1]),
        "risk_at_50_percent": float(risks[len(risks) // 2 - 1]),
        "calibration_error": _calibration_error(np.concatenate([confident, strange]), len(confident)),
    }


def _calibration_error(values: Numbers, inside: int, bins: int = 10) -> float:
    """Expected calibration error of "in scope", where as many are out of scope as in scope: each kind weighs one half."""
    truth = np.arange(len(values)) < inside
    weight = np.where(truth, 0.5 / inside, 0.5 / (len(values) - inside))
    place = np.minimum((values * bins).astype(int), bins - 1)
    error = 0.0
    for one in range(bins):
        here = place == one
        if (mass := weight[here].sum()) > 0:
            error += abs((weight[here] * truth[here]).sum() - (weight[here] * values[here]).sum()) if mass else 0.0
    return float(error)


@dataclass(frozen=True)
class Quality:
    """How often each adapter succeeds at its own job; at others it hardly does."""

    jobs: Ids
    success: Numbers

    def chance(self, place: int, job: int) -> float:
        """Probability of success."""
        return float(self.success[place]) if self.jobs[place] == job else 0.05

    def best(self, job: int) -> int:
        """The adapter to choose."""
        own = np.flatnonzero(self.jobs == job)
        return int(own[self.success[own].argmax()])

    def flipped(self) -> Quality:
        """Of each job, the best becomes the worst and the other way round."""
        success = self.success.copy()
        for job in np.unique(self.jobs):
            own = np.flatnonzero(self.jobs == job)
            order = own[np.argsort(success[own])]
            success[order] = success[order[::-1]]
        return Quality(self.jobs, success)


async def measure_learning(seed: int) -> list[dict[str, float]]:
    """Learned beside hybrid as outcomes come in, on overlapping jobs; after `OUTCOMES` of them, the good and the bad change places."""
    adapters, queries, jobs = generated("overlapping", 120, 2 * OUTCOMES + 400, seed)
    rng = np.random.default_rng(seed)
    success = np.empty(len(adapters))
    for job in np.unique(jobs):
        own = np.flatnonzero(jobs == job)
        success[own] = rng.permutation(np.linspace(0.9, 0.3, max(len(own), 2))[: len(own)])
    quality = Quality(jobs, success)
    job_of = [int(jobs[next(iter(query.right))]) for query in queries]
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        world = await build(Path(folder), adapters, seed)
        held_out = range(2 * OUTCOMES, len(queries))
        hybrid_first = {place: (await world.places(queries[place], "hybrid"))[0] for place in held_out}
        log: list[Logged] = []

        async def check(done: int) -> None:
            wanted = {place: quality.best(job_of[place]) for place in held_out}
            learned = [(await world.places(queries[place], "learned"))[0] for place in held_out]
            rows.append(
                {
                    "outcomes": done,
                    "learned_top_1": float(np.mean([first == wanted[place] for first, place in zip(learned, held_out, strict=True)])),
                    "hybrid_top_1": float(np.mean([first == wanted[place] for place, first in hybrid_first.items()])),
                    "learned_success": float(
                        np.mean([quality.chance(first, job_of[place]) for first, place in zip(learned, held_out, strict=True)])
                    ),
                    "hybrid_success": float(np.mean([quality.chance(first, job_of[place]) for place, first in hybrid_first.items()])),
                    "best_success": float(np.mean([quality.chance(place_, job_of[place]) for place, place_ in wanted.items()])),
                    "trained": float(world.router.learned.ranker.version != builtin().version),
                }
            )

        await check(0)
        for number in range(2 * OUTCOMES):
            if number == OUTCOMES:
                quality = quality.flipped()
            choice = await world.choose(queries[number], "learned", top_k=1)
            succeeded = bool(rng.random() < quality.chance(world.place_of[choice.ranked[0].adapter_id], job_of[number]))
            world.turned_out(choice, succeeded)
            features = np.array([one.features for one in choice.ranked])
            log.append(Logged(features, np.array(choice.propensities), float(succeeded), number))
            if (number + 1) % STEP == 0:
                world.router.learned.ranker = _trained(log[-OUTCOMES:], world.router.learned.ranker)
                await check(number + 1)
    return rows


def _trained(log: Sequence[Logged], current: Ranker) -> Ranker:
    """What `smoa router train` would have published."""
    try:
        made = train(log)
    except FailedPrecondition:
        return current
    return made if beats_hybrid(made) else current


def verdict(curves: Sequence[Sequence[dict[str, float]]]) -> dict[str, float]:
    """What the curves show: medians of the seeds, the worst of them where nothing may go wrong."""
    before = [[row for row in rows if row["outcomes"] <= OUTCOMES] for rows in curves]
    last = [rows[-1] for rows in before]
    removed = [(row["learned_top_1"] - row["hybrid_top_1"]) / (1 - row["hybrid_top_1"]) for row in last]
    recovered = [
        next(
            (row["outcomes"] - OUTCOMES for row in rows if row["outcomes"] > OUTCOMES and row["learned_top_1"] > row["hybrid_top_1"]),
            math.inf,
        )
        for rows in curves
    ]
    end = [(rows[-1]["learned_top_1"] - rows[-1]["hybrid_top_1"]) / (1 - rows[-1]["hybrid_top_1"]) for rows in curves]
    return {
        "hybrid_top_1": float(np.median([row["hybrid_top_1"] for row in last])),
        "learned_top_1": float(np.median([row["learned_top_1"] for row in last])),
        "error_removed": float(np.median(removed)),
        "error_removed_worst_seed": float(min(removed)),
        "least_lead_before_the_shift": float(min(row["learned_top_1"] - row["hybrid_top_1"] for rows in before for row in rows)),
        "outcomes_to_recover": float(np.median(recovered)),
        "error_removed_after_the_shift": float(np.median(end)),
    }


def show(
    shares: dict[str, dict[str, dict[str, float]]], figures: dict[str, dict[str, float]], curves: dict[str, list[list[dict[str, float]]]]
) -> None:
    """Tables; of curves, the medians of the seeds."""
    out = Console()
    for name, rows in shares.items():
        table = Table("chosen by", "right first", "right among three", title=name)
        for strategy, row in rows.items():
            table.add_row(strategy, *(f"{share:.1%}" for share in row.values()))
        out.print(table)
    for name, seeds in curves.items():
        columns = [column for column in seeds[0][0] if column not in ("outcomes", "trained")]
        table = Table("outcomes", *(column.replace("_", " ") for column in columns), title=name)
        for group in zip(*seeds, strict=True):
            middle = {column: float(np.median([row[column] for row in group])) for column in group[0]}
            table.add_row(f"{middle['outcomes']:.0f}", *(f"{middle[column]:.1%}" for column in columns))
        out.print(table)
    for name, values in figures.items():
        table = Table(name, "")
        for key, value in values.items():
            table.add_row(key.replace("_", " "), f"{value:.3f}" if abs(value) <= 1 else f"{value:,.0f}")
        out.print(table)


@click.command()
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write every figure here.")
def main(json_path: Path | None) -> None:
    """Measure what the router chooses: by strategy, out of scope, and as outcomes come in."""
    shares = {"made-up tasks": measure_tasks(), **asyncio.run(measure_strategies())}
    scopes = [measure_scope(seed) for seed in range(SEEDS)]
    curves = [asyncio.run(measure_learning(seed)) for seed in track(range(SEEDS), "learning", console=console)]
    tasks = [asyncio.run(measure_task_learning(seed)) for seed in track(range(TASK_SEEDS), "made-up tasks, learning", console=console)]
    figures = {
        "made-up tasks, families left out": {name: float(np.median([one[name] for one in scopes])) for name in scopes[0]},
        "random libraries": measure_coverage(),
        "example library": asyncio.run(measure_abstention()),
        "learning": verdict(curves),
    }
    both = {"overlapping jobs, right first": curves, "made-up tasks, right first": tasks}
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine(), "shares": shares, "figures": figures, "curves": both}, indent=2))
    show(shares, figures, both)


if __name__ == "__main__":
    main()
