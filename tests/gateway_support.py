"""Broker, router, two executors and a gateway as processes, with the model that ships and a few adapters. One for all tests of a run."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np

from services.local import answers_http, free_port, is_serving
from services.supervisor import Spec, Supervisor
from smoa.adapter import Adapter, Manifest, encode, new_adapter_id
from smoa.client import SmoaClient
from smoa.store import AdapterStore
from smoa.v1 import executor_pb2
from tests.integration.router_support import KNEES, MONEY
from tests.kafka_support import embedded_broker, until

BASE = "smollm2-135m-instruct"
MOST_TOKENS = 160
"""Of an answer: some seconds."""
CONTEXT = 256
JSON = {"content-type": "application/json"}


@dataclass
class GatewayWorld:
    """What runs, and how to call it."""

    folder: Path
    kafka: str
    router: str
    executors: tuple[str, ...]
    gateway: str
    envoy: str
    store: AdapterStore
    processes: Supervisor
    client: SmoaClient
    http: aiohttp.ClientSession
    base_model: str = ""
    adapters: dict[str, str] = field(default_factory=dict)
    """Id by name."""

    @property
    def url(self) -> str:
        """Of the gateway, as OpenAI's clients want it."""
        return f"http://{self.gateway}/v1"

    async def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        """Status, answer in JSON, headers."""
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        async with self.http.post(f"http://{self.gateway}{path}", data=data, headers={**JSON, **(headers or {})}) as answer:
            return answer.status, json.loads(await answer.read()), answer.headers

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status, answer in JSON."""
        async with self.http.get(f"http://{self.gateway}{path}") as answer:
            return answer.status, json.loads(await answer.read())

    async def status(self, executor: str) -> executor_pb2.GetStatusResponse:
        """An executor's."""
        async with SmoaClient(executor=executor) as client:
            return await client.status()

    async def idle(self) -> None:
        """Wait until no row of any executor is taken; one that was killed comes back first."""

        async def free() -> bool:
            try:
                states = [await self.status(address) for address in self.executors]
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return False
                raise
            return not any(state.running or state.queued for state in states)

        await until("every row being free", 30, free)

    async def known(self) -> None:
        """Wait until the router has heard of all executors."""

        async def heard() -> bool:
            _, body = await self.get("/v1/models")
            return any(one["id"] == BASE for one in body.get("data", ())) and len(await self._listed()) == len(self.executors)

        await until("the router knowing every executor", 30, heard)

    async def _listed(self) -> set[str]:
        from smoa.v1 import router_pb2

        found = await self.client.router.ListExecutors(router_pb2.ListExecutorsRequest(), timeout=10)
        return {one.address for one in found.executors}

    async def add(self, name: str, examples: list[str], tenant: str = "public", seed: int = 0) -> str:
        """Register an adapter that changes what the model says; its id."""
        rng = np.random.default_rng(seed)
        manifest = Manifest(
            adapter_id=new_adapter_id(),
            name=name,
            kind="lora_xs",
            base_model=self.base_model,
            rank=4,
            modules=("q_proj",),
            layers=(0, 1),
            tenant=tenant,
        )
        tensors = {"q_proj": (20 * rng.standard_normal((2, 4, 4))).astype(np.float32), "q_proj.s": np.ones((2, 4), np.float32)}
        digest = await self.store.put(encode(Adapter(manifest, tensors)))
        self.adapters[name] = (await self.client.register(digest, examples, tenant)).adapter_id
        return self.adapters[name]


@asynccontextmanager
async def running_gateway(folder: Path, executors: int = 2, **environment: str) -> AsyncIterator[GatewayWorld]:
    """Start everything, and end it; `environment` is the gateway's."""
    folder.mkdir(parents=True, exist_ok=True)
    router, gateway, envoy = (f"127.0.0.1:{free_port()}" for _ in range(3))
    addresses = tuple(f"127.0.0.1:{free_port()}" for _ in range(executors))
    store = str(folder / "store")
    async with AsyncExitStack() as stack:
        kafka = await stack.enter_async_context(embedded_broker(folder))
        shared = {"SMOA_KAFKA_BOOTSTRAP": kafka, "SMOA_STORE": store, "SMOA_ROUTER": router, "PYTHONUNBUFFERED": "1"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SMOA_") or name == "SMOA_CACHE"}

        def spec(name: str, service: str, ready: Any, **changes: str) -> Spec:
            command = [sys.executable, "-P", "-m", f"services.{service}"]
            return Spec(name=name, command=command, environment={**shared, **changes}, inherited=inherited, ready=ready)

        specs = [
            spec(
                "router", "router", lambda: is_serving(router), SMOA_ROUTER_ADDRESS=router, SMOA_ROUTER_DATA_FOLDER=str(folder / "router")
            ),
            *(
                spec(
                    f"executor-{number}",
                    "executor",
                    lambda address=address: is_serving(address),
                    SMOA_EXECUTOR_ADDRESS=address,
                    SMOA_EXECUTOR_ADVERTISED_ADDRESS=address,
                    SMOA_EXECUTOR_DATA_FOLDER=str(folder / f"executor-{number}"),
                    SMOA_EXECUTOR_THREADS="1",
                    SMOA_EXECUTOR_MAX_TOKENS=str(MOST_TOKENS),
                    SMOA_EXECUTOR_CONTEXT=str(CONTEXT),
                    SMOA_EXECUTOR_STATUS_INTERVAL_S="0.2",
                )
                for number, address in enumerate(addresses)
            ),
            spec(
                "gateway",
                "gateway",
                lambda: answers_http(gateway, "/healthz"),
                SMOA_GATEWAY_ADDRESS=gateway,
                SMOA_GATEWAY_ENVOY_ADDRESS=envoy,
                SMOA_GATEWAY_DATA_FOLDER=str(folder / "gateway"),
                **environment,
            ),
        ]
        log = stack.enter_context((folder / "services.log").open("w"))
        processes = Supervisor([specs], log)
        stack.push_async_callback(processes.stop)
        await processes.start()
        client = await stack.enter_async_context(SmoaClient(router=router, executor=addresses[0] if addresses else None))
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)))
        world = GatewayWorld(folder, kafka, router, addresses, gateway, envoy, AdapterStore(store), processes, client, http)
        if addresses:
            world.base_model = (await client.status()).base_model
            await world.known()
            await world.add("refunds", MONEY, seed=1)
            await world.add("knees", KNEES, seed=2)
        yield world


async def events_of(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """(name, body) of server-sent events."""
    name = ""
    async for line in answer.content:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            name = text[7:]
        elif text.startswith("data: "):
            yield name, text[6:] if text == "data: [DONE]" else json.loads(text[6:])
            name = ""
