"""Two routers over one Qdrant server, in traffic: whoever is killed or stopped, nothing acknowledged is lost, and routing goes on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

from services.local import free_port
from services.router.catalogue.record_file import RecordFile
from services.router.catalogue.sqlite_catalogue import FILE
from smoa.client import SmoaClient
from smoa.store import AdapterStore
from smoa.v1 import common_pb2 as common
from smoa.v1 import registry_pb2
from tests.integration.router_support import KNEES, adapter_file
from tests.kafka_support import until
from tests.qdrant_support import HOME, QdrantServer

T = TypeVar("T")
pytestmark = pytest.mark.skipif(not HOME, reason="SMOA_TEST_QDRANT_HOME is not set: it names the folder whose `serve` starts a server")
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class RouterProcess:
    """`python -m services.router`; Kafka is away."""

    def __init__(self, folder: Path, qdrant: QdrantServer) -> None:
        folder.mkdir()
        self.folder = folder / "copy"
        self.is_up = False
        self.address, self._log = f"127.0.0.1:{free_port()}", folder / "log"
        settings = {
            "SMOA_ROUTER_ADDRESS": self.address,
            "SMOA_ROUTER_DATA_FOLDER": str(folder),
            "SMOA_STORE": str(folder.parent / "store"),
            "SMOA_KAFKA_BOOTSTRAP": "127.0.0.1:1",
            "SMOA_QDRANT_URL": qdrant.url,
            "SMOA_QDRANT_GRPC_PORT": str(qdrant.grpc_port),
        }
        self._environment = {**os.environ, **settings}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", "services.router"], env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """kill -9, and start it again."""
        self.is_up = False
        self.process.kill()
        self.process.wait(10)
        self.process = self._start()

    async def serves(self) -> bool:
        """Whether it answers; it is started again if it gave up, as it does at a start without its server."""
        if self.process.poll() is not None:
            self.process = self._start()
        try:
            async with SmoaClient(router=self.address) as client:
                await client.registry.ListAdapters(registry_pb2.ListAdaptersRequest(tenant="public"), timeout=2)
        except grpc.aio.AioRpcError:
            return False
        self.is_up = True
        return True

    def revisions(self) -> dict[str, int]:
        """Of the adapters in its copy of the library."""
        (copy,) = self.folder.glob(f"*/{FILE}")
        file = RecordFile(copy)
        try:
            return file.revisions("", "Z" * 26)
        finally:
            file.close()

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[QdrantServer, list[RouterProcess]]]:
    qdrant = QdrantServer(tmp_path / "qdrant")
    qdrant.start()
    routers = [RouterProcess(tmp_path / name, qdrant) for name in "ab"]
    yield qdrant, routers
    for router in routers:
        router.stop()
    qdrant.send(signal.SIGCONT)
    qdrant.stop()


async def _again(call: Callable[[], Awaitable[T]]) -> T:
    """As a caller does who is told UNAVAILABLE."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in AGAIN:
                raise
            await asyncio.sleep(0.2)


@pytest.mark.timeout(400)
async def test_what_was_acknowledged_is_there_whoever_was_killed(servers: tuple[QdrantServer, list[RouterProcess]], tmp_path: Path) -> None:
    qdrant, routers = servers
    for router in routers:
        await until("a router", 60, router.serves)
    store, rng = AdapterStore(str(tmp_path / "store")), random.Random(3)
    ids: list[str] = []
    wanted: dict[str, dict[str, Any]] = {}
    over, registering = asyncio.Event(), asyncio.Event()
    answered, unanswered = [0, 0], list[str]()

    async def asker(number: int) -> None:
        """Routing, which nothing but the end of its own router stops."""
        router, query = routers[number], 0
        async with SmoaClient(router=router.address) as client:
            while not over.is_set():
                await asyncio.sleep(0.05)
                query += 1
                was_up = router.is_up
                try:
                    decision = await client.route(f"{KNEES[0]} {query}", base_model="base-a")
                    answered[number] += bool(decision.adapters)
                except grpc.aio.AioRpcError as error:
                    if was_up and router.is_up:
                        unanswered.append(f"{number}: {error.code().name} {error.details()}")

    async def caller(number: int) -> None:
        async with SmoaClient(router=routers[number % 2].address) as client:
            while not over.is_set():
                await asyncio.sleep(0.01)
                if len(ids) < 30 and rng.random() < 0.4:
                    digest = await store.put(adapter_file(name=f"n{len(ids)}-{number}-{rng.random()}"))
                    registering.set()
                    made = await _again(lambda digest=digest: client.register(digest, KNEES))  # type: ignore[misc]
                    registering.clear()
                    wanted[made.adapter_id] = {}
                    ids.append(made.adapter_id)
                elif ids:
                    # Each caller has a field of its own: what two change at once is all to be kept.
                    one, value = rng.choice(ids), f"v{rng.randrange(10**6)}"
                    request = registry_pb2.UpdateAdapterRequest(tenant="public", adapter_id=one)
                    match number:
                        case 0:
                            request.tags.append(value)
                            request.replace_tags = True
                        case 1:
                            request.name = value
                        case _:
                            request.pinned = value.endswith("1")
                    await _again(lambda request=request: client.registry.UpdateAdapter(request, timeout=10))  # type: ignore[misc]
                    wanted[one][("tags", "name", "pinned")[number]] = value if number < 2 else request.pinned

    callers = [asyncio.create_task(caller(number)) for number in range(3)]
    callers += [asyncio.create_task(asker(number)) for number in range(2)]

    async def more(count: int) -> None:
        """Wait until the callers have done something again."""
        seen = [dict(fields) for fields in wanted.values()]
        await until("traffic", 60, lambda: _differs(seen, wanted, count))

    try:
        await more(5)
        before = list(answered)
        qdrant.kill()
        await asyncio.sleep(30)  # for so long it is away
        assert all(now > 100 + then for now, then in zip(answered, before, strict=True)), "routing goes on"
        qdrant.start()
        await more(5)
        await asyncio.wait_for(registering.wait(), 60)
        routers[0].kill()
        await until("the router", 60, routers[0].serves)
        await more(5)
        before = list(answered)
        qdrant.send(signal.SIGSTOP)
        await asyncio.sleep(20)  # for so long it hangs: longer than a read waits
        assert all(now > 100 + then for now, then in zip(answered, before, strict=True)), "routing goes on"
        qdrant.send(signal.SIGCONT)
        await more(5)
        routers[1].kill()
        await more(5)
        await until("the router", 60, routers[1].serves)
    finally:
        over.set()
        await asyncio.gather(*callers)
    assert unanswered == []
    for router in routers:
        await until("a router", 60, router.serves)
        async with SmoaClient(router=router.address) as client:
            shown = {one.adapter_id: one async for one in client.list_all()}
        assert shown.keys() == wanted.keys()
        for adapter_id, fields in wanted.items():
            one = shown[adapter_id]
            assert one.state == common.ADAPTER_STATE_ACTIVE
            found = {"tags": one.tags[0] if one.tags else None, "name": one.name, "pinned": one.pinned}
            assert {field: found[field] for field in fields} == fields

    async def agree() -> bool:
        copies = [router.revisions() for router in routers]
        return copies[0] == copies[1] and copies[0].keys() == wanted.keys()

    await until("the copies of both", 20, agree)


async def _differs(seen: list[dict[str, Any]], wanted: dict[str, dict[str, Any]], count: int) -> bool:
    now = list(wanted.values())
    return len(now) - len(seen) + sum(one != other for one, other in zip(seen, now, strict=False)) >= count
