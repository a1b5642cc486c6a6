"""`smoa router evaluate`: how well a library tells its adapters apart, before it serves."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import numpy as np
from rich.console import Console

from services.router.catalogue.description import examples_of
from services.router.catalogue.pagination import pages_of_adapters
from services.router.catalogue.records import AdapterRecord, Reach, Scope
from services.router.catalogue.sqlite_catalogue import SqliteReader
from services.router.evaluation_page import page_of
from services.router.learning.evaluation import Known, LibraryReport, evaluate
from services.router.learning.pool_fit import MAX_FITTED
from services.router.library import embedder_of, qdrant_catalogue
from services.router.library_commands import data_option, settings_of
from services.router.settings import RouterSettings
from smoa.cli.options import address_option
from smoa.cli.tables import show_table
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.identifiers import DEFAULT_TENANT

if TYPE_CHECKING:
    from services.router.catalogue.qdrant_catalogue import QdrantCatalogue

_SHOWN: Final = 20
_PAGE: Final = 512
_THERE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("evaluate")
@address_option("--qdrant", "SMOA_QDRANT_URL", "catalogue", lambda stack: stack.qdrant, "", "Of this Qdrant server")
@data_option
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Its adapters, and those that are shared.")
@click.option("--base-model", default="", help="Only adapters of this one, by how its fingerprint begins; default: the most used.")
@click.option("--log", "logs", multiple=True, type=_THERE, help="Outcomes that `smoa router log` wrote.")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page with a map and a matrix.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def evaluate_command(
    qdrant: str, data: str, tenant: str, base_model: str, logs: tuple[Path, ...], page: Path | None, as_json: bool
) -> None:
    """Judge a library by its own examples: which adapters are found, which are confused, which need examples or a tag.

    Each example is left out in turn and routed by what the others tell. The router may run meanwhile; nothing is changed.
    """
    settings = settings_of(qdrant, data)
    records, examples, base = asyncio.run(_read(settings, tenant, base_model))
    names = {record.adapter_id: Known(record.name, record.tags) for record in records}
    with Console(stderr=True).status(f"judging {len(examples):,} adapters"):
        report = evaluate(examples, names, settings.in_scope_loss, len(records) - len(examples))
    succeeded = _succeeded(logs)
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(page_of(report, f"{tenant}'s adapters of {base[:12]}"))
    if as_json:
        click.echo(json.dumps(_as_json(report, succeeded, base)))
        return
    _show(report, succeeded)
    click.echo(f"the page is {page}" if page is not None else "`--page FILE` writes a map of them, and who is taken for whom")


async def _read(settings: RouterSettings, tenant: str, base_model: str) -> tuple[list[AdapterRecord], dict[str, np.ndarray], str]:
    """Records of one base model, and the vectors of examples of those that have any.

    Raises:
        FailedPrecondition: no library there, or none of its adapters has examples.
        InvalidArgument: no base model, or several, begin so.
    """
    async with AsyncExitStack() as stack:
        source: QdrantCatalogue | SqliteReader
        if settings.qdrant_url:
            views = await embedder_of(settings)
            stack.push_async_callback(views.close)
            source = qdrant_catalogue(settings, views.dimension)
            stack.push_async_callback(source.close)
        else:
            folder = settings.data_folder / "index"
            if not folder.is_dir():
                raise FailedPrecondition(f"data: {folder.absolute()} is not there; name a router's data folder with --data")
            source = SqliteReader(folder)
            stack.callback(source.close)
        everyone: list[AdapterRecord] = []
        async for page in pages_of_adapters(source, Scope(tenant=tenant), _PAGE):
            everyone += page
        records, base = _of_one_base(everyone, base_model, tenant)
        pools = Reach(tenant=tenant, base_model=base).pools
        examples = await examples_of(source, await source.described(pools, MAX_FITTED))
    if not examples:
        raise FailedPrecondition(f"examples: none of {len(records):,} adapters of {tenant} has any; import or push them with examples")
    known = {record.adapter_id for record in records}  # one that was registered since has a record at the next time
    return records, {one: examples[one] for one in sorted(examples) if one in known}, base


def _of_one_base(everyone: list[AdapterRecord], base_model: str, tenant: str) -> tuple[list[AdapterRecord], str]:
    counts = Counter(record.base_model for record in everyone if record.base_model.startswith(base_model))
    if base_model and len(counts) != 1:
        known = ", ".join(sorted({record.base_model[:12] for record in everyone})) or "none"
        raise InvalidArgument("base-model", f"{len(counts)} of the library's begin with {base_model!r}", f"name one of {known}")
    if not counts:
        raise FailedPrecondition(f"tenant: {tenant} has no adapters here; name another with --tenant, or another library with --data")
    base = counts.most_common(1)[0][0]
    return [record for record in everyone if record.base_model == base], base


def _succeeded(logs: tuple[Path, ...]) -> dict[str, tuple[int, int]]:
    """Successes and outcomes of each adapter as the first of a decision, from logs."""
    good, tried = Counter[str](), Counter[str]()
    for path in logs:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                one = json.loads(line)
                first = one["decision"]["adapters"][0]["adapterId"] if one["decision"].get("adapters") else ""
                success = bool(one["outcome"].get("success", False))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InvalidArgument("log", f"line {number} of {path} is not one of `smoa router log`", "write it again") from error
            if first:
                tried[first] += 1
                good[first] += success
    return {adapter_id: (good[adapter_id], count) for adapter_id, count in tried.items()}


def _as_json(report: LibraryReport, succeeded: dict[str, tuple[int, int]], base: str) -> dict[str, object]:
    figures: dict[str, object] = {
        key: value for key, value in asdict(report).items() if key not in ("adapters", "confusion", "places", "around")
    }
    adapters = [
        {**asdict(one), "successes": succeeded.get(one.adapter_id, (0, 0))[0], "outcomes": succeeded.get(one.adapter_id, (0, 0))[1]}
        for one in report.adapters
    ]
    return {"base_model": base, **figures, "adapters": adapters}


def _show(report: LibraryReport, succeeded: dict[str, tuple[int, int]]) -> None:
    rows = []
    for one in sorted(report.adapters, key=lambda one: one.first)[:_SHOWN]:
        good, tried = succeeded.get(one.adapter_id, (0, 0))
        rows.append(
            [
                one.name,
                str(one.examples),
                f"{one.first:.0%}",
                f"{one.among_three:.0%}",
                f"{one.unanswered:.0%}",
                f"{good} of {tried}" if tried else "",
                ", ".join(f"{name} {share:.0%}" for name, share in one.confused_with),
                one.advice,
            ]
        )
    count = len(report.adapters)
    least = f"the {_SHOWN} of {count:,} adapters that are right least often" if count > _SHOWN else f"{count} adapters"
    columns = ("adapter", "examples", "first", "among three", "unanswered", "succeeded", "taken for", "what would help")
    show_table(columns, rows, title=f"{least}, each example left out in turn", prose={"taken for", "what would help"})
    click.echo(f"right first {report.first:.1%}, among three {report.among_three:.1%}; calibration error {report.calibration_error:.3f}")
    if report.can_tell:
        strangers = f"{report.strangers_unanswered:.1%} of those of an adapter that is not there"
        click.echo(f"unanswered: {report.unanswered:.1%} of their own queries, {strangers}")
    else:
        click.echo("too few examples to tell what is out of scope: every query is answered")
    if report.without_examples:
        click.echo(f"{report.without_examples:,} adapters have no examples, and are ranked by their vectors alone")
