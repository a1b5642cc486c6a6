"""`smoa adapter import`: adapters that somebody else made."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from smoa.adapter import SPECIALIZATIONS, encode
from smoa.cli.base_models import BaseModel, served_by
from smoa.cli.bulk import COLUMNS, import_jsonl
from smoa.cli.folders import FolderImport, Labels, Result, find_folders, names_of, summary
from smoa.cli.options import executor_option, json_lines_option, router_option, signing_option, tenant_option
from smoa.client import SmoaClient
from smoa.errors import InvalidArgument
from smoa.example_inputs import read_examples
from smoa.limits import MAX_EXAMPLES, MIN_EXAMPLES
from smoa.peft import import_folder
from smoa.plain_files import write_plain
from smoa.signatures import signing_by

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("import")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...")
@click.option("--examples", "examples_path", type=_FILE, help="Example inputs of every folder; else each folder's own.")
@click.option("--name", default="", help="Of a single folder's adapter; default: the folder's name.")
@click.option("--tag", "tags", multiple=True, help="May repeat.")
@click.option("--shared", is_flag=True, help="Every tenant may use them.")
@click.option("--specialization", type=click.Choice(SPECIALIZATIONS), default="task", show_default=True)
@click.option("--base-model", default="", help="Fingerprint of the base model; the executor's, and checked against it, when left out.")
@click.option("--any-base", is_flag=True, help="Whatever adapter_config.json calls the base model.")
@click.option("--replace", is_flag=True, help="Retire the adapters whose names these have, in the same step.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Only write a single folder's adapter file.")
@click.option("--jsonl", type=_FILE, help="Register the adapters that this file describes instead.")
@click.option("--no-file-check", is_flag=True, help="With --jsonl: route to them though nobody looked whether their weights are there.")
@json_lines_option
@signing_option
@tenant_option
@executor_option
@router_option
def import_command(
    folders: tuple[str, ...],
    examples_path: Path | None,
    name: str,
    base_model: str,
    any_base: bool,
    replace: bool,
    output: Path | None,
    jsonl: Path | None,
    no_file_check: bool,
    as_json: bool,
    signing_key: str,
    executor: str,
    router: str,
    **labels: Any,
) -> None:
    """Bring adapters that PEFT made into the library: each FOLDER is one, a tree that holds some, or a pattern (quoted).

    \b
    Each adapter needs 5 to 50 example inputs, by which the router finds it. They are read from
      --examples FILE, else in its folder from examples.jsonl, examples.txt or a training JSONL:
      the first user input of each line, be it {"input"}, {"prompt"}, {"messages"} or the like.
    A folder without is waiting for them. The same command again does what is left, and nothing twice.
    Of a run's checkpoint-N folders the last is taken, under the name of the run.

    \b
    A line of a --jsonl file is an object of
      adapter_id, digest, name, kind (lora or lora_xs), base_model, rank, modules, parameter_count,
      vector (256 numbers, the router's embedding) or examples (5 to 50 inputs),
      and if you like: version, specialization, tags, shared, file_bytes.
    Those whose file is not in the router's store are kept as `missing` and not routed to.
    """  # noqa: D301  the escape tells click to keep the lines
    if jsonl is not None:
        if folders or output is not None or examples_path is not None:
            raise click.UsageError("--jsonl goes without FOLDER, --examples and --output")
        return import_jsonl(jsonl, router, labels["tenant"], files_unchecked=no_file_check, as_json=as_json)
    if not folders:
        raise click.UsageError("give at least one FOLDER, or --jsonl")
    sign = signing_by(signing_key)
    found, failed = find_folders(folders)
    if (name or output is not None) and len(found) != 1:
        raise click.UsageError(f"--name and --output are for a single folder, not {len(found)}")
    names = names_of(found) | (dict.fromkeys(found, name) if name else {})
    if output is not None:
        base = asyncio.run(_base_model(base_model, executor))
        adapter = import_folder(found[0], base.fingerprint, name=names[found[0]], **labels)
        base.check(adapter, any_name=any_base)
        write_plain(output, encode(sign(adapter)))
        return click.echo(f"{output}: {adapter.granularity} lora {adapter.manifest.adapter_id}, {adapter.parameter_count:,} parameters")

    examples = read_examples(examples_path) if examples_path is not None else []
    if examples_path is not None and len(examples) < MIN_EXAMPLES:
        raise InvalidArgument(
            "examples", f"{examples_path} holds {len(examples)} distinct inputs", f"give {MIN_EXAMPLES} to {MAX_EXAMPLES}"
        )
    results, started = [*failed], time.monotonic()

    async def work(progress: Progress) -> None:
        task = progress.add_task("importing", total=len(found))

        def done(result: Result) -> None:
            results.append(result)
            progress.advance(task)
            if as_json:
                click.echo(json.dumps(result._asdict()))

        async with SmoaClient(router=router) as client:
            base = await _base_model(base_model, executor)
            kept = Labels(**labels)
            importing = FolderImport(client, base, kept, examples, any_base=any_base, replace=replace, sign=sign)
            await importing.run(names, done)

    if as_json:
        for result in failed:
            click.echo(json.dumps(result._asdict()))
    try:
        if found:
            with Progress(*COLUMNS, console=Console(stderr=True)) as progress:
                asyncio.run(work(progress))
    finally:
        if not as_json and results:
            click.echo(summary(results, time.monotonic() - started))
    if any(result.status == "failed" for result in results):
        raise SystemExit(1)
    return None


async def _base_model(fingerprint: str, executor: str) -> BaseModel:
    return BaseModel(fingerprint) if fingerprint else await served_by(executor)
