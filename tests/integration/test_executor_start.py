"""What an executor starts with: base models by folder, name and hub id, in their own dtype; and its metrics."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import threading
import urllib.request
from pathlib import Path

import grpc
import pytest
import torch
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.executor.app import compute_dtype, load
from services.executor.engine.engine import FAILED
from services.executor.engine.scheduler import Scheduler
from services.executor.models.base_model import resolve
from services.executor.settings import ExecutorSettings
from services.local import free_port
from smoa.errors import FailedPrecondition, InvalidArgument
from smoa.metrics import serve_metrics
from tests.integration.executor_support import running_executor
from tests.model_support import isolated_cache, make_model


def test_a_model_of_the_hub_is_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--maker--tiny" / "snapshots" / "abc"
    shutil.copytree(make_model(tmp_path / "made"), snapshot)
    (tmp_path / "models--maker--tiny" / "refs").mkdir()
    (tmp_path / "models--maker--tiny" / "refs" / "main").write_text("abc")
    assert resolve("maker/tiny") == snapshot
    with pytest.raises(FailedPrecondition, match=r"^base_model: 'maker/none' is no folder here, and the hub did not give it \("):
        resolve("maker/none")


def test_a_name_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"is not a model folder; give a folder with config\.json, a hub id, or 'smollm2"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("own", "asked", "device", "expected"),
    [
        ("bfloat16", "auto", "cpu", torch.bfloat16),
        ("float16", "auto", "cpu", torch.float32),
        ("float16", "auto", "cuda", torch.float16),
        ("float32", "auto", "cpu", torch.float32),
        ("float32", "bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_the_dtype_is_the_models_own_unless_another_is_asked_for(
    own: str, asked: str, device: str, expected: torch.dtype, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": own}))
    assert compute_dtype(ExecutorSettings(dtype=asked, device=device), tmp_path) is expected


def test_an_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        compute_dtype(ExecutorSettings(dtype="int3"), tmp_path)
    assert str(caught.value) == "SMOA_EXECUTOR_DTYPE: 'int3' is unknown; use auto, or one of bfloat16, float16, float32"


async def test_an_engine_whose_loop_fails_lets_nobody_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[bool] = []
    async with running_executor("torch", tmp_path, monkeypatch) as world:
        monkeypatch.setattr("services.executor.app.signal.raise_signal", lambda number: broken.append(number == signal.SIGTERM))

        def fail(self: object) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(Scheduler, "plan", fail)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await world.text()
            assert (caught.value.code().name, caught.value.details()) == ("UNAVAILABLE", FAILED)
        assert broken == [True]


def test_a_models_own_sampling_is_not_taken_over_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    isolated_cache(tmp_path / "cache", monkeypatch)
    folder = make_model(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 3, "top_k": None}))
    load(ExecutorSettings(base_model=str(folder), store=str(tmp_path / "store"), backend="torch", context=64))
    expected = (
        "generation_config.json asks for temperature=0.6, top_p=0.9: not taken over, an answer is greedy unless its request says otherwise"
    )
    assert expected in caplog.messages


async def _read(port: int, query: str = "") -> dict[str, float]:
    def get() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics{query}", timeout=5) as answer:
            return str(answer.read().decode())

    lines = (await asyncio.to_thread(get)).splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


async def test_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    async with running_executor("torch", tmp_path, monkeypatch, metrics_address=f"127.0.0.1:{port}") as world:
        adapters = [await world.adapter(seed) for seed in range(5)]
        for adapter in (*adapters, adapters[0], adapters[0]):
            await world.text(adapter, max_tokens=3)
        await world.idle()
        found = {name.removeprefix("smoa_executor_"): value for name, value in (await _read(port)).items()}
        expected = {
            'adapter_hits_total{tier="slot"}': 1,
            'adapter_hits_total{tier="host"}': 1,
            'adapter_hits_total{tier="store"}': 5,
            'adapter_evictions_total{tier="slot"}': 3,
            "adapter_loads_total": 5,
            "residents": 3,
            "slots": 3,
            "running": 0,
            "queued": 0,
            "steps_total": 21,
            "step_tokens_total": 7 * (4 + 2),
            "first_token_seconds_count": 7,
            "queue_seconds_count": 7,
        }
        assert {name: found[name] for name in expected} == expected
        assert found["adapter_load_seconds_total"] > 0
        assert found["slot_bytes"] == sum(one.bytes for one in (await world.client.status()).residents)


async def test_metrics_are_read_on_the_loop_that_owns_what_they_tell() -> None:
    threads: list[int] = []

    class Watched(Collector):
        def collect(self) -> list[Metric]:
            threads.append(threading.get_ident())
            return [GaugeMetricFamily("watched", "One.", 1), GaugeMetricFamily("other", "Another.", 2)]

    registry = CollectorRegistry()
    registry.register(Watched())
    async with serve_metrics("127.0.0.1:0", registry) as port:
        assert await _read(port) == {"watched": 1, "other": 2}
        assert await _read(port, "?name[]=other") == {"other": 2}
    assert threads == [threading.get_ident()] * 2


async def test_a_metrics_address_that_cannot_be() -> None:
    with pytest.raises(InvalidArgument, match=r"^metrics_address: '9464' is not host:port; "):
        async with serve_metrics("9464", CollectorRegistry()):
            pass
    async with serve_metrics("127.0.0.1:0", CollectorRegistry()) as port:
        with pytest.raises(FailedPrecondition, match=f"^metrics_address: cannot listen on 127.0.0.1:{port} "):
            async with serve_metrics(f"127.0.0.1:{port}", CollectorRegistry()):
                pass
