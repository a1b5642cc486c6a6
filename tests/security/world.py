"""The services as processes that nobody is trusted by: TLS, keys, and a Kafka with users and rights. One for all tests of a run."""

from __future__ import annotations

import asyncio
import http.client
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.local import free_port, is_serving
from services.supervisor import Spec, Supervisor
from smoa.access.channels import Channels, ConnectionSettings
from smoa.access.principal import ROLES, Principal
from smoa.adapter import Adapter, Manifest, digest_of, encode, new_adapter_id
from smoa.client import SmoaClient
from smoa.store import AdapterStore
from smoa.v1 import executor_pb2
from tests.access_support import Authority, caller, callers_file
from tests.integration.router_support import MONEY
from tests.security.secured_kafka import SecuredKafka

CALLERS: Final = (
    *(caller(role, "acme", role) for role in sorted(ROLES)),
    caller("nothing", "acme", ""),
    caller("victim", "acme", "infer library"),
    caller("mallory", "mallory", "infer library"),
    caller("administrator", "*", "operate library publish infer"),
    caller("merger", "*", "optimizer"),
    caller("door", "*", "gateway infer library operate"),
)
"""One for each role, one without any, and some people."""


@dataclass
class World:
    """What runs, and how to call it."""

    folder: Path
    kafka: SecuredKafka
    store: AdapterStore
    router: str
    executor: str
    gateway: str
    metrics: Mapping[str, str]
    keys: Mapping[str, str]
    authority: Authority
    processes: Supervisor
    started: Mapping[str, int]
    base_model: str = ""
    first: dict[str, str] = field(default_factory=dict)
    """Id of an adapter that each tenant has from the beginning."""
    shape: executor_pb2.GetStatusResponse | None = None

    def connection(self, who: str) -> ConnectionSettings:
        """That of a caller; of a name that nobody has, of one without a key."""
        if who not in self.keys:
            return ConnectionSettings(tls_ca=str(self.authority.file))
        file = self.folder / f"{who}.key"
        if not file.exists():
            file.write_text(self.keys[who] + "\n")
        return ConnectionSettings(token_file=str(file), tls_ca=str(self.authority.file))

    @asynccontextmanager
    async def client(self, who: str) -> AsyncIterator[SmoaClient]:
        """A client of theirs."""
        async with SmoaClient(router=self.router, executor=self.executor, connection=self.connection(who)) as client:
            yield client

    def channel(self, who: str, *, to: str = "", options: tuple[tuple[str, Any], ...] = ()) -> grpc.aio.Channel:
        """A channel of theirs, to the router if nothing else is said."""
        return Channels(self.connection(who)).to(to or self.router, (("grpc.use_local_subchannel_pool", 1), *options))

    def http(self, service: str, path: str, who: str, method: str = "GET", body: bytes | None = None) -> int:
        """The status of a request of theirs at a service's HTTP port."""
        connection, address = self.connection(who), self.gateway if service == "gateway" else self.metrics[service]
        token = Path(connection.token_file).read_text().strip() if connection.token_file else ""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        context = ssl.create_default_context(cafile=connection.tls_ca)
        with closing(http.client.HTTPSConnection(address, context=context, timeout=10)) as asking:
            asking.request(method, path, body, headers | ({"Content-Type": "application/json"} if body is not None else {}))
            return asking.getresponse().status

    async def put(self, data: bytes) -> str:
        """Bytes into the store, as who may write there puts them."""
        digest = digest_of(data)
        path = Path(self.store.location) / self.store.key(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(path.write_bytes, data)
        return digest

    def adapter(self, *, tenant: str, value: float = 0.01, **changes: Any) -> bytes:
        """A file that the executor can load."""
        manifest: dict[str, Any] = {
            "adapter_id": new_adapter_id(),
            "name": "knees",
            "kind": "lora_xs",
            "base_model": self.base_model,
            "rank": 4,
            "modules": ("q_proj",),
            "layers": (0,),
            "tenant": tenant,
        }
        made = Manifest(**{**manifest, **changes})
        weights = {"q_proj": np.full((1, 4, 4), value, np.float32), "q_proj.s": np.ones((1, 4), np.float32)}
        return encode(Adapter(made, weights))

    async def check_alive(self) -> None:
        """Nothing that was sent has ended or restarted a service, and each says that it is well."""
        pids = {name: one.pid for name, one in self.processes.processes.items()}
        assert pids == self.started, "a service ended"
        for address in (self.router, self.executor):
            async with self.channel("stranger", to=address) as channel:
                for service in ("", "live"):
                    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING, (address, service)


async def status_of(call: Awaitable[Any]) -> tuple[str, str]:
    """(status, what was said) of a call; OK for one that is answered."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, str(error.details())
    return "OK", ""


def principal(name: str) -> Principal:
    """One of `CALLERS`."""
    return next(one for one in CALLERS if one.name == name)


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{pid} says nothing of its memory")


@asynccontextmanager
async def running_world(folder: Path) -> AsyncIterator[World]:
    """Start everything, and end it."""
    kafka = SecuredKafka(folder / "kafka")
    authority = Authority(folder)
    pair = authority.signed("server")
    keys = callers_file(folder / "callers.json", *CALLERS)
    store = str(folder / "store")
    router, executor, gateway = (f"127.0.0.1:{free_port()}" for _ in range(3))
    metrics = {name: f"127.0.0.1:{free_port()}" for name in ("router", "executor", "optimizer")}
    for service, who in (("optimizer", "merger"), ("gateway", "door")):
        (folder / f"{service}.token").write_text(keys[who])
    tls = {"SMOA_TLS_CERTIFICATE": str(pair.certificate), "SMOA_TLS_KEY": str(pair.key), "SMOA_CALLERS": str(folder / "callers.json")}
    environment = {
        "router": {**tls, "SMOA_ROUTER_ADDRESS": router, "SMOA_ROUTER_EXECUTORS": "127.0.0.1:*"},
        "executor": {**tls, "SMOA_EXECUTOR_ADDRESS": executor, "SMOA_EXECUTOR_ADVERTISED_ADDRESS": executor},
        "optimizer": {
            "SMOA_TLS_CA": str(authority.file),
            "SMOA_TOKEN_FILE": str(folder / "optimizer.token"),
            "SMOA_ROUTER": router,
            "SMOA_EXECUTOR": executor,
            "SMOA_OPTIMIZER_INTERVAL_S": "0",
            "SMOA_OPTIMIZER_REPORT_INTERVAL_S": "0.2",
            **{name: str(pair_) for name, pair_ in (("SMOA_TLS_CERTIFICATE", pair.certificate), ("SMOA_TLS_KEY", pair.key))},
        },
        "gateway": {
            **tls,
            "SMOA_GATEWAY_ADDRESS": gateway,
            "SMOA_TLS_CA": str(authority.file),
            "SMOA_TOKEN_FILE": str(folder / "gateway.token"),
            "SMOA_ROUTER": router,
        },
    }

    async def beats() -> bool:
        heartbeat = folder / "optimizer" / "heartbeat"
        return heartbeat.exists()

    async def opened() -> bool:
        try:
            _, writer = await asyncio.open_connection(*gateway.split(":"))
        except OSError:
            return False
        writer.close()
        return True

    async def serves(address: str) -> bool:
        return await is_serving(address, ConnectionSettings(tls_ca=str(authority.file)))

    def spec(name: str, ready: Callable[[], Awaitable[bool]]) -> Spec:
        shared = {
            "SMOA_STORE": store,
            f"SMOA_{name.upper()}_DATA_FOLDER": str(folder / name),
            f"SMOA_{name.upper()}_METRICS_ADDRESS": metrics.get(name, ""),
            "PYTHONUNBUFFERED": "1",
        }
        return Spec(
            name=name,
            command=[sys.executable, "-P", "-m", f"services.{name}"],
            environment={**shared, **kafka.environment(name), **environment[name]},
            inherited={name: value for name, value in os.environ.items() if not name.startswith("SMOA_")},
            ready=ready,
        )

    with (folder / "services.log").open("w") as log:
        specs = [
            spec("router", lambda: serves(router)),
            spec("executor", lambda: serves(executor)),
            spec("optimizer", beats),
            spec("gateway", opened),
        ]
        processes = Supervisor([specs], log)
        try:
            await kafka.start()
            await processes.start()
            started = {name: one.pid for name, one in processes.processes.items()}
            world = World(folder, kafka, AdapterStore(store), router, executor, gateway, metrics, keys, authority, processes, started)
            async with world.client("victim") as client:
                world.shape = await client.status()
                world.base_model = world.shape.base_model
            for who, tenant in (("victim", "acme"), ("mallory", "mallory")):
                async with world.client(who) as client:
                    made = await client.register(await world.put(world.adapter(tenant=tenant, name="first")), MONEY, tenant)
                    world.first[tenant] = made.adapter_id
            yield world
        finally:
            await processes.stop()
            await kafka.stop()
