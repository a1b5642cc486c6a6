"""Many PEFT folders into the library at once: found, read, stored, registered; done again, only what is left is done."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Final, Literal, NamedTuple

import grpc

from smoa.adapter import Adapter, encode
from smoa.cli.base_models import BaseModel
from smoa.cli.names import state_of
from smoa.client import SmoaClient
from smoa.errors import InvalidArgument, SmoaError
from smoa.example_inputs import examples_file, read_examples
from smoa.folder_kinds import CONFIG_FILE, WEIGHTS_FILE, describe
from smoa.identifiers import is_utf8, shown
from smoa.limits import MAX_EXAMPLES, MIN_EXAMPLES
from smoa.peft import content_id, import_folder
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2

CONCURRENT: Final = 8
LARGE_BYTES: Final = 2**24
"""Of a folder's weights: one that has more is imported while no other such is, for it is in memory several times over."""
Status = Literal["imported", "there", "waiting", "failed"]
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d+)")
_AWAY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
_FULL_S: Final = (1.0, 3.0, 9.0)
"""Waits after each of which an upload that found no room is tried again."""


class Result(NamedTuple):
    """What became of a folder."""

    folder: str
    status: Status
    name: str = ""
    adapter_id: str = ""
    reason: str = ""
    """Why it failed, what it waits for, or the state of one that was there already."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What all of the folders have in common."""

    tenant: str = "public"
    shared: bool = False
    tags: tuple[str, ...] = ()
    specialization: str = "task"


def find_folders(arguments: Sequence[str]) -> tuple[list[Path], list[Result]]:
    """The PEFT folders that each argument is, holds or, as a pattern, matches; and a failure for each that leads to none."""
    found: dict[Path, None] = {}
    failed = []
    for argument in arguments:
        roots = [argument] if Path(argument).exists() else sorted(glob(argument, recursive=True))
        here = [folder for root in roots for folder in _folders_in(Path(os.path.abspath(root)))]
        if not here:
            failed.append(Result(argument, "failed", reason="; ".join(describe(Path((roots or [argument])[0])))))
        found |= dict.fromkeys(here)
    return list(found), failed


def _folders_in(root: Path) -> Iterator[Path]:
    """PEFT folders in a tree, in order. What is below one is not looked at: checkpoints of its training, mostly. Of checkpoints beside each
    other the last is taken.
    """
    for path, folders, files in os.walk(root):
        if CONFIG_FILE in files:
            folders.clear()
            yield Path(path)
            continue
        steps = {name: int(found[1]) for name in folders if (found := _CHECKPOINT.fullmatch(name))}
        steps = {name: step for name, step in steps.items() if Path(path, name, CONFIG_FILE).is_file()}
        last = max(steps, key=lambda name: steps[name], default="")
        folders[:] = sorted(name for name in folders if name not in steps or name == last)


def names_of(folders: Sequence[Path]) -> dict[Path, str]:
    """Names for the folders' adapters: their own (a checkpoint's is its run's), and before it, where several are called alike, what tells
    them apart.
    """
    names = {folder: (_CHECKPOINT.fullmatch(folder.name) and folder.parent.name) or folder.name for folder in folders}
    for parts in range(2, max((len(folder.parts) for folder in folders), default=0) + 1):
        counts = Counter(names.values())
        names |= {folder: "/".join(folder.parts[-parts:]) for folder, name in names.items() if counts[name] > 1}
    return names


