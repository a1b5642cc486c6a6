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
from pathlib import Path
from typing import TextIO

from smoa.errors import Unavailable
from smoa.service import SUPERVISOR_PID

BACKOFF_S, MAX_BACKOFF_S, HEALTHY_AFTER_S = 0.5, 10.0, 30.0
KILLED_S = 5.0
MOST_STARTS = 3
"""A process that was never ready and has ended so often is given up."""
LOOK_S, TELL_S = 1.0, 10.0
BUSY = 0.05
"""Share of a processor that a process uses that computes and does not only look whether something is there."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One process: what runs, and how to tell that it is ready (True) or not yet (False)."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Mapping[str, str] | None = None
    """What `environment` is added to; None: this process's own."""
    held: Sequence[int] = ()
    """File descriptors that stay open in it."""
    ready: Callable[[], Awaitable[bool]]
    quiet_s: float = 120.0
    """It is given up when it is not ready and has neither printed a line nor computed for so long."""
    drain_s: float = 20.0


class _Progress:
    """When a process that starts was last seen to do something: it printed a line, or computed."""

    def __init__(self, now: float) -> None:
        self.at, self.computed_s, self._looked_at = now, 0.0, now

    def due(self, now: float) -> bool:
        """True when it is time to look: finding the processor time costs a millisecond."""
        return now - self._looked_at > LOOK_S

    def look(self, now: float, computed_s: float, line_at: float) -> None:
        """Take the processor time that it has used so far, and when its last line came."""
        used_s = computed_s - self.computed_s
        if used_s < 0 or used_s > BUSY * (now - self._looked_at):  # less than before: it was started again
            self.at = now
        self.at, self.computed_s, self._looked_at = max(self.at, line_at), computed_s, now


class Managed:
    """One supervised process."""

    def __init__(self, spec: Spec, log: TextIO, width: int) -> None:
        self.spec, self._log, self._width = spec, log, width
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0
        self._was_ready = False
        self._line, self._line_at = "", 0.0
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
            Unavailable: it makes no progress, or ends again and again.
        """
        self._task = asyncio.create_task(self._supervise(), name=f"supervise-{self.spec.name}")
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Wait until the process says that it is ready (see `start`); say now and then that it is not yet."""
        began = told_at = time.monotonic()
        progress = _Progress(began)
        while not (self.process is not None and self.process.returncode is None and await self.spec.ready()):
            now = time.monotonic()
            if not self._was_ready and self.restarts >= MOST_STARTS:
                raise Unavailable(f"{self.spec.name}: ended {self.restarts} times while starting; its last line: {self._line or '(none)'}")
            if progress.due(now):
                progress.look(now, _computed_s(self.process.pid) if self.process is not None else 0.0, self._line_at)
            if now - progress.at > self.spec.quiet_s:
                still = f"was not ready after {now - began:.0f} s, and made no progress for {now - progress.at:.0f} s"
                raise Unavailable(f"{self.spec.name}: {still}; its log above says why")
            if now - told_at > TELL_S:
                told_at = now
                self._say(f"starting for {now - began:.0f} s now, {progress.computed_s:.0f} s of processor time")
            await asyncio.sleep(0.1)
        self._was_ready = True

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
                pass_fds=self.spec.held,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the supervisor only, which drains in order
            )
            assert self.process.stdout is not None
            if self._stopping.is_set():  # asked to while this was starting
                self._send(signal.SIGTERM)
            async for line in _lines(self.process.stdout):
                self._line, self._line_at = line, time.monotonic()
                self._say(line)
            code = await self.process.wait()
            if self._stopping.is_set():
                return
            delay_s = BACKOFF_S if time.monotonic() - started > HEALTHY_AFTER_S else min(delay_s * 2, MAX_BACKOFF_S)
            self.restarts += 1
            self._say(f"ended with {code}; restarting in {delay_s:.1f} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    def _say(self, line: str) -> None:
        print(f"{self.spec.name:<{self._width}} | {line}", file=self._log, flush=True)


def _computed_s(session: int) -> float:
    """Processor time of the living processes of a session, in seconds; 0 where there is no /proc."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(int(one) for one in fields[11:15])  # its own and its ended children's, in user and system mode
    return ticks / os.sysconf("SC_CLK_TCK")


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
