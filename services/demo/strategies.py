"""The six routing strategies side by side on the same queries, beside controls. Needs a router only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from examples.library.jobs import JOBS
from services.demo.adapters import job_of, small_library
from services.demo.caller import Caller, Query, queries_of
from services.demo.session import Session
from services.demo.showing import percentiles, run_all, show_table, write_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRATEGIES = {
    "semantic": "likeness of the query to an adapter's example inputs, nothing else",
    "task": "the caller's hints alone: here a tag, the domain of the query",
    "hybrid": "the default: likeness, and hints where there are some (here none)",
    "hybrid + tag": "hybrid with the tag that the task strategy had",
    "hierarchical": "likeness, but only within the nearest groups of like adapters",
    "mixture": "hybrid, spread softly over up to sixteen adapters",
    "learned": "hybrid, reordered by what outcomes have taught; there are none yet",
}
SEEDS = (1, 2)


async def run(session: Session) -> dict[str, Any]:
    """Returns what was measured."""
    # So that a decision holds three whatever their weights, and none is left out for doubt: ranks are what is compared.
    environment = {"SMOA_ROUTER_MIN_WEIGHT": "0", "SMOA_ROUTER_TEMPERATURE": "1"}
    environment |= {"SMOA_ROUTER_CACHE_BYTES": "0", "SMOA_ROUTER_EMBEDDING_CACHE_BYTES": "0"}
    async with session.stack("router", **environment) as running:
        caller = Caller(running.client, running.store, session.console)
        await caller.register(small_library(()))
        queries = [query for seed in SEEDS for query in queries_of(JOBS, session.queries_per_job, seed)]
        await _ask(caller, "hybrid", queries[:50])  # so that no strategy pays for a cold start
        rows = {name: await _ask(caller, name, queries) for name in STRATEGIES}
    jobs = [job_of(name) for name in caller.refs]
    share = sum(jobs.count(query.job) for query in queries) / len(queries) / len(jobs)
    controls = {"random": {"top1": round(share, 4), "top3": round(1 - (1 - share) ** 3, 4)}, "oracle": {"top1": 1.0, "top3": 1.0}}
    result = {"adapters": len(jobs), "queries": len(queries), "strategies": rows, "controls": controls}
    _show(session, result)
    write_plot(session.console, session.plot, lambda axes: _draw(axes, rows), panels=2)
    return result


async def _ask(caller: Caller, strategy: str, queries: Sequence[Query]) -> dict[str, Any]:
    """How often an adapter of the right job is first and among three, how many a decision holds, and how long it takes."""
    first, among, adapters, taken_ms = [], [], [], []
    name = f"ROUTING_STRATEGY_{strategy.partition(' ')[0].upper()}"

    async def one(query: Query) -> None:
        tags = [JOBS[query.job].domain] if strategy in ("task", "hybrid + tag") else []
        started = time.perf_counter()
        decision = await caller.client.route(query.text, base_model=caller.base_model, strategy=name, tags=tags, score_threshold=-1)
        taken_ms.append((time.perf_counter() - started) * 1000)
        jobs = [job_of(caller.names[item.adapter_id]) for item in decision.adapters]
        first.append(jobs[:1] == [query.job])
        among.append(query.job in jobs[:3])
        adapters.append(len(jobs))

    await run_all(caller.console, strategy, [lambda query=query: one(query) for query in queries], at_once=1)  # type: ignore[misc]
    return {
        "top1": round(sum(first) / len(queries), 4),
        "top3": round(sum(among) / len(queries), 4),
        "adapters": round(sum(adapters) / len(queries), 1),
        "route_ms": percentiles(taken_ms),
    }


def _show(session: Session, result: dict[str, Any]) -> None:
    rows = [
        (name, f"{row['top1']:.1%}", f"{row['top3']:.1%}", f"{row['route_ms']['p50']}", f"{row['route_ms']['p99']}", STRATEGIES[name])
        for name, row in result["strategies"].items()
    ]
    meaning = {"random": "three adapters drawn at random", "oracle": "somebody knew each query's job"}
    rows += [(name, f"{row['top1']:.1%}", f"{row['top3']:.1%}", "-", "-", meaning[name]) for name, row in result["controls"].items()]
    show_table(
        session.console,
        "Six strategies, the same queries",
        f"{result['queries']} test queries over {result['adapters']} adapters: 16 trained ones and 4 of random weights. First: the adapter "
        "of the query's job leads the decision; among three: it is in it. Every query is decided, also in doubt, and nothing is cached.",
        ("strategy", ">first", ">among three", ">p50 ms", ">p99 ms", "decides by"),
        rows,
    )
    best = max(result["strategies"], key=lambda name: result["strategies"][name]["top1"])
    hybrid, task = result["strategies"]["hybrid"], result["strategies"]["task"]
    session.heading("What this shows")
    chance = result["controls"]["random"]
    session.say(
        f"Of the text alone, hybrid finds the right adapter first for {hybrid['top1']:.0%} of the queries and among three for "
        f"{hybrid['top3']:.0%}, where chance gives {chance['top1']:.0%} and {chance['top3']:.0%}; a tag alone gives {task['top1']:.0%}: "
        f"adapters with the same tag are told apart by likeness. Best here: {best}, {result['strategies'][best]['top1']:.0%}. Learned is "
        "hybrid until outcomes have been reported and `smoa router learn` has run."
    )


def _draw(axes: Sequence[Axes], rows: dict[str, dict[str, Any]]) -> None:
    names = list(rows)
    places = range(len(names))
    axes[0].barh([place - 0.2 for place in places], [rows[name]["top1"] * 100 for name in names], 0.4, label="first")
    axes[0].barh([place + 0.2 for place in places], [rows[name]["top3"] * 100 for name in names], 0.4, label="among three")
    axes[0].set(xlabel="% of the queries with the right adapter", xlim=(0, 100))
    axes[0].legend(loc="lower left")
    axes[1].barh(list(places), [rows[name]["route_ms"]["p50"] for name in names], 0.6)
    axes[1].set(xlabel="milliseconds a decision, p50")
    for axis in axes:
        axis.set_yticks(list(places), names)
        axis.invert_yaxis()
