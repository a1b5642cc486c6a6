"""An executor in this process on a real socket, with a tiny random model, and adapters to feed it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from services.executor.app import Executor, build, load
from services.executor.models.base_model import fingerprint
from services.executor.settings import ExecutorSettings
from smoa.adapter import Adapter, Manifest, encode, new_adapter_id
from smoa.client import SmoaClient
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import executor_pb2
from tests.kafka_support import until
from tests.model_support import isolated_cache, make_model

PROMPT = "w1 w2 w3 w4"


@dataclasses.dataclass
class World:
    """A running executor: its client, store, base model and engine."""

    client: SmoaClient
    store: AdapterStore
    base_model: str
    address: str
    executor: Executor

    async def adapter(self, seed: int, weight: float = 1.0, size: float = 1.0, **changes: object) -> common.WeightedAdapter:
        """A random lora_xs adapter in the store, as a decision would name it."""
        rng = np.random.default_rng(seed)
        manifest = Manifest(
            adapter_id=new_adapter_id(),
            name=str(seed),
            kind="lora_xs",
            base_model=self.base_model,
            rank=4,
            modules=("q_proj", "down_proj"),
            layers=(0, 1, 2),
        )
        manifest = dataclasses.replace(manifest, **changes)  # type: ignore[arg-type]
        shape = (3, manifest.rank, manifest.rank)
        tensors = {name: (size * rng.standard_normal(shape)).astype(np.float32) for name in manifest.modules}
        tensors |= {f"{name}.s": np.ones(shape[:2], np.float32) for name in manifest.modules}
        digest = await self.store.put(encode(Adapter(manifest, tensors)))
        return common.WeightedAdapter(adapter_id=manifest.adapter_id, version=1, digest=digest, weight=weight)

    async def text(self, *adapters: common.WeightedAdapter, max_tokens: int = 12, **options: object) -> str:
        """The whole greedy answer."""
        pieces = [r.text async for r in self.client.stream(PROMPT, adapters, max_tokens=max_tokens, **options)]  # type: ignore[arg-type]
        return "".join(pieces)

    async def idle(self) -> None:
        """Wait until no row is taken and no lease is held."""

        async def free() -> bool:
            status = await self.client.status()
            return status.running == 0 and status.queued == 0 and not any(resident.leases for resident in status.residents)

        await until("every row and lease being free", 10, free)


@asynccontextmanager
async def running_executor(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> AsyncIterator[World]:
    """An executor on a free port, with no Kafka to be found: four rows, three slots, a queue of four. Idle again at its end."""
    isolated_cache(tmp_path / "cache", monkeypatch)
    folder = make_model(tmp_path / "model")
    settings = ExecutorSettings(
        address="127.0.0.1:0",
        base_model=str(folder),
        backend=backend,
        dtype="float32",
        slots=3,
        rows=4,
        context=200,
        max_waiting=4,
        max_tokens=150,
        drain_s=0,
        kafka_bootstrap="127.0.0.1:1",
        data_folder=tmp_path / "data",
        store=str(tmp_path / "store"),
    )
    settings = dataclasses.replace(settings, **changes)
    executors: list[Executor] = []

    def loaded(settings: ExecutorSettings) -> Executor:
        executors.append(load(settings))
        return executors[-1]

    monkeypatch.setattr("services.executor.app.load", loaded)
    async with AsyncExitStack() as stack:
        server = await build(settings, stack)
        await server.ready()
        address = f"127.0.0.1:{server.port}"
        client = await stack.enter_async_context(SmoaClient(executor=address))
        made = World(client, AdapterStore(settings.store), fingerprint(folder), address, executors[0])
        yield made
        await made.idle()
        executors[0].engine.check_integrity()


async def refused(world: World, **changes: object) -> tuple[str, str]:
    """(code, message) of the error a request must end with."""
    request = executor_pb2.GenerateRequest(**{"prompt": PROMPT, "max_tokens": 5, **changes})  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [response async for response in world.client.executor.Generate(request, timeout=20)]
    return caught.value.code().name, str(caught.value.details())