class FolderImport:
    """Brings folders into the library of one router.

    An adapter's id is made of its tenant, base model and content, so what was done before is known, wherever it broke off: a file that is
    in the store already is the same file, and a registration that was made is found.
    """

    def __init__(
        self,
        client: SmoaClient,
        base: BaseModel,
        labels: Labels,
        examples: Sequence[str] = (),
        *,
        any_base: bool = False,
        replace: bool = False,
        sign: Callable[[Adapter], Adapter] = lambda adapter: adapter,
    ) -> None:
        self._client, self._base, self._labels, self._examples = client, base, labels, examples
        self._any_base, self._replace, self._sign, self._large = any_base, replace, sign, asyncio.Lock()

    async def run(self, names: Mapping[Path, str], done: Callable[[Result], None]) -> None:
        """Import all of the folders, several at a time; `done` hears of each. A router that is away, or whose store is full, ends it.

        Raises:
            grpc.aio.AioRpcError: it is.
        """
        waiting = deque(names.items())
        stopped: list[Exception] = []

        async def work() -> None:
            while waiting and not stopped:
                folder, name = waiting.popleft()
                try:
                    async with self._large if _weight_bytes(folder) > LARGE_BYTES else nullcontext():
                        done(await self._import(folder, name))
                except (InvalidArgument, OSError) as error:
                    done(Result(str(folder), "failed", name, reason=str(error)))
                except SmoaError as error:
                    stopped.append(error)  # raised once all of them have let go of the client
                except grpc.aio.AioRpcError as error:
                    if error.code() in _AWAY:
                        stopped.append(error)
                    else:
                        done(Result(str(folder), "failed", name, reason=error.details() or error.code().name))

        await asyncio.gather(*(work() for _ in range(CONCURRENT)))
        if stopped:
            raise stopped[0]

    async def _import(self, folder: Path, name: str) -> Result:
        labels = self._labels
        if not is_utf8(name):
            raise InvalidArgument("folder", "has a name that is not UTF-8", "rename it, or import it alone with --name")
        adapter_id = await asyncio.to_thread(content_id, folder, labels.tenant, self._base.fingerprint)
        kept = await self._kept(adapter_id)
        if kept is not None and kept.state != common.ADAPTER_STATE_MISSING:
            return Result(str(folder), "there", name, adapter_id, state_of(kept))
        data = await asyncio.to_thread(self._file_of, folder, name, adapter_id)
        path = None if self._examples else examples_file(folder)
        examples = self._examples if path is None else await asyncio.to_thread(read_examples, path)
        if len(examples) < MIN_EXAMPLES:
            too_few = f"{path.name} holds {len(examples)} distinct inputs; " if path else ""
            wanted = f"add {folder / 'examples.txt'}, {MIN_EXAMPLES} to {MAX_EXAMPLES} inputs, one a line"
            return Result(str(folder), "waiting", name, adapter_id, too_few + wanted)
        await self._upload(data, examples)
        return Result(str(folder), "imported", name, adapter_id)

    async def _upload(self, data: bytes, examples: Sequence[str]) -> None:
        for wait_s in (*_FULL_S, None):
            try:
                await self._client.upload(data, examples, self._labels.tenant, replace=self._replace)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or wait_s is None:
                    raise
                await asyncio.sleep(wait_s)
            else:
                return

    async def _kept(self, adapter_id: str) -> registry_pb2.Adapter | None:
        """None where there is no such adapter."""
        try:
            return await self._client.get(adapter_id, self._labels.tenant)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise

    def _file_of(self, folder: Path, name: str, adapter_id: str) -> bytes:
        labels = self._labels
        adapter = import_folder(
            folder,
            self._base.fingerprint,
            adapter_id=adapter_id,
            name=name,
            tenant=labels.tenant,
            shared=labels.shared,
            tags=labels.tags,
            specialization=labels.specialization,
        )
        self._base.check(adapter, any_name=self._any_base)
        return encode(self._sign(adapter))


def _weight_bytes(folder: Path) -> int:
    file = folder / WEIGHTS_FILE
    return file.stat().st_size if file.is_file() else 0


_GONE: Final = {
    "retired": "bring it back with `smoa adapter restore {}`",
    "purged": "to have it again, write a file of it with --output, which gives it a new id, and push that",
}


def summary(results: Sequence[Result], seconds: float) -> str:
    """How many, and line by line what is left to do."""
    counts = Counter(result.status for result in results)
    states = Counter(result.reason for result in results if result.status == "there" and result.reason != "active")
    there = f" ({', '.join(f'{count} {state}' for state, count in states.items())})" if states else ""
    lines = [
        f"{len(results):,} folders in {seconds:.1f} s: {counts['imported']:,} imported, {counts['there']:,} there already{there}, "
        f"{counts['waiting']:,} waiting for examples, {counts['failed']:,} failed"
    ]
    for status in ("waiting", "failed"):
        lines += [f"{status}: {one.folder}: {one.reason}" for one in results if one.status == status]
    for one in results:
        if one.status == "there" and one.reason in _GONE:
            lines.append(f"{one.reason}: {one.folder}: {_GONE[one.reason].format(one.adapter_id)}")
    if counts["waiting"] or counts["failed"]:
        lines.append("The same command again does what is left.")
    return shown("\n".join(lines))
