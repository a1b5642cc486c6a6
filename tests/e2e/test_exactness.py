"""Every event is counted once, whoever is killed, paused or restarted meanwhile. `benchmarks.optimizer` runs the long version."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.kafka_support import HOME, SKIP_REASON, broker_of, until
from tests.stream_support import ChaosReport, Faults, Traffic, Worker, chaos

EVENTS, PER_S = 9_000, 600.0


async def _run(bootstrap: str, folder: Path, break_broker: Callable[[], Awaitable[None]], faults: int) -> ChaosReport:
    workers = []
    try:
        for name in ("first", "second"):
            workers.append(worker := Worker(bootstrap, folder, name))
            await until(f"the {name} worker", 60, worker.is_ready)
        return await chaos(bootstrap, Traffic(7), Faults(workers, break_broker, random.Random(7)), EVENTS, faults, PER_S)
    finally:
        for worker in workers:
            worker.stop()


@pytest.mark.timeout(560)
@pytest.mark.parametrize("nodes", [0, 1, 3])
async def test_worker_and_broker_faults(nodes: int, tmp_path: Path) -> None:
    """0 nodes: the embedded broker."""
    if nodes and not HOME:
        pytest.skip(SKIP_REASON)
    kafka = broker_of(nodes, tmp_path / "kafka")
    chosen = random.Random(7)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(kafka.stop)
        await kafka.start()

        async def restart() -> None:
            kafka.kill(chosen.randint(1, max(nodes, 1)))
            await kafka.start()

        report = await _run(kafka.bootstrap, tmp_path, restart, 2 if nodes == 3 else 3)
    assert (report.lost, report.duplicated) == (0, 0), report
    assert "broker" in report.faults
