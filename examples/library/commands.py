"""`smoa example`: the example library's data, to train an adapter of one's own with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.table import Table

from examples.library.jobs import JOBS, Split
from smoa.cli.options import json_lines_option
from smoa.errors import InvalidArgument


@click.group("example")
def example_group() -> None:
    """Write the example library's training data, to train an adapter of your own with."""


@example_group.command("list")
@json_lines_option
def list_command(as_json: bool) -> None:
    """List the jobs that there is data for."""
    if as_json:
        for job in JOBS.values():
            click.echo(json.dumps({"job": job.name, "labels": job.labels, "description": job.description, "tags": job.tags}))
        return
    table = Table("job", "what an adapter learns", "answers")
    for job in JOBS.values():
        table.add_row(job.name, job.description, ", ".join(job.labels))
    table.columns[0].no_wrap = True
    Console().print(table)


@example_group.command("write")
@click.argument("job")
@click.option("--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSONL file to write.")
@click.option("--lines", type=click.IntRange(1, 1000), default=60, show_default=True)
@click.option("--split", type=click.Choice(get_args(Split)), default="train", show_default=True, help="test: other words, to try it on.")
@click.option("--seed", type=int, default=0, show_default=True)
def write_command(job: str, output: Path, lines: int, split: Split, seed: int) -> None:
    """Write data of JOB as {"input", "output"}, what `smoa adapter train` reads."""
    if job not in JOBS:
        raise InvalidArgument("job", f"{job!r} is unknown", f"use one of {', '.join(JOBS)}")
    examples = JOBS[job].generate(split, lines, seed)
    output.write_text("".join(json.dumps({"input": example.input, "output": example.output}) + "\n" for example in examples))
    click.echo(f"{output}: {lines} lines. {JOBS[job].description}")
    click.echo(f"Next: smoa adapter train {output} -o {output.with_suffix('.safetensors')}")
