"""The command line of the demonstrations: which there are, and what one needs."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc
from rich.console import Console

from services.demo.session import Session, unused_variables
from smoa.errors import SmoaError


@dataclass(frozen=True)
class Demonstration:
    """One demonstration: the module services.demo.<name> runs it."""

    name: str
    shows: str
    takes: str
    next_steps: tuple[str, ...]
    has_plot: bool = False

    async def run(self, session: Session) -> dict[str, Any]:
        """Imported only now: each needs other packages."""
        run: Callable[[Session], Awaitable[dict[str, Any]]] = importlib.import_module(f"services.demo.{self.name}").run
        return await run(session)


DEMONSTRATIONS = {
    one.name: one
    for one in (
        Demonstration(
            "library",
            "a library of 57 adapters, and one of 100,000 or a million (vectors only)",
            "1 to 2 minutes; a million: 8",
            ("smoa demo library --adapters 1000000", "smoa adapter list", "smoa adapter import --help"),
        ),
        Demonstration(
            "routing",
            "which adapters a query gets, when it gets none, and what hints and the cache do",
            "half a minute",
            ('smoa route "I was charged twice this month"', "smoa demo strategies"),
        ),
        Demonstration(
            "strategies",
            "the six routing strategies side by side on the same queries, beside controls",
            "half a minute",
            ("smoa demo routing", "smoa router learn --help"),
            has_plot=True,
        ),
        Demonstration(
            "composition",
            "adapters in parallel, in sequence, and weighted by their success",
            "1 to 2 minutes",
            ("smoa composition create --help", 'smoa generate --composition NAME "..."'),
        ),
        Demonstration(
            "optimisation",
            "near-duplicates merged on trial, decoys pruned, and a change taken back",
            "2 to 3 minutes",
            ("smoa optimizer status", "smoa optimizer history", "smoa optimizer explain ADAPTER"),
        ),
        Demonstration(
            "serving",
            "what a different mixture of adapters on every row costs beside the base model",
            "1 to 2 minutes",
            ("smoa status", "make bench"),
            has_plot=True,
        ),
        Demonstration(
            "scaling",
            "routing from 57 adapters to 100,000 or a million, and the arithmetic to a billion",
            "1 to 2 minutes; a million: 10",
            ("smoa demo scaling --adapters 1000000", "read docs/decisions/0008-index-at-scale.md"),
            has_plot=True,
        ),
        Demonstration(
            "workflow",
            "all of it together: route, answer, report, count, merge and prune (the default)",
            "3 to 4 minutes",
            ("smoa up", "smoa adapter train --help", "smoa demo --list"),
        ),
    )
}
DEFAULT = "workflow"


def _list(console: Console) -> None:
    for one in DEMONSTRATIONS.values():
        console.print(f"[bold]smoa demo {one.name}[/]\n    {one.shows}; {one.takes}", highlight=False)


async def _interruptible(work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """Ctrl-C or SIGTERM cancels the work, which then ends in order; a second one changes nothing.

    Raises:
        click.Abort: it was interrupted.
    """
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    asked = False

    def stop() -> None:
        nonlocal asked
        if not asked:
            asked = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    with suppress(asyncio.CancelledError):
        return await task
    raise click.Abort


@click.command("demo")
@click.argument("name", type=click.Choice(list(DEMONSTRATIONS)), default=DEFAULT)
@click.option("--list", "show_list", is_flag=True, help="Name the demonstrations, what each shows and how long it takes.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write what was measured here.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Where a curve is drawn, as PNG; default: smoa-demo-NAME.png here."
)
@click.option("--adapters", type=click.IntRange(57, 2_000_000), default=100_000, show_default=True, help="Of library and scaling.")
@click.option("--queries-per-job", type=click.IntRange(1, 40), default=14, show_default=True, help="Fewer are quicker.")
@click.option("--kafka", default="", help="A Kafka to use; left out, an embedded broker. It keeps what the demonstration sends.")
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="Where the services' log goes; default: a temporary file.")
def demo(
    name: str,
    show_list: bool,
    json_path: Path | None,
    plot: Path | None,
    adapters: int,
    queries_per_job: int,
    kafka: str,
    log: Path | None,
) -> None:
    """Run a demonstration, measured and explained; without a NAME the complete workflow.

    It runs on free ports in a temporary folder, with a broker, a catalogue and a store of its own whatever the environment names, and
    leaves nothing behind but the files that it says it wrote.
    """
    console, demonstration = Console(), DEMONSTRATIONS[name]
    if show_list:
        return _list(console)
    console.print(f"[bold]smoa demo {name}[/]: {demonstration.shows}. On two cores: {demonstration.takes}.", highlight=False)
    own = "broker, catalogue and store" if not kafka else "catalogue and store"
    unused = unused_variables(os.environ)
    heeded = f" {', '.join(unused)}: set, and not used here." if unused else ""
    console.print(f"Its {own} are its own and end with it.{heeded}", highlight=False)
    with tempfile.TemporaryDirectory(prefix="smoa-demo-") as folder:
        session = Session(
            console=console,
            folder=Path(folder),
            log=log or Path(tempfile.gettempdir()) / f"smoa-demo-{os.getpid()}.log",
            kafka=kafka,
            plot=(plot or Path(f"smoa-demo-{name}.png")) if demonstration.has_plot else None,
            adapters=adapters,
            queries_per_job=queries_per_job,
        )
        try:
            result = asyncio.run(_interruptible(demonstration.run(session)))
        except click.Abort:
            _forget(session.log, log)
            raise
        except (SmoaError, grpc.aio.AioRpcError):
            click.echo(f"the services' log is {session.log}", err=True)
            raise
    _forget(session.log, log)
    console.print("\n[bold]What to do next[/] (all but demonstrations and --help ask a stack: `smoa up` in another shell)", highlight=False)
    for step in demonstration.next_steps:
        console.print(f"    {step}", highlight=False)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=2) + "\n")
        click.echo(f"wrote {json_path}")
    return None


def _forget(path: Path, asked_for: Path | None) -> None:
    """Of use after an error only, unless somebody asked for it."""
    if asked_for is None:
        path.unlink(missing_ok=True)
