"""`smoa adapter train`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from smoa.adapter import KINDS, SPECIALIZATIONS, Kind, encode
from smoa.cli.options import tenant_option


@click.command("train")
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Adapter file to write.")
@click.option("--name", default="", help="Default: the data file's name.")
@click.option("--kind", type=click.Choice(KINDS), default="lora_xs", show_default=True)
@click.option("--rank", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option(
    "--module", "modules", multiple=True, default=("q_proj", "v_proj"), show_default=True, help="A linear module to adapt; may repeat."
)
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--learning-rate", type=float, default=None, help="Default: 0.03 for lora_xs, 0.002 for lora.")
@click.option("--seed", type=int, default=0, show_default=True)
@tenant_option
@click.option("--tag", "tags", multiple=True)
@click.option("--specialization", type=click.Choice(SPECIALIZATIONS), default="task", show_default=True)
@click.option(
    "--base-model", envvar="SMOA_BASE_MODEL", default="smollm2-135m-instruct", show_default=True, help="Folder, or the default's name."
)
@click.option("--device", default="", help="cpu or cuda; default: cuda where there is one.")
@click.option("--threads", type=int, default=0, help="CPU threads; default: all.")
def train(
    data: Path,
    output: Path,
    name: str,
    kind: Kind,
    rank: int,
    modules: tuple[str, ...],
    steps: int,
    batch_size: int,
    learning_rate: float | None,
    seed: int,
    tenant: str,
    tags: tuple[str, ...],
    specialization: str,
    base_model: str,
    device: str,
    threads: int,
) -> None:
    """Train an adapter from DATA, a JSONL of {"input", "output"}; a tenth is held out to stop early."""
    import torch

    from services.executor.base_model import resolve
    from services.executor.model import Llama
    from services.executor.prompt import PromptTokenizer
    from services.executor.training import Progress as Step
    from services.executor.training import TrainSettings, read_pairs
    from services.executor.training import train as run

    pairs = read_pairs(data)
    if threads:
        torch.set_num_threads(threads)
    folder = resolve(base_model)
    model = Llama.load(folder, torch.bfloat16, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = TrainSettings(
        name=name or data.stem,
        kind=kind,
        rank=rank,
        modules=modules,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate if learning_rate is not None else (0.03 if kind == "lora_xs" else 0.002),
        seed=seed,
        tenant=tenant,
        tags=tags,
        specialization=specialization,
    )
    columns = TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns) as bar:
        task = bar.add_task("", total=steps)

        def report(step: Step) -> None:
            held_out = f" held-out {step.held_out_loss:.3f}" if step.held_out_loss is not None else ""
            bar.update(task, completed=step.step, description=f"loss {step.train_loss:.3f}{held_out}, {step.seconds_left:.0f} s left")
            if held_out and not bar.console.is_terminal:
                click.echo(f"step {step.step}/{step.steps} loss {step.train_loss:.3f}{held_out}, {step.seconds_left:.0f} s left")

        adapter = run(model, folder, PromptTokenizer(folder, model.config), pairs, settings, report)
    output.write_bytes(encode(adapter))
    size = output.stat().st_size
    click.echo(
        f"{output}: {adapter.granularity} {kind} {adapter.manifest.adapter_id}, {adapter.parameter_count:,} parameters, {size:,} bytes"
    )
