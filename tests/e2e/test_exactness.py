"""Every event is counted once, whoever is killed, paused or restarted meanwhile. `benchmarks.optimizer` runs the long version."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from services.local import EMBEDDED
from tests.kafka_support import HOME, SKIP_REASON, ApacheKafka, broker_port, embedded_broker, until
from tests.stream_support import ChaosReport, Faults, Traffic, Worker, chaos

EVENTS, PER_S = 9_000, 600.0


async def _run(bootstrap: str, folder: Path, break_broker: object, faults: int) -> ChaosReport:
    workers = []
    try:
        for name in ("first", "second"):  # one by one: the embedded broker may refuse two that join at the same moment
            workers.append(worker := Worker(bootstrap, folder, name, **({} if break_broker else EMBEDDED)))
            await until(f"the {name} worker", 60, worker.is_ready)
        breaking = break_broker if callable(break_broker) else None
        return await chaos(bootstrap, Traffic(7), Faults(workers, breaking, random.Random(7)), EVENTS, faults, PER_S)
    finally:
        for worker in workers:
            worker.stop()


@pytest.mark.timeout(280)
async def test_worker_faults_on_the_embedded_broker(tmp_path: Path) -> None:
    async with embedded_broker(tmp_path) as bootstrap:
        report = await _run(bootstrap, tmp_path, None, 2)
    assert (report.lost, report.duplicated) == (0, 0), report


@pytest.mark.timeout(280)
@pytest.mark.skipif(not HOME, reason=SKIP_REASON)
@pytest.mark.parametrize("nodes", [1, 3])
async def test_worker_and_broker_faults_on_a_real_kafka(nodes: int, tmp_path: Path) -> None:
    kafka = ApacheKafka(tmp_path / "kafka", broker_port(nodes), nodes)
    chosen = random.Random(7)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(kafka.stop)
        await kafka.start()

        async def restart() -> None:
            kafka.kill(chosen.randint(1, nodes))
            await kafka.start()

        report = await _run(kafka.bootstrap, tmp_path, restart, 3 if nodes == 1 else 2)
    assert (report.lost, report.duplicated) == (0, 0), report
    assert "broker" in report.faults
