"""Serving: what a different mixture of adapters on every row of the batch costs beside the base model. Needs an executor only."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from examples.library.jobs import JOBS
from services.demo.adapters import SEED, trained
from services.demo.session import Session
from services.demo.showing import progress, show_table, write_plot
from smoa.adapter import encode
from smoa.client import SmoaClient
from smoa.v1 import common_pb2 as common

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = (1, 4, 16)
ROUNDS = 3
TOKENS = 48
WEIGHT = 0.02
"""So little that the text stays the base model's, and as long; the arithmetic is the same whatever the weight."""
MIXTURES = {"base": 0, "one adapter": 1, "three adapters": 3}
SUBJECTS = ("a lighthouse", "a clockmaker", "the sea", "an old train", "two brothers", "a garden", "a storm", "the first snow")


async def run(session: Session) -> dict[str, Any]:
    """Returns what was measured."""
    async with session.stack("executor") as running:
        refs = []
        for name in JOBS:
            adapter = trained(name)
            digest = await running.store.put(encode(adapter))
            refs.append(common.WeightedAdapter(adapter_id=adapter.manifest.adapter_id, version=1, digest=digest, weight=WEIGHT))
        rates: dict[tuple[int, str], list[float]] = {(rows, name): [] for rows in ROWS for name in MIXTURES}
        first_ms: dict[tuple[int, str], list[float]] = {key: [] for key in rates}
        with progress(session.console, "batches", len(ROWS) * (ROUNDS + 1) * len(MIXTURES)) as advance:
            for rows in ROWS:
                for number in range(ROUNDS + 1):
                    order = list(MIXTURES) if number % 2 else list(reversed(MIXTURES))  # so that what drifts falls on all alike
                    for name in order:
                        mixtures = [_mixture(refs, MIXTURES[name], row + number) for row in range(rows)]
                        rate, first = await _batch(running.client, mixtures)
                        if number:  # the first loads the adapters
                            rates[rows, name].append(rate)
                            first_ms[rows, name].append(first)
                        advance(1)
        status = await running.client.status()
    result: dict[str, Any] = {
        "rows": {
            str(rows): {
                name: {
                    "tokens_a_second": round(statistics.median(rates[rows, name]), 1),
                    "first_token_ms": round(statistics.median(first_ms[rows, name]), 1),
                }
                for name in MIXTURES
            }
            for rows in ROWS
        },
        "rounds": ROUNDS,
        "adapters_in_slots": len(status.residents),
        "slot_bytes": status.slot_bytes,
        "base_model": status.base_model_name,
    }
    _show(session, result)
    write_plot(session.console, session.plot, lambda axes: _draw(axes, result["rows"]))
    return result


def _mixture(refs: Sequence[common.WeightedAdapter], count: int, seed: int) -> list[common.WeightedAdapter]:
    """So many adapters; another choice for each row."""
    return random.Random(seed).sample(list(refs), count)


async def _batch(client: SmoaClient, mixtures: Sequence[Sequence[common.WeightedAdapter]]) -> tuple[float, float]:
    """(tokens a second while every row decodes, mean milliseconds to the first token) of one request a row, all at once."""
    chooser = random.Random(f"{SEED}/{time.monotonic_ns()}")  # a prompt that was seen before would be read from a cache

    async def one(mixture: Sequence[common.WeightedAdapter]) -> list[float]:
        prompt = f"Write a long story about {chooser.choice(SUBJECTS)} and {chooser.choice(SUBJECTS)}, {chooser.randrange(10_000)} words."
        began, times = time.perf_counter(), list[float]()
        async for response in client.stream(prompt, mixture, max_tokens=TOKENS):
            times += [time.perf_counter()] * response.tokens
        return [began, *times]

    answers = await asyncio.gather(*(one(mixture) for mixture in mixtures))
    begin, end = max(times[1] for times in answers), min(times[-1] for times in answers)
    if end <= begin:  # one answer was over before another began
        begin, end = min(times[0] for times in answers), max(times[-1] for times in answers)
    tokens = sum(begin < at <= end for times in answers for at in times[1:])
    return tokens / max(end - begin, 1e-9), statistics.mean(times[1] - times[0] for times in answers) * 1000


def _show(session: Session, result: dict[str, Any]) -> None:
    rows = []
    for count, figures in result["rows"].items():
        for name, one in figures.items():
            share = one["tokens_a_second"] / figures["base"]["tokens_a_second"]
            rows.append(
                (count if name == "base" else "", name, f"{one['tokens_a_second']}", f"{share:.0%}", f"{one['first_token_ms']:.0f}")
            )
    show_table(
        session.console,
        "Speed with and without adapters",
        f"So many requests at once to {result['base_model']}, each row with another choice of adapters of its own. Tokens a second are of "
        f"the whole batch, while every row decodes; medians of {result['rounds']} rounds, in which the three take turns. Figures vary with "
        "whatever else this machine does.",
        (">rows at once", "on each row", ">tokens a second", ">of the base", ">first token ms"),
        rows,
    )
    most = str(max(ROWS))
    base, three = result["rows"][most]["base"], result["rows"][most]["three adapters"]
    alone = result["rows"]["1"]["base"]["tokens_a_second"]
    session.heading("What this shows")
    session.say(
        f"{most} rows, each with its own three adapters, decode {three['tokens_a_second']:.0f} tokens a second together where the base "
        f"model alone decodes {base['tokens_a_second']:.0f}: {three['tokens_a_second'] / base['tokens_a_second']:.0%} of it, and "
        f"{three['tokens_a_second'] / alone:.1f} times what one row gives. {result['adapters_in_slots']} adapters lie in the executor's "
        f"slots and take {result['slot_bytes'] / 1000:,.0f} KB. One server answers for all of them; nobody needs a model of their own."
    )


def _draw(axes: Sequence[Axes], rows: dict[str, dict[str, dict[str, float]]]) -> None:
    for name in MIXTURES:
        axes[0].plot([int(count) for count in rows], [one[name]["tokens_a_second"] for one in rows.values()], marker="o", label=name)
    axes[0].set(xlabel="rows at once, each with its own choice", ylabel="tokens a second")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
