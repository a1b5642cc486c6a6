"""How often a merge's trial ends wrongly, and after how many outcomes, judged at every one of them; beside a test of a fixed size.

Each world has parents with a true success and a share of the queries, and a child with a true success in the place of each. A fifth of the
queries goes to the child. The fixed test is looked at once: Wald's, for a difference within the margin, at the same error with a power of
0.8 (Schuirmann 1987); its size is what the sequence's median is to be compared with.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from statistics import NormalDist, median
from typing import Final, NamedTuple

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import machine
from services.optimizer.policy.trial import NOTHING, Arm, Pairs, Stratum, TrialRules, judge
from services.optimizer.stream.counting import pair
from smoa.v1.state_pb2 import TrialPairs

RULES: Final = TrialRules()
SHARE: Final = 0.2
KNOWN: Final = 20
"""Outcomes of each parent before the trial."""


class World(NamedTuple):
    """Parents as (success, the child's success in its place, share of the queries), and what would be right."""

    name: str
    parents: tuple[tuple[float, float, float], ...]
    right: str


def _equal(rate: float, parents: int) -> tuple[tuple[float, float, float], ...]:
    return ((rate, rate, 1 / parents),) * parents


WORLDS: Final = (
    World("equal, one parent at 0.85", _equal(0.85, 1), "promote"),
    World("equal, one parent at 0.95", _equal(0.95, 1), "promote"),
    World("equal, one parent at 0.6", _equal(0.6, 1), "promote"),
    World("equal, two parents at 0.85", _equal(0.85, 2), "promote"),
    World("equal, five parents at 0.85", _equal(0.85, 5), "promote"),
    World("equal, a parent with 5%", ((0.9, 0.9, 0.95), (0.9, 0.9, 0.05)), "promote"),
    World("worse by the margin", ((0.85, 0.75, 1.0),), "roll back"),
    World("worse by the margin, two parents", ((0.85, 0.75, 0.5), (0.95, 0.85, 0.5)), "roll back"),
    World("worse by the parents' margin for one of two", ((0.9, 0.9, 0.5), (0.9, 0.65, 0.5)), "roll back"),
    World("worse by the parents' margin for one of five", (*_equal(0.9, 5)[:4], (0.9, 0.65, 0.2)), "roll back"),
    World("breaks a parent with a tenth", ((0.95, 0.95, 0.9), (0.95, 0.05, 0.1)), "roll back"),
)


class End(NamedTuple):
    """Of one trial."""

    judgement: str
    outcomes: float
    """Of the child."""
    of_the_worst: float
    """Of the child in the place of the parent for which it is worst."""


def run(world: World, seed: int, most: int) -> End:
    """One trial, judged after each outcome of the child."""
    rng, places = random.Random(seed), range(len(world.parents))
    shares = [share for _, _, share in world.parents]
    before = [Arm(KNOWN, round(KNOWN * rate)) for rate, _, _ in world.parents]
    child, parents = [NOTHING] * len(places), [NOTHING] * len(places)
    sequences = [TrialPairs() for _ in places]
    judgement = "wait"
    while judgement == "wait" and sum(arm.outcomes for arm in child) < most:
        [place] = rng.choices(places, shares)
        tried = rng.random() < SHARE
        arms = child if tried else parents
        success = rng.random() < world.parents[place][1 if tried else 0]
        arms[place] = Arm(arms[place].outcomes + 1, arms[place].successes + success)
        pair(sequences[place], success, of_child=tried)
        if tried:
            pairs = [Pairs(one.pairs, one.child, one.parent) for one in sequences]
            strata = {str(one): Stratum(child[one], parents[one], before[one], pairs=pairs[one]) for one in places}
            judgement, _, _ = judge(strata, 0.0, RULES)
    worst = max(places, key=lambda place: world.parents[place][0] - world.parents[place][1])
    return End(judgement, sum(arm.outcomes for arm in child), child[worst].outcomes)


def fixed_size(world: World) -> float:
    """Outcomes of the child that a test needs which is looked at once, for all parents together."""
    rate = sum(success * share for success, _, share in world.parents)
    z = NormalDist().inv_cdf(1 - RULES.alpha) + NormalDist().inv_cdf(0.8)
    return z**2 * rate * (1 - rate) * (1 + SHARE / (1 - SHARE)) / RULES.margin**2


@click.command(help=__doc__)
@click.option("--trials", default=400, show_default=True, help="Of each world.")
@click.option("--most", default=4000, show_default=True, help="Outcomes of a child after which a trial is given up; it is undone then.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def main(trials: int, most: int, json_path: Path | None) -> None:
    """See the module."""
    table = Table(
        "world", "promoted", "undone", "not ended", "median outcomes", "90%", "of the worst parent", "fixed size", title=machine()
    )
    rows = []
    for world in track(WORLDS, "worlds", console=Console(stderr=True)):
        ends = [run(world, seed, most) for seed in range(trials)]
        how, sizes = Counter(one.judgement for one in ends), sorted(one.outcomes for one in ends)
        row = {
            "world": world.name,
            "right": world.right,
            "wrong_rate": sum(one.judgement not in (world.right, "wait") for one in ends) / trials,
            **{name: how[name] / trials for name in ("promote", "roll back", "wait")},
            "median_outcomes": median(sizes),
            "outcomes_90": sizes[int(0.9 * trials)],
            "median_of_worst": median(one.of_the_worst for one in ends),
            "fixed_size": fixed_size(world) if world.right == "promote" else None,
        }
        rows.append(row)
        fixed = f"{row['fixed_size']:.0f}" if row["fixed_size"] else "-"
        table.add_row(
            world.name, f"{row['promote']:.1%}", f"{row['roll back']:.1%}", f"{row['wait']:.1%}", f"{row['median_outcomes']:.0f}",
            f"{row['outcomes_90']}", f"{row['median_of_worst']:.0f}", fixed,
        )  # fmt: skip
    Console().print(table)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
