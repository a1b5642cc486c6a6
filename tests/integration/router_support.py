"""A router in this process on a real socket, and small adapter files to feed it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2

from services.router.app import build
from services.router.settings import RouterSettings
from smoa.adapter import Adapter, Manifest, digest_of, encode, new_adapter_id
from smoa.client import SmoaClient
from smoa.statuses import STATUS_KEY
from smoa.store import AdapterStore
from smoa.v1 import registry_pb2

KNEES = [f"my knee hurts when I climb stairs {number}" for number in range(5)]
MONEY = [f"please refund the money for order {number}" for number in range(5)]


def adapter_file(value: float = 0.5, **changes: object) -> bytes:
    """A small lora_xs adapter file."""
    manifest = Manifest(
        adapter_id=new_adapter_id(), name="knees", kind="lora_xs", base_model="base-a", rank=2, modules=("q_proj",), layers=(0,)
    )
    manifest = dataclasses.replace(manifest, **changes)  # type: ignore[arg-type]
    (module,) = manifest.modules
    return encode(Adapter(manifest, {module: np.full((1, 2, 2), value, np.float32), f"{module}.s": np.ones((1, 2), np.float32)}))


@dataclasses.dataclass
class RouterWorld:
    """A running router's client and store."""

    client: SmoaClient
    store: AdapterStore
    address: str

    async def put_raw(self, data: bytes) -> str:
        """Put bytes under their digest, as a careless tool would."""
        digest = digest_of(data)
        path = Path(self.store.location) / self.store.key(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return digest

    async def register(self, examples: list[str], tenant: str = "public", **changes: Any) -> registry_pb2.Adapter:
        """Store and register a small adapter."""
        return await self.client.register(await self.store.put(adapter_file(tenant=tenant, **changes)), examples, tenant)

    async def routed(self, query: str, **options: Any) -> list[str]:
        """Names of the adapters a query is routed to."""
        decision = await self.client.route(query, base_model="base-a", **options)
        names = {adapter.adapter_id: adapter.name async for adapter in self.client.list_all()}
        return [names.get(item.adapter_id, "another's") for item in decision.adapters]


library: dict[str, Any] = {}
"""Settings of where the routers of a test keep their library: set by the fixture `catalogue`."""


@asynccontextmanager
async def running_router(folder: Path, **changes: Any) -> AsyncIterator[RouterWorld]:
    """A router on a free port, with no Kafka to be found: it must serve all the same."""
    plain = RouterSettings(
        address="127.0.0.1:0", drain_s=0, data_folder=folder / "router", store=str(folder / "store"), kafka_bootstrap="127.0.0.1:1"
    )
    settings = dataclasses.replace(plain, **{**library, **changes})
    async with AsyncExitStack() as stack:
        server = await build(settings, stack)
        await server.ready()
        address = f"127.0.0.1:{server.port}"
        client = await stack.enter_async_context(SmoaClient(router=address))
        yield RouterWorld(client, AdapterStore(settings.store), address)


async def refused(call: Awaitable[Any]) -> tuple[str, str, status_pb2.Status]:
    """(code, message, details) of the error a call must end with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    metadata: dict[str, Any] = dict(caught.value.trailing_metadata() or ())
    return caught.value.code().name, str(caught.value.details()), status_pb2.Status.FromString(metadata[STATUS_KEY])
