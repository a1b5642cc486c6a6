"""`smoa router rebuild` and `reembed`: a library that is made again, of what is in the store, or of another embedder."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from services.router.catalogue.port import STAMP_ID, Catalogue
from services.router.catalogue.reembedding import Reembedded, Source, reembed, told
from services.router.catalogue.registration_log import RegistrationLog, rebuild
from services.router.catalogue.sqlite_catalogue import SqliteCatalogue, SqliteReader, locked
from services.router.catalogue.stamp import stamped
from services.router.library import embedder_of, open_catalogue, qdrant_catalogue
from services.router.settings import RouterSettings
from smoa.cli.options import address_of, address_option, find_stack_of_command, store_option
from smoa.embedding.views import Views
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.settings import from_environment
from smoa.stack import DEFAULT_FOLDER
from smoa.store import AdapterStore

data_option = address_option(
    "--data",
    "SMOA_ROUTER_DATA_FOLDER",
    "data",
    lambda stack: str(stack.router_data),
    f"{DEFAULT_FOLDER}/router",
    "A router's data folder, where there is no server",
)


@click.command("rebuild")
@store_option
@address_option("--qdrant", "SMOA_QDRANT_URL", "catalogue", lambda stack: stack.qdrant, "", "Into this Qdrant server")
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def rebuild_command(store: str, qdrant: str, data: str, as_json: bool) -> None:
    """Make a lost index again from the store, where every registration is written down.

    The index must be empty. Counts of uses and outcomes come back with the optimizer's next report.
    """
    settings = replace(settings_of(qdrant, data), store=store)
    _check_folders("" if settings.qdrant_url else data, store)
    done = asyncio.run(_rebuild(settings))
    where = settings.qdrant_url or data
    click.echo(json.dumps({"writes": done, "index": where}) if as_json else f"{done:,} writes are in the index again, in {where}")


def settings_of(qdrant: str, data: str) -> RouterSettings:
    """A router's, as the environment has them (the key of a server, its ports and prefix), of the library that was named."""
    if address_of("data").source is ParameterSource.COMMANDLINE and address_of("catalogue").source is not ParameterSource.COMMANDLINE:
        qdrant = ""  # who names a folder means it
    return replace(from_environment(RouterSettings, os.environ, "SMOA_ROUTER_"), qdrant_url=qdrant, data_folder=Path(data))


def _check_folders(data: str, store: str) -> None:
    """Refuse folders that do not exist: making them would answer with an empty index.

    Raises:
        FailedPrecondition: naming the folder, and where a stack was looked for.
    """
    stack = find_stack_of_command()
    there = "runs" if stack.stack and stack.stack.running else "is stopped" if stack.stack else "is not there"
    remedy = f"the local stack that was looked for in {stack.folder} {there}; name its folder with --stack, or give --data and --store"
    if data and stack.stack and stack.stack.running and Path(data).absolute() == stack.stack.router_data:
        raise FailedPrecondition(f"data: the router of the stack in {stack.folder} uses {data} ({stack.stack}); stop it first")
    # The router's own folder may be what was lost, as long as its stack's is there.
    if data and not Path(data).is_dir() and not (stack.stack and Path(data).absolute() == stack.stack.router_data):
        raise FailedPrecondition(f"data: {Path(data).absolute()} ({address_of('data').came_from()}) does not exist; {remedy}")
    if "://" not in store and not Path(store).is_dir():
        raise FailedPrecondition(f"store: {Path(store).absolute()} ({address_of('store').came_from()}) does not exist; {remedy}")


async def _rebuild(settings: RouterSettings) -> int:
    async with AsyncExitStack() as stack:
        embedder = await _embedder(settings, stack)
        log = RegistrationLog(AdapterStore(settings.store), embedder=embedder.name)
        if not await log.names():
            raise FailedPrecondition(
                f"store: {settings.store} holds no registration, so there is nothing to make an index from; name the right one with --store"
            )
        catalogue = await open_catalogue(settings, embedder.dimension)
        stack.push_async_callback(catalogue.close)
        done = 0
        with _progress() as progress:
            task = progress.add_task("writes", total=None)
            async for done, total in rebuild(log, catalogue, embedder):
                progress.update(task, completed=done, total=total)
        # Last: routers that have a copy of this library go on by it until this one is whole.
        await stamped(catalogue, embedder.name, embedder.dimension, await log.library_id())
    return done


