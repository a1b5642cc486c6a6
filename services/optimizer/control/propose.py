"""`smoa optimizer propose`: adapters that are missing, from failures that callers corrected; trained and tried where that is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import grpc
import numpy as np

from services.optimizer.control.gate import MIN_EXAMPLES, alone, losses
from services.optimizer.policy.gaps import Region, regions
from services.optimizer.settings import OptimizerSettings
from services.optimizer.stream.changelog import COUNTS, Changelog
from services.optimizer.stream.counting import CountPartition
from services.optimizer.stream.effects import FAILURES
from services.optimizer.stream.examples import place_of
from smoa.adapter import decode
from smoa.cli.options import check_store, executor_option, json_lines_option, kafka_option, router_option, store_option, tenant_option
from smoa.cli.tables import show_table
from smoa.client import SmoaClient
from smoa.errors import FailedPrecondition, SmoaError
from smoa.settings import from_environment
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from smoa.v1.events_pb2 import Example

TAG = "from-failures"
TAGGED = 16
EVERY_STATE = (common.ADAPTER_STATE_ACTIVE, common.ADAPTER_STATE_CANARY, common.ADAPTER_STATE_RETIRED, common.ADAPTER_STATE_PURGED)
"""What was learned, pruned and purged is not learned again from the same failures."""
MAX_EXAMPLES = 50


@click.command("propose")
@tenant_option
@kafka_option
@router_option
@executor_option
@store_option
@click.option("--output", "-o", type=click.Path(file_okay=False, path_type=Path), help="Write each region's pairs here, as JSONL.")
@click.option("--train", is_flag=True, help="Train an adapter for each region, try it on a fifth held out, and register what is better.")
@click.option("--steps", type=click.IntRange(1), default=None, help="Of training; default: as in `smoa adapter train`.")
@click.option("--learning-rate", type=float, default=None, help="Of training; default: as in `smoa adapter train`.")
@click.option("--base-model", envvar="SMOA_BASE_MODEL", default="", help="To train on; as in `smoa adapter train`.")
@click.option("--min-examples", type=click.IntRange(2), default=20, show_default=True, help="Of a region; fewer teach nothing.")
@click.option("--min-uncovered", default=0.5, show_default=True, help="Share of a region's queries for which no adapter was found.")
@click.option("--min-gain", default=0.1, show_default=True, help="Nats a token by which an adapter must be surer than the base model.")
@json_lines_option
def propose_command(
    tenant: str,
    kafka: str,
    router: str,
    executor: str,
    store: str,
    output: Path | None,
    train: bool,
    steps: int | None,
    learning_rate: float | None,
    base_model: str,
    min_examples: int,
    min_uncovered: float,
    min_gain: float,
    as_json: bool,
) -> None:
    """Find where answers fail and no adapter fits, and learn from the corrections.

    Callers give them with their outcomes (`input`, `corrected_output`). Without --train nothing is changed.
    """
    options = {"--steps": steps, "--learning-rate": learning_rate, "--base-model": base_model or None}
    if train:
        check_store()
    training = [part for option, value in options.items() if value is not None for part in (option, str(value))]

    async def work() -> list[dict[str, object]]:
        async with SmoaClient(router=router, executor=executor) as client:
            learned = [one async for one in client.list_all(tenant, tags=[TAG], states=EVERY_STATE)]
            failures = await failures_of(kafka, tenant)
            from smoa.embedding.static import StaticEmbedder  # the optimizer's own image has no tokenizer

            embed = StaticEmbedder().vector_of
            vectors = np.stack([embed(one.input) for one in failures]) if failures else np.zeros((0, 1), np.float32)
            lines: list[dict[str, object]] = []
            for found in regions(vectors, failures, min_examples, min_uncovered):
                region = new_in(found, learned)
                if len(region.examples) < min_examples or region.uncovered < min_uncovered:
                    continue
                line: dict[str, object] = {
                    "region": region.name,
                    "examples": len(region.examples),
                    "uncovered": region.uncovered,
                    "newest": region.examples[-1].input,
                }
                if output is not None:
                    output.mkdir(parents=True, exist_ok=True)
                    line["file"] = str(output / f"{region.name}.jsonl")
                    (output / f"{region.name}.jsonl").write_text(pairs_of(region.examples))
                if train:
                    try:
                        line |= await learn(client, AdapterStore(store), region, tenant, training, min_gain)
                    except (SmoaError, grpc.aio.AioRpcError) as error:  # the other regions are not the worse for it
                        said = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
                        line |= {"adapter": "", "verdict": f"not registered: {said}"}
                lines.append(line)
            return lines

    lines = asyncio.run(work())
    if as_json:
        for line in lines:
            click.echo(json.dumps(line))
        return
    if not lines:
        click.echo(f"no region of {tenant} has {min_examples} corrected failures that no adapter fits")
        return
    rows = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in line.values()] for line in lines]
    show_table(list(lines[0]), rows, title=f"missing adapters of {tenant}", prose={"newest", "verdict"})
    if not train:
        click.echo("`--output FOLDER` writes their pairs for `smoa adapter train`; `--train` trains, tries and registers them")


def new_in(region: Region, learned: Sequence[registry_pb2.Adapter]) -> Region:
    """What of a region came after the last adapter that was learned from it; such an adapter names some of its decisions in its tags."""
    own = {f"{TAG}:{one.decision_id}" for one in region.examples}
    # The child of a merge has its parents' tags, and was not learned when it was made.
    since_us = max((one.created_at_us for one in learned if own & set(one.tags) and not one.parents), default=0)
    return Region(tuple(one for one in region.examples if one.occurred_at_us > since_us))


async def failures_of(kafka: str, tenant: str) -> list[Example]:
    """A tenant's corrected failures, from the optimizer's changelog, the oldest first.

    Raises:
        Unavailable: the broker does not answer.
    """
    settings = from_environment(OptimizerSettings, os.environ, "SMOA_OPTIMIZER_")
    key = f"{FAILURES}{tenant}"
    values = {one.name.decode(): one.value for one in await Changelog(kafka, COUNTS.name).read_around(key)}
    part = CountPartition(settings.half_life_s, values, settings.examples_max_bytes, settings.examples_retention_s, settings.silent_tenants)
    return part.examples.get(key, time.time_ns() // 1000)


def pairs_of(examples: Sequence[Example]) -> str:
    """What `smoa adapter train` reads."""
    return "".join(json.dumps({"input": one.input, "output": one.output}) + "\n" for one in examples)


async def learn(
    client: SmoaClient, store: AdapterStore, region: Region, tenant: str, training: Sequence[str], min_gain: float
) -> dict[str, object]:
    """Train an adapter on most of a region, try it on the rest against the base model, and register it if it is better.

    Raises:
        FailedPrecondition: training failed.
        grpc.aio.AioRpcError: the executor or the registry cannot.
    """
    lessons, held_out = region.split()
    different = len({one.input for one in held_out})
    if different < MIN_EXAMPLES or not lessons:
        return {"adapter": "", "verdict": f"not registered: {different} different inputs to try it on, under {MIN_EXAMPLES}"}
    with TemporaryDirectory() as folder:
        data, file = Path(folder) / "pairs.jsonl", Path(folder) / "adapter.safetensors"
        data.write_text(pairs_of(lessons))
        await _train(data, file, ["--name", region.name, "--tenant", tenant, *tags_of(region), *training])
        encoded = file.read_bytes()
    digest = await store.put(encoded)
    manifest = decode(encoded).manifest
    ref = alone(manifest, digest)
    try:
        lost = await losses(client, tenant, held_out, None, ref)
    except grpc.aio.AioRpcError:
        await store.delete(digest)
        raise
    gained = -sum(lost) / max(len(lost), 1)
    gain = f"{gained:.2f} nats a token surer than the base model on {len(lost)} held out"
    if len(lost) < MIN_EXAMPLES or gained < min_gain:
        await store.delete(digest)
        return {"adapter": "", "verdict": f"not registered: {gain}, under {min_gain:g}"}
    inputs = list(dict.fromkeys(one.input for one in lessons))[-MAX_EXAMPLES:]
    made = await client.register(digest, inputs, tenant)
    return {"adapter": made.adapter_id, "verdict": f"registered: {gain}"}


def tags_of(region: Region) -> list[str]:
    """Options that tag an adapter with what it was learned from: the decisions whose hash is least, which the sample keeps longest."""
    kept = sorted(region.examples, key=place_of)[:TAGGED]
    return [option for tag in (TAG, *(f"{TAG}:{one.decision_id}" for one in kept)) for option in ("--tag", tag)]


async def _train(data: Path, file: Path, options: Sequence[str]) -> None:
    program = shutil.which("smoa", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if program is None:
        raise FailedPrecondition("train: `smoa` is not on the path; run this where `make setup` or the executor's image has put it")
    command = [program, "adapter", "train", str(data), "-o", str(file), *options]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise FailedPrecondition(f"train: {' '.join(command)} failed: {said.decode(errors='replace').strip()[-500:]}")
