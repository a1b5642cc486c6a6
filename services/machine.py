"""What this machine must have before a stack starts on it: free ports, disk, a broker that answers."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.executor.models.base_model import DEFAULT_BASE_MODEL, cache_home
from services.executor.settings import ExecutorSettings
from services.router.settings import RouterSettings
from smoa.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from smoa.settings import from_environment
from smoa.spool import reserved_bytes

MIB: Final = 2**20
LOGS_BYTES: Final = 64 * MIB
"""For the broker's first segments, the catalogue and the optimizer's tables: a small library's."""
CONVERSION_BYTES: Final = 600 * MIB
"""What converting the default base model writes into the cache at most, once; 280 MiB of it stay."""
ANSWER_S: Final = 5.0


def check_port_free(name: str, port: int) -> None:
    """Raise unless a service can listen there.

    Raises:
        FailedPrecondition: the port is taken.
    """
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


def disk_needed(data: Path, environment: Mapping[str, str]) -> dict[Path, int]:
    """Bytes that a start writes, by folder: what is there from an earlier start is not written again.

    Raises:
        InvalidArgument: a size in the environment is no number.
    """
    router = from_environment(RouterSettings, environment, "SMOA_ROUTER_")
    executor = from_environment(ExecutorSettings, environment, "SMOA_EXECUTOR_")
    spools = {data / "router": router.spool_bytes, data / "executor": executor.spool_bytes}
    needed = {data: LOGS_BYTES + sum(reserved_bytes(size) for folder, size in spools.items() if not (folder / "spool").exists())}
    model = cache_home() / "models" / DEFAULT_BASE_MODEL
    if executor.base_model == DEFAULT_BASE_MODEL and not (model / "config.json").exists():
        needed[cache_home()] = CONVERSION_BYTES
    return needed


def check_disk(data: Path, environment: Mapping[str, str]) -> None:
    """Raise unless the disks have room for a start.

    Raises:
        ResourceExhausted: naming the folder, what it needs and what is free.
    """
    by_device: dict[int, list[tuple[Path, int]]] = {}
    for folder, size in disk_needed(data, environment).items():
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        by_device.setdefault(there.stat().st_dev, []).append((there, size))
    for folders in by_device.values():
        needed, free = sum(size for _, size in folders), shutil.disk_usage(folders[0][0]).free
        if free < needed:
            raise ResourceExhausted(
                f"disk: {' and '.join(str(folder) for folder, _ in folders)} need {needed / MIB:,.0f} MiB, and {free / MIB:,.0f} are free",
                "free space, or give a --data (or SMOA_CACHE, for the base model) on a larger disk",
            )


def parse_servers(text: str) -> list[tuple[str, int]]:
    """Hosts and ports of `host:port,host:port`.

    Raises:
        InvalidArgument: not of that form.
    """
    servers = []
    for one in text.split(","):
        host, _, port = one.strip().rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise InvalidArgument("kafka", f"{one.strip()!r} is not host:port", "give one or more of those, with commas between")
        servers.append((host.strip("[]"), int(port)))
    return servers


def check_broker(servers: str) -> None:
    """Raise unless one of the servers accepts a connection.

    Raises:
        Unavailable: none does.
    """
    failed = ""
    for server in parse_servers(servers):
        try:
            socket.create_connection(server, ANSWER_S).close()
        except OSError as error:
            failed = str(error)
        else:
            return
    raise Unavailable(f"kafka: nothing answers at {servers} ({failed}); correct --kafka, or leave it out for the embedded broker")
