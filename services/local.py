"""`smoa up`: the whole stack on one machine, as processes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import aiohttp
import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.machine import check_broker, check_disk, check_port_free, free_port, parse_servers
from services.supervisor import Spec, Supervisor
from smoa.access.channels import Channels, ConnectionSettings
from smoa.errors import FailedPrecondition, InvalidArgument, SmoaError
from smoa.rpc import stop_event
from smoa.stack import DEFAULT_FOLDER, LOCK, Stack, read_stack
from smoa.threads import PASSIVE, WAIT_POLICY

__all__ = ["LocalStack", "StackSettings", "free_port", "is_serving", "up"]

LOCK_WAIT_S = 0.5
"""A command that looks whether the stack runs holds the folder's lock for a moment."""
DRAIN_WAIT_S = 30.0
FOR_COMMANDS = {
    "SMOA_KAFKA_BOOTSTRAP": ("--kafka", "SMOA_UP_KAFKA"),
    "SMOA_QDRANT_URL": ("--qdrant", "SMOA_UP_QDRANT"),
    "SMOA_STORE": ("--store", "SMOA_UP_STORE"),
}
"""Variables that say where commands, and services that are started alone, find a service; and what says it to `smoa up`."""


@dataclass(frozen=True, kw_only=True)
class StackSettings:
    """Where the stack listens and keeps its data. Empty `kafka_bootstrap` means the embedded broker, empty `qdrant_url` SQLite."""

    data: Path
    router_port: int = 50051
    executor_port: int = 50052
    gateway_port: int = 8080
    kafka_bootstrap: str = ""
    qdrant_url: str = ""
    store_url: str = ""
    """Folder or URL of the adapter store; empty: a folder in `data`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Mapping[str, str] | None = None
    """The environment that its processes begin with; None: this process's own."""
    services: Sequence[str] = ("router", "executor", "optimizer", "gateway")
    """Those that are started, beside the broker."""

    @property
    def router(self) -> str:
        """Address of the router."""
        return f"127.0.0.1:{self.router_port}"

    @property
    def executor(self) -> str:
        """Address of the executor."""
        return f"127.0.0.1:{self.executor_port}"

    @property
    def gateway(self) -> str:
        """Address of the gateway; empty where none is started."""
        return f"127.0.0.1:{self.gateway_port}" if "gateway" in self.services else ""

    @property
    def store(self) -> str:
        """Folder or URL of the adapter store."""
        return self.environment.get("SMOA_STORE") or self.store_url or str(self.data / "store")


