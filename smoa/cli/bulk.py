"""`smoa adapter import --jsonl`: many adapters at once, from a file that another tool wrote; goes on where it broke off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import click
from google.protobuf.json_format import ParseDict, ParseError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smoa.client import SmoaClient
from smoa.errors import InvalidArgument
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

BATCH = 500
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
"""Of a progress display: what, how far, and the time left."""
_ENUMS = {"kind": "ADAPTER_KIND_", "specialization": "SPECIALIZATION_"}


def parse_line(line: bytes, place: str) -> registry_pb2.ImportedAdapter:
    """An adapter of one line: the fields of `smoa.v1.Adapter`, `kind` and `specialization` in words, and `vector` or `examples`.

    Raises:
        InvalidArgument: naming the line.
    """
    try:
        fields = json.loads(line)
        vector, examples = fields.pop("vector", ()), fields.pop("examples", ())
        for key, prefix in _ENUMS.items():
            if key in fields and isinstance(fields[key], str) and not fields[key].startswith(prefix):
                fields[key] = prefix + fields[key].upper()
        adapter = ParseDict(fields, registry_pb2.Adapter(version=1, specialization=common.SPECIALIZATION_TASK))
        return registry_pb2.ImportedAdapter(adapter=adapter, vector=vector, examples=examples)
    except (ValueError, TypeError, AttributeError, ParseError) as error:
        raise InvalidArgument(place, f"is not an adapter ({error})", "see `smoa adapter import --help` for its fields") from error


def batches(path: Path, skip: int) -> Iterator[list[registry_pb2.ImportedAdapter]]:
    """The file's adapters, after so many lines."""
    batch: list[registry_pb2.ImportedAdapter] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if number > skip:
                batch.append(parse_line(line, f"{path}:{number}"))
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def import_jsonl(path: Path, router: str, tenant: str, *, files_unchecked: bool, as_json: bool) -> None:
    """Import a file. What was acknowledged is noted beside it (`<file>.imported`), so that the same command goes on after it."""
    note = path.with_name(path.name + ".imported")
    with path.open("rb") as lines:
        total = sum(1 for _ in lines)
    noted = [int(number) for number in note.read_text().split()] if note.exists() else []
    skip, missing = [*noted, 0, 0][:2]  # lines that were done before, and those of them whose file is not there
    skip = min(skip, total)

    async def work(progress: Progress) -> registry_pb2.ImportAdaptersResponse:
        task, answer = progress.add_task("importing", total=total, completed=skip), registry_pb2.ImportAdaptersResponse()
        async with SmoaClient(router=router) as client:
            async for answer in client.import_adapters(batches(path, skip), tenant, files_unchecked=files_unchecked):
                note.write_text(f"{skip + answer.durable} {missing + answer.missing}")
                progress.update(task, completed=skip + answer.durable)
        return answer

    with Progress(*COLUMNS, console=Console(stderr=True)) as progress:
        done = asyncio.run(work(progress))
    note.unlink(missing_ok=True)
    missing += done.missing
    if as_json:
        return click.echo(json.dumps({"lines": total, "done_before": skip, "added": done.added, "missing": missing}))
    click.echo(f"{total:,} lines: {done.added:,} adapters added" + (f", {skip:,} lines were done before" if skip else ""))
    if missing:
        click.echo(
            f"not there: the files of {missing:,} of them are not in the router's store. "
            "They are kept as `missing` and never routed to; put their files there, then give this command again."
        )
    return None
