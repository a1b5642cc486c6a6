"""Telling the routers what this executor holds, so that they can send a query to where its adapters are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from services.executor.engine.port import EngineState
from smoa.errors import SmoaError
from smoa.events import EXECUTORS, event
from smoa.publisher import EventPublisher
from smoa.tasks import begin, end
from smoa.v1 import common_pb2 as common
from smoa.v1 import events_pb2

_log = logging.getLogger(__name__)
MAX_BEHIND: Final = 1000
"""With so many events waiting for Kafka, nobody would read a status while it is true."""


class StatusReporter:
    """Owns the task that reports."""

    def __init__(
        self,
        state: Callable[[], EngineState],
        publisher: EventPublisher,
        address: str,
        base_model: str,
        base_model_name: str,
        shape: common.ModelShape,
        interval_s: float,
    ) -> None:
        self._state, self._publisher, self._address = state, publisher, address
        self._base_model, self._base_model_name = base_model, base_model_name
        self._shape, self._interval_s = shape, interval_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Report now, and every few seconds."""
        self._task = begin(self._run(), "status-reporter")

    async def stop(self) -> None:
        """Say that it leaves, and report no more."""
        if self._task is not None:
            await end(self._task)
            self._report(leaving=True)

    async def _run(self) -> None:
        while True:
            self._report()
            await asyncio.sleep(self._interval_s)

    def _report(self, *, leaving: bool = False) -> None:
        if self._publisher.waiting > MAX_BEHIND:
            return
        state = self._state()
        status = events_pb2.ExecutorStatus(
            address=self._address,
            base_model=self._base_model,
            base_model_name=self._base_model_name,
            free_slots=state.slots - state.slots_used,
            active=[one.ref.adapter_id for one in state.residents],
            hosted=[one.adapter_id for one in state.hosted],
            running=state.running,
            waiting=state.waiting,
            rows=state.rows,
            reported_at_us=time.time_ns() // 1000,
            leaving=leaving,
            model=self._shape,
        )
        try:
            self._publisher.publish([event(EXECUTORS, self._address, status)])
        except SmoaError as error:  # the spool is full or cannot be written; the next status is as good as this one
            _log.warning("no status was sent: %s", error)
