"""What the router's benchmark runs beside each other: a router and its broker, an echo server, and a library on a Qdrant server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
from qdrant_client import AsyncQdrantClient, models

from services.local import free_port, is_serving
from services.router.catalogue.port import Vector
from services.router.catalogue.qdrant_connection import Limits
from services.router.catalogue.records import Reach
from services.router.search.qdrant_search import search_parameters
from smoa.access.channels import ConnectionSettings
from smoa.v1 import common_pb2 as common
from smoa.v1 import router_pb2, router_pb2_grpc

BASE = "b" * 64


class Echo(router_pb2_grpc.RouterServiceServicer):
    """Answers at once with a decision of three adapters."""

    def __init__(self) -> None:
        adapters = [common.WeightedAdapter(adapter_id="0" * 26, version=1, digest="0" * 64, weight=0.3, score=0.5) for _ in range(3)]
        self._answer = router_pb2.Decision(decision_id="0" * 26, tenant="public", base_model=BASE, adapters=adapters)

    async def Route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.Decision:  # noqa: N802
        """The same answer to everyone."""
        return self._answer

    async def RouteBatch(self, request: router_pb2.RouteBatchRequest, context: Any) -> router_pb2.RouteBatchResponse:  # noqa: N802
        """The same answer to everyone."""
        return router_pb2.RouteBatchResponse(decisions=[self._answer] * len(request.requests))

    async def ListExecutors(self, request: router_pb2.ListExecutorsRequest, context: Any) -> router_pb2.ListExecutorsResponse:  # noqa: N802
        """None."""
        return router_pb2.ListExecutorsResponse()


async def serve_echo(address: str) -> None:
    """Serve until the process ends."""
    server = grpc.aio.server()
    router_pb2_grpc.add_RouterServiceServicer_to_server(Echo(), server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


class RouterProcess:
    """A router of its own, with its broker."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder, self.address, self._metrics = folder, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        broker = folder / "broker.address"
        command = [sys.executable, "-m", "services.broker", str(broker), "--data", str(folder / "broker")]
        self._broker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not broker.exists():
            time.sleep(0.05)
        self._environment = {
            **os.environ,
            "SMOA_ROUTER_ADDRESS": self.address,
            "SMOA_ROUTER_METRICS_ADDRESS": self._metrics,
            "SMOA_ROUTER_DATA_FOLDER": str(folder / "router"),
            "SMOA_STORE": str(folder / "store"),
            "SMOA_KAFKA_BOOTSTRAP": broker.read_text(),
            # So that a decision on ten holds ten, whatever their weights: recall is counted end to end.
            "SMOA_ROUTER_MIN_WEIGHT": "0",
            "SMOA_ROUTER_TEMPERATURE": "1",
            **settings,
        }
        self._connection = ConnectionSettings()
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, connection: ConnectionSettings | None = None) -> float:
        """Start it and wait until it serves; seconds that took."""
        self._connection, started = connection or ConnectionSettings(), time.perf_counter()
        self.process = subprocess.Popen([sys.executable, "-m", "services.router"], env=self._environment, stderr=subprocess.DEVNULL)
        while not await is_serving(self.address, connection):
            await asyncio.sleep(0.05)
        return time.perf_counter() - started

    def kill(self, how: signal.Signals) -> None:
        """End it."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait()

    def stop(self) -> None:
        """End both."""
        if self.process is not None and self.process.poll() is None:
            self.kill(signal.SIGTERM)
        self._broker.terminate()
        self._broker.wait()

    async def metric(self, name: str) -> float:
        """A gauge or counter."""
        return float((await self._scrape())[f"smoa_router_{name}"])

    async def route_buckets(self) -> tuple[Vector, Vector]:
        """Upper bounds in milliseconds, and how many queries took at most that."""
        found = [(float(bound), count) for name, bound, count in _buckets(await self._scrape()) if name and bound != "+Inf"]
        return np.array([bound * 1000 for bound, _ in found], np.float32), np.array([count for _, count in found], np.float32)

    async def _scrape(self) -> dict[str, float]:
        def read() -> str:
            shown, headers = self._connection, dict[str, str]()
            if shown.token_file:
                headers["Authorization"] = f"Bearer {Path(shown.token_file).read_text().strip()}"
            context = ssl.create_default_context(cafile=shown.tls_ca) if shown.tls_ca else None
            request = urllib.request.Request(f"http{'s' if context else ''}://{self._metrics}/metrics", headers=headers)
            with urllib.request.urlopen(request, context=context) as answer:
                return str(answer.read().decode())

        lines = (line.rpartition(" ") for line in (await asyncio.to_thread(read)).splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def rss_mb(self) -> float:
        """Resident memory."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found is not None
        return int(found[1]) / 1024


def _buckets(scraped: dict[str, float]) -> Iterator[tuple[str, str, float]]:
    for name, value in scraped.items():
        if found := re.fullmatch(r'smoa_router_route_seconds_bucket\{le="([^"]+)"\}', name):
            yield name, found[1], value


@asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    """An echo server in a process of its own."""
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.router", "--serve-echo", address])
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
        yield address
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def library_on(kind: str, url: str, grpc_port: int) -> AsyncIterator[tuple[dict[str, str], AsyncQdrantClient | None, str]]:
    """Settings of a router for a library of its own, and, on a server, a client and what its collections are called; dropped at the end."""
    if kind == "sqlite":
        yield {}, None, ""
        return
    prefix = f"bench_{uuid4().hex[:12]}"
    client = AsyncQdrantClient(url, prefer_grpc=True, grpc_port=grpc_port, timeout=60, check_compatibility=False)
    try:
        settings = {"SMOA_QDRANT_URL": url, "SMOA_QDRANT_GRPC_PORT": str(grpc_port), "SMOA_QDRANT_PREFIX": prefix}
        yield {**settings, "SMOA_ROUTER_SEARCH": kind}, client, prefix
    finally:
        for collection in (await client.get_collections()).collections:
            if collection.name.startswith(prefix):
                await client.delete_collection(collection.name)
        await client.close()


class Bare:
    """Searches the router's collection as the router does, without the router."""

    def __init__(self, client: AsyncQdrantClient, collection: str) -> None:
        self._client, self._collection = client, collection
        pools = Reach(tenant="public", base_model=BASE).pools
        self._filter = models.Filter(must=[models.FieldCondition(key="pool", match=models.MatchAny(any=list(pools)))])
        self._payload = models.PayloadSelectorInclude(include=["adapter_id", "version", "digest", "has_examples"])

    async def settled(self) -> None:
        """Wait until the server has made its graphs."""
        while (await self._client.get_collection(self._collection)).status != models.CollectionStatus.GREEN:
            await asyncio.sleep(1)

    async def search(self, vector: Vector) -> None:
        """The nearest three."""
        await self._client.query_points(
            self._collection,
            query=vector.tolist(),
            query_filter=self._filter,
            search_params=search_parameters(Limits()),
            limit=3,
            with_payload=self._payload,
        )
