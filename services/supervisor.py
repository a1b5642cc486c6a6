"""Keeps a few processes running: starts them when what they need is ready, restarts them with backoff, drains them in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

from smoa.errors import Unavailable
from smoa.service import SUPERVISOR_PID

BACKOFF_S, MAX_BACKOFF_S, HEALTHY_AFTER_S = 0.5, 10.0, 30.0
KILLED_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One process: what runs, and how to tell that it is ready (True) or not yet (False)."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Mapping[str, str] | None = None
    """What `environment` is added to; None: this process's own."""
    ready: Callable[[], Awaitable[bool]]
    ready_within_s: float = 120.0
    drain_s: float = 20.0
    restart: bool = True


class Managed:
    """One supervised process."""

    def __init__(self, spec: Spec, log: TextIO, width: int) -> None:
        self.spec, self._log, self._width = spec, log, width
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0
        self.failed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Of the running process.

        Raises:
            Unavailable: it is not running.
        """
        if self.process is None or self.process.returncode is not None:
            raise Unavailable(f"{self.spec.name}: is not running")
        return self.process.pid

    async def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            Unavailable: it did not get ready in time, or ended and is not to be restarted.
        """
        self._task = asyncio.create_task(self._supervise(), name=f"supervise-{self.spec.name}")
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Wait until the process says that it is ready (see `start`)."""
        deadline = time.monotonic() + self.spec.ready_within_s
        while not (self.process is not None and self.process.returncode is None and await self.spec.ready()):
            if self.failed.is_set():
                raise Unavailable(f"{self.spec.name}: ended while starting; its log above says why")
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.spec.name}: was not ready within {self.spec.ready_within_s:.0f} s; its log above says why")
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Ask it to drain, wait, and end it if it will not."""
        self._stopping.set()
        if self._task is None:
            return
        self._send(signal.SIGTERM)
        if not (await asyncio.wait({self._task}, timeout=self.spec.drain_s))[0]:
            self._say(f"did not drain within {self.spec.drain_s:.0f} s: killed")
            self._send(signal.SIGKILL)
            if not (await asyncio.wait({self._task}, timeout=KILLED_S))[0]:
                self._task.cancel()  # whoever it started holds its output
        with suppress(asyncio.CancelledError):
            await self._task

    def _send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def _supervise(self) -> None:
        delay_s = BACKOFF_S
        while not self._stopping.is_set():
            started = time.monotonic()
            self.process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                env={
                    **(os.environ if self.spec.inherited is None else self.spec.inherited),
                    **self.spec.environment,
                    SUPERVISOR_PID: str(os.getpid()),
                },
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the supervisor only, which drains in order
            )
            assert self.process.stdout is not None
            if self._stopping.is_set():  # asked to while this was starting
                self._send(signal.SIGTERM)
            async for line in _lines(self.process.stdout):
                self._say(line)
            code = await self.process.wait()
            if self._stopping.is_set():
                return
            if not self.spec.restart:
                self._say(f"ended with {code}")
                self.failed.set()
                return
            delay_s = BACKOFF_S if time.monotonic() - started > HEALTHY_AFTER_S else min(delay_s * 2, MAX_BACKOFF_S)
            self.restarts += 1
            self._say(f"ended with {code}; restarting in {delay_s:.1f} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    def _say(self, line: str) -> None:
        print(f"{self.spec.name:<{self._width}} | {line}", file=self._log, flush=True)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines as they come; of one that is too long, a word in its place: whoever writes must not wait for a reader that has gone."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            yield "(a line too long to show)"
            continue
        if not line:
            return
        yield line.decode(errors="replace").rstrip()


class Supervisor:
    """Processes in the order in which they start, stage by stage; they drain in the reverse order of the stages."""

    def __init__(self, stages: Sequence[Sequence[Spec]], log: TextIO | None = None) -> None:
        width = max(len(spec.name) for stage in stages for spec in stage)
        self._stages = [[Managed(spec, log or sys.stdout, width) for spec in stage] for stage in stages]
        self.processes = {managed.spec.name: managed for stage in self._stages for managed in stage}

    async def start(self) -> None:
        """Start every stage once the one before is ready; what was started is drained if one fails."""
        try:
            for stage in self._stages:
                await asyncio.gather(*(managed.start() for managed in stage))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Drain."""
        for stage in reversed(self._stages):
            await asyncio.gather(*(managed.stop() for managed in stage))

    async def failed(self) -> str:
        """Wait until a process that is not restarted ends; returns its name."""
        waits = {asyncio.create_task(managed.failed.wait()): name for name, managed in self.processes.items()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return waits[done.pop()]
        finally:
            for task in waits:
                task.cancel()
