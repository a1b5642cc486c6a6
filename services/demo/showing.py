"""How demonstrations show themselves: progress with the time left, tables with a sentence, plots as files."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from smoa.errors import Unavailable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_EVERY_S = 10.0


@contextmanager
def progress(console: Console, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many more are done; shows how much time is left: a bar, or in a log a line every ten seconds."""
    if console.is_terminal:
        columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda more: bar.advance(task, more)
        return
    started = said = time.monotonic()
    done = 0

    def advance(more: int) -> None:
        nonlocal done, said
        done += more
        now = time.monotonic()
        if done < total and now > said + LINE_EVERY_S:
            said = now
            console.print(f"{label}: {done:,} of {total:,}, {(now - started) / done * (total - done):.0f} s left", highlight=False)

    yield advance
    console.print(f"{label}: {done:,} in {time.monotonic() - started:.0f} s", highlight=False)


async def run_all(console: Console, label: str, calls: Sequence[Callable[[], Awaitable[object]]], at_once: int = 16) -> None:
    """Make all the calls, so many at once. The first error ends the others and is raised as it is."""
    gate = asyncio.Semaphore(at_once)
    with progress(console, label, len(calls)) as advance:

        async def gated(call: Callable[[], Awaitable[object]]) -> None:
            async with gate:
                await call()
            advance(1)

        try:
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(gated(call))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None


async def until(what: str, within_s: float, done: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `done` says so.

    Raises:
        Unavailable: it did not within that time.
    """
    deadline = time.monotonic() + within_s
    while not await done():
        if time.monotonic() > deadline:
            raise Unavailable(f"demo: {what} did not happen within {within_s:.0f} s; see the log")
        await asyncio.sleep(0.2)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2)}


def show_table(console: Console, title: str, sentence: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, above it what it shows. `>` before a column's name sets it to the right."""
    console.print(f"\n[bold]{title}[/]\n{sentence}", highlight=False)
    table = Table()
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_plot(console: Console, path: Path | None, draw: Callable[[Sequence[Axes]], None], panels: int = 1) -> None:
    """Draw side by side into a PNG file, if a path is given and matplotlib is installed."""
    if path is None:
        return
    if find_spec("matplotlib") is None:
        console.print(f"No plot was written: matplotlib is not installed (pip install matplotlib), so there is no {path}.", highlight=False)
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=(5.5 * panels, 4), squeeze=False, layout="constrained")
    draw(list(axes[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    console.print(f"wrote {path}", highlight=False)