def _progress() -> Progress:
    return Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True))


@click.command("reembed")
@address_option("--qdrant", "SMOA_QDRANT_URL", "catalogue", lambda stack: stack.qdrant, "", "Of this Qdrant server")
@click.option("--into", default="", help="On a server: the prefix of the new library's collections.")
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def reembed_command(qdrant: str, into: str, data: str, as_json: bool) -> None:
    """Make a library's vectors anew with another embedder, which SMOA_ROUTER_EMBEDDER names, while the old library serves.

    On a server the new library has a prefix of its own: give it to the routers (SMOA_QDRANT_PREFIX) with the embedder, and run this again
    when all have it, for what was written meanwhile. In a folder, run it while the router runs, which does most of it, and again when it
    is stopped, which puts the new one in its place; the old one is kept as `index-before`.
    """
    settings = settings_of(qdrant, data)
    done, where = asyncio.run(_on_server(settings, into) if settings.qdrant_url else _in_folder(settings))
    if as_json:
        click.echo(json.dumps({**done._asdict(), "next": where}))
    else:
        click.echo("\n".join([*told(done), where]))


async def _on_server(settings: RouterSettings, into: str) -> tuple[Reembedded, str]:
    if into in ("", settings.qdrant_prefix):
        raise InvalidArgument("into", f"{into!r} is not a prefix of another library", f"name one that is not {settings.qdrant_prefix}")
    async with AsyncExitStack() as stack:
        embedder = await _embedder(settings, stack)
        source = qdrant_catalogue(settings, embedder.dimension)
        stack.push_async_callback(source.close)
        target = await open_catalogue(replace(settings, qdrant_prefix=into), embedder.dimension)
        stack.push_async_callback(target.close)
        stamp = await source.stamp()
        _check_other("" if stamp is None else str(stamp.body.get("embedder", "")), embedder)
        done = await _reembedded(source, target, embedder, alone=False)
    return done, f"give the routers SMOA_QDRANT_PREFIX={into} with this embedder, then run this again for what was written meanwhile"


async def _in_folder(settings: RouterSettings) -> tuple[Reembedded, str]:
    folder, following, before = (settings.data_folder / name for name in ("index", "index-next", "index-before"))
    if not folder.is_dir():
        raise FailedPrecondition(f"data: {folder.absolute()} is not there; name the router's data folder with --data")
    async with AsyncExitStack() as stack:
        embedder = await _embedder(settings, stack)
        lock = locked(folder)
        with lock or nullcontext():
            async with AsyncExitStack() as opened:  # closed before the folders move: SQLite knows its files by their paths
                source = SqliteReader(folder)
                opened.callback(source.close)
                stamp = source.get_document("stamp", STAMP_ID)
                _check_other("" if stamp is None else str(stamp.body["embedder"]), embedder)
                target = SqliteCatalogue(following, embedder.dimension)
                opened.push_async_callback(target.close)
                done = await _reembedded(source, target, embedder, alone=True)
            if lock is None:
                return done, f"the new library is {following}; stop the router and run this again, which puts it in the old one's place"
            shutil.rmtree(before, ignore_errors=True)
            folder.rename(before)
            following.rename(folder)
    return done, f"the new library is in its place; the old one is {before}. Start the router with this embedder"


async def _embedder(settings: RouterSettings, stack: AsyncExitStack) -> Views:
    embedder = await embedder_of(settings)
    stack.push_async_callback(embedder.close)
    return embedder


def _check_other(name: str, embedder: Views) -> None:
    if name in ("", embedder.name):
        problem = f"is of {embedder.name!r} already" if name else "has no stamp, so there is none"
        raise FailedPrecondition(f"index: the library {problem}; name another embedder with SMOA_ROUTER_EMBEDDER, or the right library")


async def _reembedded(source: Source, target: Catalogue, embedder: Views, *, alone: bool) -> Reembedded:
    done = Reembedded()
    with _progress() as progress:
        task = progress.add_task("adapters", total=None)
        async for done in reembed(source, target, embedder, alone=alone):
            progress.update(task, completed=done.read)
    return done
