"""A merge's child: made from its parents' files, stored, and tried on their examples before anybody is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc

from services.optimizer.control.gate import Finding, Gate, alone
from services.optimizer.control.likeness import Likeness
from services.optimizer.control.sketches import Refuse
from services.optimizer.policy.library_policy import AdapterView
from services.optimizer.policy.merging import Child
from smoa.adapter import Adapter, encode
from smoa.errors import SmoaError
from smoa.store import AdapterStore

Merge = Callable[[Sequence[Adapter], Sequence[float], str], Child]


class Made(NamedTuple):
    """A child in the store."""

    digest: str
    error: float
    """Share of the wanted change that it lost."""
    finding: Finding
    """What it lost on its parents' examples."""


class ChildMaker:
    """Owns nothing; what is refused or fails is not in the store afterwards."""

    def __init__(
        self, store: AdapterStore, likeness: Likeness, merge: Merge, gate: Gate | None, sign: Callable[[Adapter], Adapter]
    ) -> None:
        self._store, self._likeness, self._merge, self._gate, self._sign = store, likeness, merge, gate, sign

    async def made(self, parents: Sequence[AdapterView], merge_id: str, refuse: Refuse) -> Made | None:
        """The child; None where a parent's file cannot be read, of which `refuse` is told.

        Raises:
            SmoaError, grpc.aio.AioRpcError: the store or the executor cannot, or it cannot be merged.
        """
        files = [one for view in parents if (one := await self._likeness.file(view, refuse)) is not None]
        if len(files) < len(parents):
            return None
        weights = [1.0] * len(files)  # alike for each: by their use, the child would be the one that is asked most
        child = await asyncio.to_thread(self._merge, files, weights, merge_id)
        digest = await self._store.put(await asyncio.to_thread(lambda: encode(self._sign(child.adapter))))
        if self._gate is None:
            return Made(digest, child.error, Finding({}))
        refs = [alone(one.manifest, view.digest) for one, view in zip(files, parents, strict=True)]
        try:
            return Made(digest, child.error, await self._gate.compare(parents[0].tenant, refs, alone(child.adapter.manifest, digest)))
        except (SmoaError, grpc.aio.AioRpcError):
            await self._store.delete(digest)
            raise

    async def forget(self, digest: str) -> None:
        """It is not wanted."""
        await self._store.delete(digest)
