"""`smoa adapter train`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from smoa.adapter import KINDS, SPECIALIZATIONS, Kind, encode
from smoa.cli.options import tenant_option
from smoa.plain_files import write_plain
from smoa.threads import PASSIVE, WAIT_POLICY


@click.command("train")
@click.argument("data", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Adapter file to write.")
@click.option("--name", default="", help="Default: the data file's name.")
@click.option("--kind", type=click.Choice(KINDS), default="lora_xs", show_default=True)
@click.option("--rank", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option(
    "--module", "modules", multiple=True, default=("q_proj", "v_proj"), show_default=True, help="A linear module to adapt; may repeat."
)
@click.option(
    "--steps", type=click.IntRange(1), default=None, help="Take exactly so many. Default: until the held-out loss is flat, 300 at most."
)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--learning-rate", type=float, default=None, help="Default: 0.03 for lora_xs, 0.002 for lora.")
@click.option("--seed", type=int, default=0, show_default=True)
@tenant_option
@click.option("--tag", "tags", multiple=True)
@click.option("--specialization", type=click.Choice(SPECIALIZATIONS), default="task", show_default=True)
@click.option(
    "--base-model", envvar="SMOA_BASE_MODEL", default="smollm2-135m-instruct", show_default=True, help="Folder, or the default's name."
)
@click.option(
    "--chat-template",
    envvar="SMOA_EXECUTOR_CHAT_TEMPLATE",
    default="",
    help="A file with a Jinja template, as the executor has; default: the base model's own.",
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
    steps: int | None,
    batch_size: int,
    learning_rate: float | None,
    seed: int,
    tenant: str,
    tags: tuple[str, ...],
    specialization: str,
    base_model: str,
    chat_template: str,
    device: str,
    threads: int,
) -> None:
    """Train an adapter from DATA, a JSONL; lines held out of it tell when to stop.

    \b
    A line is one of
      {"input": "...", "output": "..."}
      {"prompt": "...", "completion": "..."}
      {"instruction": "...", "input": "...", "output": "..."}
      {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

    Messages may be any number of turns, a system turn among them; the last one is the assistant's, and is what is learned. The adapter is
    trained on the tokens that the executor sends: those of the base model's chat template.

    `smoa example write` makes such a file to try it with.
    """  # noqa: D301  the escape tells click to keep the lines
    from services.executor.adapters.training_data import read_pairs

    pairs = read_pairs(data)
    click.echo(f"{data}: {len(pairs)} examples; loading the base model", err=True)
    os.environ.setdefault(WAIT_POLICY, PASSIVE)  # before torch is imported
    import torch

    from services.executor.adapters.training import TrainSettings
    from services.executor.adapters.training import train as run
    from services.executor.adapters.training_progress import how_it_ended, reporting, what_is_done
    from services.executor.backends.torch.model import Llama, training_dtype
    from services.executor.models.base_model import resolve
    from services.executor.models.lora_xs_bases import LoraXsBases
    from services.executor.models.prompt import PromptTokenizer

    if threads:
        torch.set_num_threads(threads)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = resolve(base_model)
    tokenizer = PromptTokenizer(folder, chat_template)
    model = Llama.load(folder, training_dtype(device), device)
    settings = TrainSettings(
        name=name or data.stem,
        kind=kind,
        rank=rank,
        modules=tuple(dict.fromkeys(modules)),
        steps=steps or TrainSettings.steps,
        patience=0 if steps else TrainSettings.patience,
        batch_size=batch_size,
        learning_rate=learning_rate if learning_rate is not None else (0.03 if kind == "lora_xs" else 0.002),
        seed=seed,
        tenant=tenant,
        tags=tags,
        specialization=specialization,
    )
    if kind == "lora_xs":  # minutes for a large model that no adapter was trained for yet: before the bar, which could not tell
        len(LoraXsBases(folder, model.fingerprint, lambda line: click.echo(line, err=True)))
    click.echo(what_is_done(model, settings), err=True)
    with reporting(settings) as report:
        trained = run(model, folder, tokenizer, pairs, settings, report)
    adapter = trained.adapter
    write_plain(output, encode(adapter))
    size = output.stat().st_size
    click.echo(how_it_ended(trained, settings), err=True)
    click.echo(
        f"{output}: {adapter.granularity} {kind} {adapter.manifest.adapter_id}, {adapter.parameter_count:,} parameters, {size:,} bytes"
    )
