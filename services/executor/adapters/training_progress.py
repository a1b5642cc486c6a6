"""What `smoa adapter train` says: a line that changes on a terminal, a line every few seconds in a log, and at the end how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as ProgressBar

from services.executor.adapters.early_stopping import best_of
from services.executor.adapters.training import Progress, Trained, TrainedModel, TrainSettings

LOG_EVERY_S: Final = 5.0


def duration(seconds: float) -> str:
    """`45 s`, `1 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def what_is_done(model: TrainedModel, settings: TrainSettings) -> str:
    """What is about to be trained, on what, and when it will end."""
    device = f"{torch.get_num_threads()} CPU threads" if model.device.type == "cpu" else str(model.device)
    when = (
        f"until the held-out loss is flat, at most {settings.steps} steps; --steps fixes their number"
        if settings.patience
        else f"{settings.steps} steps"
    )
    return f"training {settings.name} on {device} in {str(model.dtype).removeprefix('torch.')}: {when}"


def progress_line(progress: Progress, settings: TrainSettings) -> str:
    """Where training stands and how long it still takes, in one line."""
    at_most = "at most " if settings.patience else ""
    last, evaluated = progress.evaluations[-1], progress.evaluations[1:]
    best = best_of(evaluated) if evaluated else last
    return (
        f"step {progress.step} of {at_most}{progress.steps}, held-out loss {last.loss:.2f} (best {best.loss:.2f} at {best.step}), "
        f"{at_most}{duration(progress.seconds_left)} left"
    )


def how_it_ended(trained: Trained, settings: TrainSettings) -> str:
    """Why training ended where it did, and what is kept."""
    why = (
        f"the held-out loss was flat (it fell by no more than {settings.min_gain} in {settings.patience * settings.evaluate_every} steps)"
        if trained.flat
        else f"all {trained.steps} steps are done"
    )
    kept = trained.kept
    return (
        f"ended after step {trained.steps}: {why}; kept: the weights of step {kept.step}, held-out loss {kept.loss:.3f} "
        f"(base model {trained.evaluations[0].loss:.3f})"
    )


class LogReporter:
    """Writes a line for the first step and the last, and every few seconds between."""

    def __init__(self, settings: TrainSettings, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._write, self._clock = settings, write, clock
        self._said_at = float("-inf")

    def __call__(self, progress: Progress) -> None:
        """See `Reporter`."""
        if progress.step == progress.steps or self._clock() - self._said_at >= LOG_EVERY_S:
            self._said_at = self._clock()
            self._write(progress_line(progress, self._settings))


@contextmanager
def reporting(settings: TrainSettings) -> Iterator[Callable[[Progress], None]]:
    """What to call after every step: moves a bar on a terminal, writes lines elsewhere; both on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LogReporter(settings, lambda line: click.echo(line, err=True))
        return
    with ProgressBar(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("the first step", total=settings.steps)
        yield lambda progress: bar.update(task, completed=progress.step, description=progress_line(progress, settings))
