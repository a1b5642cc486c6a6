"""Which executor to send a query to. Pure.

By residency first: an executor that has the adapters in its slots computes at once, one with a free slot loads them from its host memory or
the store, one without must put others out. Then by load, in quarters of its rows. Among equals, rendezvous hashing (Thaler and Ravishankar
1998) of the adapters: the same adapters go to the same executor, and few move when executors come and go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from smoa.errors import InvalidArgument, Unavailable
from smoa.model_shape import ModelShape

STALE_S: Final = 10.0
"""An executor that did not report for so long is not sent anything."""
MAX_EXECUTORS: Final = 10_000
_ACTIVE, _FREE_SLOT, _HOSTED = 4.0, 2.0, 1.0


@dataclass(frozen=True)
class Executor:
    """What an executor said of itself."""

    address: str
    base_model: str
    free_slots: int
    active: frozenset[str]
    hosted: frozenset[str]
    load: float
    """Requests that run or wait, by its rows."""
    reported_at_us: int
    shape: ModelShape | None = None
    """What an adapter must fit, if it said so."""
    base_model_name: str = ""
    """What people call its base model."""

    def residency(self, adapter_ids: Sequence[str]) -> float:
        """The better, the sooner it can compute with the adapters."""
        missing, total = 0, 0.0
        for adapter_id in adapter_ids:
            if adapter_id in self.active:
                total += _ACTIVE
            else:
                missing += 1
                total += _FREE_SLOT * (missing <= self.free_slots) + _HOSTED * (adapter_id in self.hosted)
        return total


class ExecutorDirectory:
    """Executors by address, as they last reported."""

    def __init__(self) -> None:
        self._executors: dict[str, Executor] = {}
        self._base_models: frozenset[str] = frozenset()
        """Fingerprints of those that are there, or were a moment ago."""

    def __len__(self) -> int:
        return len(self._executors)

    def report(self, executor: Executor, now_us: int) -> None:
        """Take a status, unless a later one is known, and forget executors that fell silent."""
        if executor.reported_at_us > now_us:  # a clock that is ahead must not keep it fresh for ever, nor hide what it reports later
            executor = replace(executor, reported_at_us=now_us)
        known = self._executors.pop(executor.address, None)
        self._executors[executor.address] = known if known and known.reported_at_us > executor.reported_at_us else executor
        if executor.base_model not in self._base_models:
            self._base_models = frozenset(one.base_model for one in self._executors.values())
        for oldest in tuple(islice(self._executors.values(), 2)):  # in the order of their reports
            if self._is_stale(oldest, now_us) or len(self) > MAX_EXECUTORS:
                del self._executors[oldest.address]

    @staticmethod
    def _is_stale(executor: Executor, now_us: int) -> bool:
        return now_us - executor.reported_at_us >= STALE_S * 1e6

    def leave(self, address: str) -> None:
        """It drains."""
        self._executors.pop(address, None)

    def shapes_of(self, base_model: str, now_us: int) -> list[ModelShape]:
        """What an adapter of a base model must fit to be loaded by whichever live executor a query is sent to."""
        live = [one.shape for one in self._executors.values() if one.base_model == base_model and not self._is_stale(one, now_us)]
        shapes: list[ModelShape] = []
        for shape in live:  # mostly one and the same
            if shape is not None and shape not in shapes:
                shapes.append(shape)
        return shapes

    def listed(self, now_us: int) -> list[Executor]:
        """Those that reported of late."""
        return [one for one in self._executors.values() if not self._is_stale(one, now_us)]

    def base_model(self, asked: str, now_us: int) -> str:
        """The fingerprint of a base model: itself, or by its name; of an empty one, the only one that live executors run.

        Raises:
            InvalidArgument: empty, and they run several.
            Unavailable: empty, and none has told of itself.
        """
        if asked in self._base_models:
            return asked
        names = {one.base_model: one.base_model_name for one in self.listed(now_us)}
        if asked:
            return next((base_model for base_model, name in names.items() if name == asked), asked)
        if not names:
            raise Unavailable(
                "base_model: is empty, and no executor has told of itself; start one, wait until it is ready, or name a base model", 2.0
            )
        if len(names) > 1:
            known = ", ".join(sorted(name or base_model for base_model, name in names.items()))
            raise InvalidArgument(
                "base_model", f"is empty, and executors run {known}", "name one, by its name or the fingerprint that GetStatus shows"
            )
        return next(iter(names))

    def choose(self, base_model: str, adapter_ids: Sequence[str], now_us: int) -> str:
        """Address of the executor to call; empty when none reported of late. Those with a full queue only when all have one."""
        there = [one for one in self._executors.values() if one.base_model == base_model and not self._is_stale(one, now_us)]
        there = [one for one in there if one.load < 2] or there
        if not there:
            return ""
        key = "/".join(sorted(adapter_ids))
        return max(there, key=lambda one: (one.residency(adapter_ids), -int(4 * one.load), _weight(one.address, key))).address


def _weight(address: str, key: str) -> bytes:
    return hashlib.blake2b(f"{address}|{key}".encode(), digest_size=8).digest()
