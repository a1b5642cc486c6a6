"""`python -m services.broker ADDRESS_FILE --data FOLDER`: serve until a signal."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from services.broker.server import Broker
from services.broker.store import Store
from smoa.errors import FailedPrecondition, SmoaError
from smoa.plain_files import write_plain
from smoa.rpc import stop_event
from smoa.service import end_with_supervisor
from smoa.telemetry import configure_logging

_log = logging.getLogger("services.broker")


@click.command()
@click.argument("address_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--data", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where its log is kept.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0: that of last time, or, the first time, any that is free.")
@click.option("--partition-mb", type=click.IntRange(1), default=64, show_default=True, help="What a partition keeps, if not compacted.")
def main(address_file: Path, data: Path, port: int, partition_mb: int) -> None:
    """Serve Kafka's protocol on loopback, and write the address to ADDRESS_FILE once it listens."""
    end_with_supervisor()
    configure_logging()
    try:
        asyncio.run(_run(address_file, data, port, partition_mb * 2**20))
    except SmoaError as error:
        raise SystemExit(f"broker: {error}") from error


async def _run(address_file: Path, data: Path, port: int, partition_bytes: int) -> None:
    stopped = stop_event()
    store = Store(data, partition_bytes)
    broker, last = Broker(store), data / "port"
    try:
        chosen = port or _noted(last)
        try:
            await broker.start(chosen)
        except OSError as error:
            if port or address_file.exists():  # others know this address: it has to be the same one
                raise FailedPrecondition(f"port: {chosen} is taken ({error.strerror}); stop its owner or give another") from error
            await broker.start(0)
        write_plain(last, str(broker.port).encode())
        write_plain(address_file, f"127.0.0.1:{broker.port}".encode())
        _log.info("broker on 127.0.0.1:%d, log in %s", broker.port, data)
        await stopped.wait()
    finally:
        await broker.stop()
        store.close()


def _noted(path: Path) -> int:
    """The port of last time: whoever was connected finds it there again. 0 if none was noted."""
    try:
        return int(path.read_text()) % 65536
    except (FileNotFoundError, ValueError):
        return 0


if __name__ == "__main__":
    main()
