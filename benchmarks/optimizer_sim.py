"""A library that lives through weeks in seconds: the optimizer's own policy against the plain rules, in worlds whose truth is known.

A world has jobs with traffic by Zipf's law, and adapters: for each job one that does it well, near-copies of it, some that are bad, some
for jobs that nobody asks for, and look-alikes, whose weights are as near as copies' but whose job is another, so that merging them harms
both. Outcomes are noisy, late, missing or, from one tenant, lies. Every hour the policy sees counts and nothing else: `policy.prunes`,
`policy.merges`, `trial.judge`, the router's `Canaries` and the counter's `decay` are the ones that serve. The plain rules are those of
the first version: under 10 uses in a day, success under 30%, cosine over 0.9, at once.

Regret: by how much the chosen adapter's chance of success is under the best that ever was there for the query's job, over all queries.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.scenarios import SCENARIOS
from benchmarks.simulated_library import World
from benchmarks.simulated_members import Score

SUMMED: Final = (
    "queries", "regret", "prunes", "wrong_prunes", "merges", "wrong_merges", "rolled_back", "lost", "library", "distinct_useful",
)  # fmt: skip


def plot(scores: list[Score], path: Path) -> None:
    """Library size, regret, wrong prunes and wrong merges by day, a row a scenario."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(one.scenario for one in scores))
    shown = ("adapters (grey: distinct, useful)", "regret a query", "wrong prunes", "wrong merges")
    figure, rows = plt.subplots(len(names), len(shown), figsize=(12, 1.6 * len(names) + 0.5), sharex=True, squeeze=False)
    for one in scores:
        row = rows[names.index(one.scenario)]
        days, *curves = zip(*one.curve, strict=True)
        for axes, curve in zip(row, curves, strict=True):
            axes.plot(days, curve, label=one.policy)
        row[0].axhline(one.distinct_useful, color="grey", linewidth=0.7)
        row[0].set(ylabel=one.scenario)
    for axes, label in zip(rows[0], shown, strict=True):
        axes.set(title=label)
    for axes in rows[-1]:
        axes.set(xlabel="day")
    for row in rows:
        for axes in row:  # last: a limit that is set stays as it is
            axes.set_ylim(bottom=0)
    rows[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=70)


@click.command(help=__doc__)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
@click.option("--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), help="Draw the curves here.")
@click.option("--jobs", default=400, show_default=True, help="Jobs of a world; it has about three adapters for each.")
@click.option("--days", default=28, show_default=True)
@click.option("--queries-per-hour", default=1500, show_default=True)
@click.option("--seeds", default=3, show_default=True, help="Worlds of each scenario; figures are sums over them.")
@click.option("--scenario", default="", help="Only this one.")
def main(json_path: Path | None, plot_path: Path | None, jobs: int, days: int, queries_per_hour: int, seeds: int, scenario: str) -> None:
    """See the module."""
    chosen = [one for one in SCENARIOS if scenario in ("", one.name)]
    scores: list[Score] = []
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as progress:
        task = progress.add_task("hours", total=2 * seeds * 24 * sum(one.days or days for one in chosen))
        for one in chosen:
            for policy in ("ours", "plain"):
                for seed in range(seeds):
                    world = World(one, policy, jobs, days, queries_per_hour, seed)
                    for done in world.run():
                        progress.advance(task, done)
                    scores.append(world.score)
    table = Table(
        "scenario", "policy", "library", "by distinct", "regret", "wrong prunes", "wrong merges", "rolled back", "lost", title=machine()
    )
    summary = []
    for one in chosen:
        for policy in ("ours", "plain"):
            runs = [score for score in scores if score.scenario == one.name and score.policy == policy]
            total = {
                name: sum(getattr(run, name) for run in runs) for name in vars(runs[0]) if isinstance(getattr(runs[0], name), int | float)
            }
            row = {
                "scenario": one.name,
                "policy": policy,
                "library_by_distinct": total["library"] / total["distinct_useful"],
                "regret_a_query": total["regret"] / total["queries"],
                "wrong_prune_rate": total["wrong_prunes"] / max(1, total["prunes"]),
                "wrong_merge_rate": total["wrong_merges"] / max(1, total["merges"]),
                **total,
            }
            summary.append(row)
            table.add_row(
                one.name, policy, f"{total['library']:,}", f"{row['library_by_distinct']:.2f}", f"{row['regret_a_query']:.4f}",
                f"{total['wrong_prunes']} of {total['prunes']}", f"{total['wrong_merges']} of {total['merges']}",
                str(total["rolled_back"]), str(total["lost"]),
            )  # fmt: skip
    Console().print(table)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps({"machine": machine(), "summary": summary, "runs": [asdict(one) for one in scores]}, indent=2))
    if plot_path is not None:
        plot([one for place, one in enumerate(scores) if place % seeds == 0], plot_path)


if __name__ == "__main__":
    main()