class LocalStack:
    """Broker, router, executor, optimizer and gateway, each a process."""

    def __init__(self, settings: StackSettings, log: TextIO | None = None) -> None:
        self.settings, self._log = settings, log
        self._broker: Supervisor | None = None
        self._services: Supervisor | None = None
        self._lock: TextIO | None = None
        self._started_at_s = time.time()
        self.kafka_bootstrap = settings.kafka_bootstrap

    async def start(self) -> None:
        """Start everything and wait until each part has said that it is ready.

        Raises:
            FailedPrecondition: a port is taken, or another stack uses the data folder.
            ResourceExhausted: the disk has no room for it.
            Unavailable: the Kafka that was named does not answer, or a part did not get ready.
        """
        settings = self.settings
        settings.data.mkdir(parents=True, exist_ok=True)
        await self._take_folder()
        ports = {"router": settings.router_port, "executor": settings.executor_port, "gateway": settings.gateway_port}
        for name, port in ports.items():
            if name in settings.services:
                check_port_free(name, port)
        check_disk(settings.data, {**(os.environ if settings.inherited is None else settings.inherited), **settings.environment})
        if settings.kafka_bootstrap:
            await asyncio.to_thread(check_broker, settings.kafka_bootstrap)
        self._tell()
        try:
            if not self.kafka_bootstrap:
                address = settings.data / "broker.address"
                address.unlink(missing_ok=True)
                self._broker = Supervisor([[self._broker_spec(address)]], self._log)
                await self._broker.start()
                self.kafka_bootstrap = address.read_text().strip()
                self._tell()
            self._services = Supervisor([self._specs()], self._log)
            await self._services.start()
        except BaseException:
            await self.stop()
            raise

    def _tell(self) -> None:
        """Write for commands where everything is."""
        settings = self.settings
        Stack(
            data=str(settings.data.absolute()),
            router=settings.router,
            executor=settings.executor,
            gateway=settings.gateway,
            kafka=self.kafka_bootstrap,
            store=settings.store if "://" in settings.store else str(Path(settings.store).absolute()),
            qdrant=settings.environment.get("SMOA_QDRANT_URL", settings.qdrant_url),
            pid=os.getpid(),
            started_at_s=self._started_at_s,
        ).write()

    def pid(self, name: str) -> int:
        """Process id of a service."""
        return self._supervisor(name).processes[name].pid

    def restarts(self, name: str) -> int:
        """How often a service was restarted."""
        return self._supervisor(name).processes[name].restarts

    async def wait_ready(self, name: str) -> None:
        """Wait until a (restarted) service is ready."""
        await self._supervisor(name).processes[name].wait_ready()

    async def stop(self) -> None:
        """Drain: the services first, which send what they have spooled, then the broker."""
        for supervisor in (self._services, self._broker):
            if supervisor is not None:
                await supervisor.stop()
        self._services = self._broker = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _supervisor(self, name: str) -> Supervisor:
        found = self._broker if name == "broker" else self._services
        assert found is not None, "the stack is not running"
        return found

    async def _take_folder(self) -> None:
        """Lock the folder. The processes hold the lock, too: those of a `smoa up` that was killed end a little later than it."""
        lock = (self.settings.data / LOCK).open("w")
        whose = read_stack(self.settings.data)
        killed = whose is not None and not _exists(whose.pid)
        deadline = time.monotonic() + (DRAIN_WAIT_S if killed else LOCK_WAIT_S)
        told = not killed
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() < deadline:
                    if not told:
                        told = True
                        print("waiting for the processes of the last `smoa up` here to end; it was killed", file=self._log or sys.stdout)
                    await asyncio.sleep(0.05)
                    continue
                lock.close()
                whose = read_stack(self.settings.data)
                raise FailedPrecondition(
                    f"data: another `smoa up` uses {self.settings.data}{f' ({whose})' if whose else ''}; use that one (--stack "
                    f"{self.settings.data}), stop it, or give another --data"
                ) from error
        self._lock = lock

    @property
    def _held(self) -> tuple[int, ...]:
        return () if self._lock is None else (self._lock.fileno(),)

    def _broker_spec(self, address: Path) -> Spec:
        async def listens() -> bool:
            try:
                host, _, port = address.read_text().strip().rpartition(":")
                _, writer = await asyncio.open_connection(host, int(port))
            except (OSError, ValueError):
                return False
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return True

        return Spec(
            name="broker",
            command=[sys.executable, "-P", "-m", "services.broker", str(address), "--data", str(self.settings.data / "broker")],
            environment={"PYTHONUNBUFFERED": "1", **self.settings.environment},
            inherited=self.settings.inherited,
            held=self._held,
            ready=listens,
        )

    def _specs(self) -> list[Spec]:
        settings = self.settings
        heartbeat = settings.data / "optimizer" / "heartbeat"
        shared = {
            "SMOA_KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "SMOA_QDRANT_URL": settings.qdrant_url,
            "SMOA_STORE": settings.store,
            "SMOA_ROUTER": settings.router,
            "SMOA_EXECUTOR": settings.executor,
            "SMOA_ROUTER_ADDRESS": settings.router,
            "SMOA_ROUTER_DATA_FOLDER": str(settings.data / "router"),
            "SMOA_EXECUTOR_ADDRESS": settings.executor,
            "SMOA_EXECUTOR_ADVERTISED_ADDRESS": settings.executor,
            "SMOA_EXECUTOR_DATA_FOLDER": str(settings.data / "executor"),
            "SMOA_GATEWAY_ADDRESS": settings.gateway,
            "SMOA_GATEWAY_DATA_FOLDER": str(settings.data / "gateway"),
            "SMOA_OPTIMIZER_DATA_FOLDER": str(settings.data / "optimizer"),
            "SMOA_OPTIMIZER_INSTANCE_ID": "local",
            "PYTHONUNBUFFERED": "1",
            WAIT_POLICY: os.environ.get(WAIT_POLICY, PASSIVE),
            **settings.environment,
        }

        def spec(name: str, ready: object) -> Spec:
            assert callable(ready)
            command = [sys.executable, "-P", "-m", f"services.{name}"]
            return Spec(name=name, command=command, environment=shared, inherited=settings.inherited, held=self._held, ready=ready)

        heartbeat.unlink(missing_ok=True)
        ready = {
            "router": lambda: is_serving(settings.router),
            "executor": lambda: is_serving(settings.executor),
            "optimizer": lambda: self._optimizer_beats(heartbeat),
            "gateway": lambda: answers_http(settings.gateway),
        }
        return [spec(name, ready[name]) for name in settings.services]

    async def _optimizer_beats(self, heartbeat: Path) -> bool:
        """True when the heartbeat is the running process's own."""
        return heartbeat.exists() and heartbeat.read_text() == str(self.pid("optimizer"))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def is_serving(address: str, connection: ConnectionSettings | None = None) -> bool:
    """True when the gRPC server there says SERVING."""
    async with Channels(connection).to(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def answers_http(address: str, path: str = "/readyz") -> bool:
    """True when the HTTP server there answers a path with 200."""
    try:
        async with asyncio.timeout(2), aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as answer:
            return answer.status == 200
    except (OSError, TimeoutError, aiohttp.ClientError):
        return False


@click.command("up")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Where everything is kept.",
)
@click.option("--router-port", type=click.IntRange(1, 65535), default=50051, show_default=True)
@click.option("--executor-port", type=click.IntRange(1, 65535), default=50052, show_default=True)
@click.option("--gateway-port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--kafka", envvar="SMOA_UP_KAFKA", default="", help="A real Kafka [SMOA_UP_KAFKA]; left out, the embedded broker.")
@click.option("--qdrant", envvar="SMOA_UP_QDRANT", default="", help="A Qdrant server's URL [SMOA_UP_QDRANT]; left out, SQLite in --data.")
@click.option(
    "--store", envvar="SMOA_UP_STORE", default="", help="Folder or URL of the adapter store [SMOA_UP_STORE]; left out, a folder in --data."
)
def up(data: Path, router_port: int, executor_port: int, gateway_port: int, kafka: str, qdrant: str, store: str) -> None:
    """Run broker, router, executor, optimizer and gateway here; Ctrl-C drains them in order.

    The gateway answers OpenAI's clients: their base URL is http://127.0.0.1:8080/v1, their model smoa-auto.

    What it runs on is its own unless an option, or a variable that begins with SMOA_UP_, says otherwise. SMOA_KAFKA_BOOTSTRAP,
    SMOA_QDRANT_URL and SMOA_STORE, which point commands and services that are started alone somewhere, are not used. SMOA_BASE_MODEL and
    the services' own settings (SMOA_ROUTER_..., SMOA_EXECUTOR_..., SMOA_OPTIMIZER_..., SMOA_GATEWAY_...) are.

    Commands find it by the file stack.json that it writes into --data: run them beside ./smoa-data, or name the folder with --stack or
    SMOA_STACK.
    """
    ports = {"--router-port": router_port, "--executor-port": executor_port, "--gateway-port": gateway_port}
    for port in ports.values():
        if len(same := [option for option, given in ports.items() if given == port]) > 1:
            raise click.UsageError(f"{' and '.join(same)} are both {port}; give each its own")
    if kafka:
        try:
            parse_servers(kafka)
        except InvalidArgument as error:
            raise click.UsageError(str(error)) from error
    for variable, (option, own) in FOR_COMMANDS.items():
        if os.environ.get(variable):
            said = f"note: {variable} is set, and not used here: it is for commands and services that are started alone"
            click.echo(f"{said} ({option} or {own} says it to `smoa up`)", err=True)
    settings = StackSettings(
        data=data.absolute(),
        router_port=router_port,
        executor_port=executor_port,
        gateway_port=gateway_port,
        kafka_bootstrap=kafka,
        qdrant_url=qdrant,
        store_url=store if "://" in store or not store else str(Path(store).absolute()),
    )
    asyncio.run(_run(settings))


async def _run(settings: StackSettings) -> None:
    stopped, stack = stop_event(), LocalStack(settings)
    starting = asyncio.create_task(stack.start())
    asked = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            click.echo(
                f"ready: http://{settings.gateway}/v1 for OpenAI's clients, router {settings.router}, executor {settings.executor}, "
                f"broker {stack.kafka_bootstrap}, store {settings.store}, data {settings.data}; Ctrl-C stops"
            )
            await asked
    finally:
        for task in (starting, asked):
            task.cancel()
        with suppress(asyncio.CancelledError, SmoaError):
            await starting
        await stack.stop()
        click.echo("stopped")
