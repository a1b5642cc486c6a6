"""Sketches of adapters' files, each made once: it is kept in the store beside the file, for every worker that starts, and goes with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence, Set
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from services.optimizer.policy.merging import SKETCH_SIDE, SKETCH_VERSION, random_sketch
from smoa.adapter import Adapter
from smoa.errors import NotFound, ResourceExhausted, Unavailable
from smoa.store import AdapterStore
from smoa.v1.state_pb2 import KeptSketch

_log = logging.getLogger(__name__)
Refuse: TypeAlias = Callable[[str], None]
AT_ONCE: Final = 256
"""Sketches that are asked of the store together."""
LEAST_KEPT: Final = 1000
"""Sketches of those that are not compared now, at least."""


class HasFile(Protocol):
    """An adapter, and where its file is."""

    @property
    def adapter_id(self) -> str:
        """Its id."""

    @property
    def digest(self) -> str:
        """Of its file."""


Read: TypeAlias = Callable[[HasFile, Refuse], Awaitable[Adapter | None]]


class Sketched(NamedTuple):
    """What is kept of a file between passes."""

    layers: tuple[int, ...]
    sketch: NDArray[np.int8]
    """In parts of its largest number: a quarter of the room, and a cosine that is a hundredth off at most."""


class Sketches:
    """Those that were asked for of late, by the file's digest."""

    def __init__(self, store: AdapterStore, read: Read) -> None:
        """`read` reads an adapter's file; None where it cannot be, of which `refuse` is told."""
        self._store, self._read = store, read
        self._known: dict[str, Sketched] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._known

    def __getitem__(self, digest: str) -> Sketched:
        return self._known[digest]

    async def find(self, adapters: Sequence[HasFile], refuse: Refuse) -> None:
        """Have those of the adapters: from the store, or made of their files, as far as these can be read."""
        unknown = iter({one.digest: one for one in adapters if one.digest not in self._known}.items())
        while some := dict(islice(unknown, AT_ONCE)):
            for one, kept in zip(some.values(), await asyncio.gather(*map(self._kept, some)), strict=True):
                if (sketched := kept or await self._made(one, refuse)) is not None:
                    self._known[one.digest] = sketched

    async def _kept(self, digest: str) -> Sketched | None:
        try:
            kept = KeptSketch.FromString(await self._store.get_object(self._store.sketch_key(digest)))
        except (NotFound, Unavailable, DecodeError):  # it is made again; whether the store can be read at all, the file will tell
            return None
        if kept.version != SKETCH_VERSION or len(kept.values) != SKETCH_SIDE**2:
            return None
        return Sketched(tuple(kept.layers), np.frombuffer(kept.values, np.int8))

    async def _made(self, one: HasFile, refuse: Refuse) -> Sketched | None:
        if (adapter := await self._read(one, refuse)) is None:
            return None
        made = Sketched(adapter.manifest.layers, _in_parts(await asyncio.to_thread(random_sketch, adapter)))
        kept = KeptSketch(version=SKETCH_VERSION, layers=made.layers, values=made.sketch.tobytes())
        try:
            await self._store.put_object(self._store.sketch_key(one.digest), kept.SerializeToString())
        except (ResourceExhausted, Unavailable) as error:  # it is work that is saved, and nothing that is lost
            _log.warning("the sketch of %s is not kept, and is made again after a start: %s", one.adapter_id, error)
        return made

    def forget(self, wanted: Set[str]) -> None:
        """Who is not asked for a while comes back: as many others are kept, the oldest go first."""
        others = [digest for digest in self._known if digest not in wanted]
        for digest in others[: max(0, len(others) - len(wanted) - LEAST_KEPT)]:
            del self._known[digest]


def _in_parts(sketch: NDArray[np.float32]) -> NDArray[np.int8]:
    parts: NDArray[np.int8] = np.rint(sketch * (127 / max(float(np.abs(sketch).max(initial=0.0)), 1e-9))).astype(np.int8)
    return parts
